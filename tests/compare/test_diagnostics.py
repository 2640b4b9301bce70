"""Iterations from the journal beside the table: shown, never counted as replicates."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.compare import render_html
from bench.compare.cli import main
from bench.compare.compare import compare
from bench.compare.diagnostics import lag1, within_sd
from bench.compare.kernels import order_interval
from bench.compare.model import Report, plain
from bench.compare.read import read_side
from bench.compare.settings import Settings
from bench.journal import Journal
from bench.record import Failure, Iteration, ModelCost, Peaks, Record
from bench.table import to_csv
from tests.compare.conftest import KEY


def record(launch: int, first: float = 1.0, factor: float = 1.0, run: str = "a") -> Record:
    """Ten iterations of TTFT 100 ms and TPOT 20 ms with a small, known pattern; the first one `first` times as slow."""
    iterations = []
    for i in range(10):
        scale = factor * (1 + 0.001 * (i % 3) + 0.0005 * launch) * (first if i == 0 else 1.0)
        iterations.append(Iteration(tuple(scale * (0.1 + 0.02 * step) for step in range(4)), scale * 0.16, "hash"))
    axes = {**KEY, "output_tokens": 4}
    return Record(
        cell="c0ffee", launch=launch, axes=axes, run=run, log="log", started=f"2026-01-01T00:0{launch}:00Z",
        iterations=tuple(iterations), warmups=(), load_s=1.0, hook_s=1e-6, peak_memory_bytes=1e9,
        peak_reserved_bytes=2e9, other_cores=0.1, compiled=False, cost=ModelCost(), peaks=Peaks(), seed=0,
        approximation=None,
        fingerprint={"clock": "event", "device_name": "Arc B580", "torch": "2.9.0"},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    def make(name, outcomes, csv=True):
        path = tmp_path / name
        path.mkdir()
        for outcome in outcomes:
            Journal(path / "journal.jsonl").outcome(outcome)
        if csv:
            (path / "results.csv").write_text(to_csv(outcomes))
        return str(path)

    return make


def test_a_journal_reads_like_its_table(folder):
    outcomes = [record(1), record(2), record(3)]
    with_table, journal = folder("a", outcomes), folder("b", outcomes, csv=False)
    comparison = compare(read_side([with_table]), read_side([journal]), Settings())
    assert comparison.counts == {"equivalent": 2}
    assert {r.ratio for r in comparison.results} == {1.0}


def test_iterations_are_attached_and_do_not_replicate(folder):
    base = folder("a", [record(1)])
    cand = folder("b", [record(1, factor=1.2, run="b")])
    comparison = compare(read_side([base]), read_side([cand]), Settings())
    assert {(r.tier, r.verdict) for r in comparison.results} == {("T0", "suspect")}
    found = comparison.results[0].samples
    assert len(found["base"]["iterations"][0]) == 10
    ordered = sorted(found["base"]["iterations"][0])
    assert found["base"]["interval"] == [ordered[1], ordered[8]]
    page = render_html.render(Report([comparison], plain(vars(Settings())), "bench", 0))
    assert "<svg" in page


def test_iterations_are_drawn_in_the_strips(folder):
    sides = [folder(name, [record(i, run=name) for i in (1, 2, 3)]) for name in "ab"]
    comparison = compare(read_side([sides[0]]), read_side([sides[1]]), Settings())
    page = render_html.render(Report([comparison], plain(vars(Settings())), "bench", 0))
    assert page.count('class="it b"') == page.count('class="it c"') == 2 * 3 * 10


def test_a_slow_first_iteration_is_named(folder):
    base = folder("a", [record(i) for i in (1, 2, 3)])
    cand = folder("b", [record(i, first=1.5, run="b") for i in (1, 2, 3)])
    comparison = compare(read_side([base]), read_side([cand]), Settings())
    assert comparison.warnings == ["the first iteration is slow in 1 cells: raise warmup"]


def test_the_noise_floor_knows_scatter_within_launches(folder, tmp_path, capsys):
    path = tmp_path / "noise.json"
    assert main(["noise", folder("a", [record(i) for i in range(1, 6)]), "--out", str(path)]) == 0
    (ttft,) = [e for e in json.loads(path.read_text())["cells"] if e["metric"] == "ttft_s"]
    expected = np.std(np.log([1 + 0.001 * (i % 3) + 0.0005 for i in range(10)]), ddof=1)
    assert ttft["within_sd"] == pytest.approx(expected, rel=0.01)
    assert ttft["lag1_iterations"] < 0


def test_a_failure_in_the_journal_is_a_status(folder):
    failure = Failure(
        "c0ffee", 1, {**KEY, "output_tokens": 4}, "b", "jobs/1/log", "2026-01-01T01:00:00Z", "oom", "no memory"
    )
    comparison = compare(
        read_side([folder("a", [record(1)])]), read_side([folder("b", [failure], csv=False)]), Settings()
    )
    (result,) = [r for r in comparison.results if r.metric == "status"]
    assert (result.verdict, result.reason, result.log, result.cand_status) == (
        "failed-new",
        "no memory",
        "jobs/1/log",
        "oom",
    )


def test_percentiles_have_intervals_of_their_own(folder):
    sides = [folder(name, [record(i, run=name) for i in (1, 2, 3)]) for name in "ab"]
    results = compare(read_side([sides[0]]), read_side([sides[1]]), Settings(metrics=("itl_p90", "itl_p99"))).results
    p90, p99 = (result.samples["base"] for result in results)
    gaps = sorted(b - a for i in record(3).iterations for a, b in zip(i.steps_s, i.steps_s[1:], strict=False))
    assert p90["samples"] == 30
    assert p90["interval"] == [gaps[rank - 1] for rank in order_interval(30, 0.9)]
    assert p99["interval"] is None
    assert [result.gates for result in results] == [True, False]


def test_lag_and_scatter_of_known_series():
    assert lag1([np.array([1.0, -1.0, 1.0, -1.0])]) == pytest.approx(-0.75)
    assert lag1([np.array([1.0, 2.0])]) is None
    assert within_sd([np.array([0.0, 2.0]), np.array([5.0, 7.0])]) == pytest.approx(2**0.5)
    assert within_sd([np.array([1.0])]) is None
