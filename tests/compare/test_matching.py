"""Cells, statuses, environments and the exit codes that follow."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from bench.compare import text
from bench.compare.cli import main
from bench.compare.codes import FAILED, INTERNAL, NOTHING, OK, UNDECIDED, USAGE
from bench.compare.compare import compare
from bench.compare.gate import worst
from bench.compare.read import read_side
from bench.compare.settings import Settings
from bench.errors import ConfigError, ResultsError
from tests.compare.conftest import noisy, rows

GOOD = [{"ttft_s": 0.1 + i * 1e-4, "tpot_s": 0.02 + i * 1e-5} for i in range(3)]


def outcome(save, base, cand, **options):
    return compare(read_side([save(base, "base")]), read_side([save(cand, "cand")]), Settings(**options))


def status(comparison):
    return {(r.verdict, r.base_status, r.cand_status) for r in comparison.results if r.metric == "status"}


def failing(kind: str, launches: int = 3) -> pd.DataFrame:
    return rows([{}] * launches, run="run-b", error=f"it was {kind}", log="jobs/1/log").assign(status=kind)


def test_one_launch_number_twice_is_an_error(save):
    twice = pd.concat([rows(GOOD), rows(GOOD[:1])])
    with pytest.raises(ResultsError, match=r"base.csv:5: launch 1 of one cell occurs twice .*llama3-8b"):
        outcome(save, twice, rows(GOOD))


def test_files_of_different_runs_are_different_launches(save):
    base = [save(rows(GOOD[:1], run=f"run-{i}"), f"base{i}") for i in range(3)]
    cand = [save(rows(GOOD[:1], run=f"run-{i + 5}"), f"cand{i}") for i in range(3)]
    comparison = compare(read_side(base), read_side(cand), Settings())
    assert {(r.tier, r.base_ok, r.cand_ok) for r in comparison.results} == {("T1", 3, 3)}
    with pytest.raises(ResultsError, match="occurs twice"):
        compare(read_side([base[0], base[0]]), read_side(cand), Settings())


def test_copies_of_a_file_without_run_ids_are_one_launch(save):
    base = save(rows(GOOD[:1]).drop(columns="run"), "base")
    with pytest.raises(ResultsError, match="occurs twice"):
        compare(read_side([base, save(rows(GOOD[:1]).drop(columns="run"), "copy")]), read_side([base]), Settings())


def test_an_unknown_column_that_varies_inside_a_cell_is_named(save, capsys):
    base = rows(GOOD).assign(attention=["sdpa", "flash", "sdpa"])
    paths = [save(base, "base"), save(rows(GOOD, run="run-b"), "cand")]
    assert main(paths) == 2
    error = capsys.readouterr().err
    assert "'attention'" in error and "--key attention" in error and "--ignore attention" in error
    assert main([*paths, "--ignore", "attention"]) == 0
    assert main([paths[0], paths[0], "--key", "attention"]) == 0


def test_an_unknown_column_may_be_blank_where_a_launch_failed(save):
    base = pd.concat([rows(GOOD).assign(attention="sdpa"), failing("oom", 1).assign(launch=4, run="run-a")])
    assert outcome(save, base, rows(GOOD, run="b")).counts == {"equivalent": 2}


def test_an_unknown_column_that_differs_between_the_sides_is_listed(save):
    comparison = outcome(save, rows(GOOD).assign(kernel_flag="a"), rows(GOOD, run="b").assign(kernel_flag="b"))
    assert [(d.column, d.base, d.cand, d.hard) for d in comparison.environment] == [
        ("kernel_flag", ["a"], ["b"], False)
    ]


def test_of_variables_and_versions_only_those_are_shown_that_differ(save):
    base, cand = (
        rows(GOOD, run=run).assign(
            variables=f"A=1 LONG={'x' * 60}{own}", adapters=f"accelerate=1.15.0 triton={version}"
        )
        for run, own, version in (("a", "", "3.6.0"), ("b", " OMP_NUM_THREADS=4", "3.7.0"))
    )
    assert sorted(text.environment(outcome(save, base, cand))) == [
        "adapters triton=3.6.0 → triton=3.7.0 (NOT declared)",
        "variables none → OMP_NUM_THREADS=4 (NOT declared)",
    ]


def test_a_key_of_one_side_only(save):
    several = pd.concat([rows(GOOD), rows(GOOD, run="c", stack="ipex-2.8")])
    with pytest.raises(ResultsError, match=r"'stack' is only in .*--ignore stack"):
        outcome(save, several, rows(GOOD, run="b").drop(columns="stack"))
    one = outcome(save, rows(GOOD), rows(GOOD, run="b").drop(columns="stack"))
    assert one.counts == {"equivalent": 2}
    assert one.warnings == [f"column 'stack' is only in {one.base} and was left out of the key"]


def test_paths_and_number_spellings_meet(save):
    base = rows(GOOD).assign(model="/data/models/llama3-8b/", batch_size="1.0")
    assert outcome(save, base, rows(GOOD, run="b").assign(model="org/llama3-8b")).counts == {"equivalent": 2}


@pytest.mark.parametrize(
    ("base", "cand", "expected", "code"),
    [
        ("ok", "oom", "failed-new", FAILED),
        ("ok", "unsupported", "failed-new", FAILED),
        ("oom", "ok", "fixed", NOTHING),
        ("oom", "timeout", "both-failed", NOTHING),
        ("ok", "wrong_length", "not-comparable", NOTHING),
        ("unsupported", "unsupported", "skipped", NOTHING),
        ("ok", "skipped", "skipped", NOTHING),
    ],
)
def test_status_table(save, base, cand, expected, code):
    sides = [rows(GOOD, run=name) if name == "ok" else failing(name) for name in (base, cand)]
    comparison = outcome(save, *sides)
    assert status(comparison) == {(expected, base, cand)}
    assert comparison.exit_code == code


def test_missing_and_new(save):
    two = pd.concat([rows(GOOD), rows(GOOD, batch_size=8)])
    gone = outcome(save, two, rows(GOOD, run="b"))
    assert (status(gone), gone.exit_code) == ({("missing", "ok", "")}, FAILED)
    assert outcome(save, two, rows(GOOD, run="b"), missing="warn").exit_code == OK
    assert not status(outcome(save, two, rows(GOOD, run="b"), missing="ignore"))
    added = outcome(save, rows(GOOD, run="b"), two)
    assert (status(added), added.exit_code) == ({("new", "", "ok")}, OK)
    failed = pd.concat([rows(GOOD), failing("oom").assign(batch_size=8)])
    assert outcome(save, rows(GOOD, run="b"), failed).exit_code == OK
    assert outcome(save, rows(GOOD, run="b"), failed, fail_on=("new-failed",)).exit_code == FAILED


@pytest.mark.parametrize(
    ("failed", "launches", "verdict"), [(1, 5, None), (3, 6, "failed-new"), (4, 12, "failed-new"), (2, 12, None)]
)
def test_partly_failed_launches(save, failed, launches, verdict):
    """Half of the launches, or a Fisher test: 4 of 12 against 0 of 12 has p = .047, 2 of 12 has .24."""
    good = [{"ttft_s": 0.1 + i * 1e-4, "tpot_s": 0.02} for i in range(launches)]
    cand = rows(good, run="b")
    cand.loc[: failed - 1, ["status", "ttft_s", "tpot_s"]] = ["killed", None, None]
    comparison = outcome(save, rows(good), cand)
    found = {r.verdict for r in comparison.results if r.metric == "status"}
    assert found == ({verdict} if verdict else set())
    assert {r.cand_ok for r in comparison.results if r.metric != "status"} == {launches - failed}


def test_a_hard_difference_is_not_comparable(save, capsys):
    paths = [save(rows(GOOD), "base"), save(rows(GOOD, run="b", device_name="Max 1550"), "cand")]
    assert main(paths) == NOTHING
    assert "device_name differs: Arc B580 and Max 1550" in capsys.readouterr().out
    assert main([*paths, "--env-policy", "warn"]) == OK
    assert main([*paths, "--env-policy", "ignore"]) == OK
    assert main([*paths, "--expect-diff", "device_name"]) == OK
    assert main([*paths, "--warn-only"]) == OK
    assert "--warn-only" in capsys.readouterr().out


def test_a_hard_difference_inside_one_side_is_not_comparable(save):
    base = rows(GOOD)
    base.loc[1, "clock"] = "perf_counter"
    assert outcome(save, base, rows(GOOD, run="b")).counts == {"not-comparable": 2}


def test_soft_differences_are_listed_with_tolerance_for_amounts(save):
    base = rows(GOOD, device_memory_bytes=12_000_000_000, hostname_hash="a")
    cand = rows(GOOD, run="b", device_memory_bytes=12_100_000_000, hostname_hash="b", torch="2.9.0")
    found = outcome(save, base, cand, expect_diff=("torch",)).environment
    assert [(d.column, d.declared) for d in found] == [("hostname_hash", False), ("torch", True)]


@pytest.mark.parametrize("value", ["nan", "0", "-1", "fast", "inf"])
def test_a_broken_metric_names_file_and_line(save, capsys, value):
    base = rows(GOOD).astype({"ttft_s": object})
    base.loc[1, "ttft_s"] = value
    paths = [save(base, "base"), save(rows(GOOD, run="b"), "cand")]
    assert main(paths) == USAGE
    assert f"base.csv:3: ttft_s is '{value}'" in capsys.readouterr().err


def test_a_value_of_one_side_only_is_not_comparable(save):
    comparison = outcome(save, rows(GOOD), rows([{"ttft_s": 0.1}] * 3, run="b"))
    assert {(r.metric, r.verdict, r.reason) for r in comparison.results if r.metric == "tpot_s"} == {
        ("tpot_s", "not-comparable", "the candidate has no value")
    }
    assert comparison.exit_code == NOTHING
    gained = outcome(save, rows([{"ttft_s": 0.1}] * 3), rows(GOOD, run="b"))
    assert (gained.counts["not-comparable"], gained.exit_code) == (1, OK)


def test_expected_matrix(save, tmp_path):
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text("model: llama3-8b\nbatch_size: [1, 8]\nlengths: [1024/128]\n")
    cand = rows(GOOD, run="b")
    comparison = outcome(save, rows(GOOD), cand, expected=str(matrix))
    (missing,) = [r for r in comparison.results if r.verdict == "missing"]
    assert missing.key["batch_size"] == "8" and comparison.exit_code == FAILED
    base = pd.concat([rows(GOOD), rows(GOOD, batch_size=64)])
    matrix.write_text("batch_size: [1]\n")
    assert outcome(save, base, cand, expected=str(matrix)).exit_code == OK
    with pytest.raises(ConfigError, match="Did you mean batch_size"):
        matrix.write_text("batch_sise: [1]\n")
        outcome(save, base, cand, expected=str(matrix))


def test_where_by_and_metrics(save, capsys):
    base = pd.concat([rows(GOOD, batch_size=n, e2e_s=1.0 + n) for n in (1, 8, 64)])
    paths = [save(base, "base"), save(base.assign(run="b"), "cand")]
    out = ["--format", "json"]

    def cells(*flags):
        assert main([*paths, *out, *flags]) == OK
        return json.loads(capsys.readouterr().out)["comparisons"][0]

    assert cells("--where", "batch<=8")["cells"] == 2
    assert cells("--where", "model=*LLAMA* and batch!=1")["cells"] == 2
    assert cells("--metrics", "e2e")["metrics"] == ["e2e_s"]
    every = cells("--metrics", "all")
    assert every["metrics"] == ["ttft_s", "tpot_s", "e2e_s"]
    assert {r["metric"] for r in every["results"] if r["gates"]} == {"ttft_s", "tpot_s"}
    assert main([*paths, "--where", "batch<1"]) == USAGE
    assert main([*paths, "--by", "model,batch_size"]) == OK
    assert main([*paths, "--by", "model"]) == USAGE  # the batch sizes then are one cell with every launch three times


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--metrics", "tftt"], "Did you mean"),
        (["--metrics", "load"], "neither side has the metric load_s"),
        (["--delta", "abc"], "'abc' is no amount"),
        (["--delta", "3ms"], "is no share"),
        (["--abs-floor", "0.2"], "has no unit"),
        (["--alpha", "2"], "--alpha"),
        (["--fail-on", "regresion"], "Did you mean regression"),
        (["--where", "batch"], "is no condition"),
        (["--out", "pdf=x"], "unknown format"),
        (["--noise-floor", "nowhere.json"], "cannot read the noise floor"),
        (["--thresholds", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--acc-marginn", "1"], "unrecognized"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(save, capsys, flags, words):
    paths = [save(rows(GOOD), "base"), save(rows(GOOD, run="b"), "cand")]
    assert main([*paths, *flags]) == USAGE
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_precedence_of_exit_codes():
    assert worst([OK, UNDECIDED, NOTHING, FAILED, USAGE, INTERNAL]) == INTERNAL
    assert worst([OK, UNDECIDED, NOTHING, FAILED, USAGE]) == USAGE
    assert worst([OK, UNDECIDED, NOTHING, FAILED]) == FAILED
    assert worst([OK, UNDECIDED, NOTHING]) == NOTHING
    assert worst([OK, UNDECIDED]) == UNDECIDED
    assert worst([]) == OK


def test_a_missing_package_is_exit_code_5(save, monkeypatch, capsys):
    import sys

    for name in [
        name
        for name in sys.modules
        if name.startswith("bench.compare.") and name.split(".")[2] not in ("cli", "codes", "guard")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert main(["base.csv", "cand.csv"]) == INTERNAL
    assert "not a verdict (exit code 5)" in capsys.readouterr().err


def test_several_candidates(save, capsys):
    paths = [save(noisy(2, 4, i, factor=f, run=f"r{i}"), f"t{i}") for i, f in enumerate((1.0, 1.0, 1.2))]
    assert main([*paths, "--format", "json"]) == FAILED
    report = json.loads(capsys.readouterr().out)
    assert [c["exit_code"] for c in report["comparisons"]] == [0, 1]
    assert main(["--baseline", paths[0], "--candidate", paths[1]]) == OK
    assert main(["--baseline", paths[0]]) == USAGE
    assert main([]) == USAGE
    assert main(["--help"]) == OK


def test_strict_and_fail_on_improvement(save):
    noise = np.random.default_rng(1)
    wide = [{"ttft_s": 0.1 * np.exp(0.2 * noise.standard_normal())} for _ in range(3)]
    base, cand = save(rows(wide), "base"), save(rows(wide[::-1], run="b"), "cand")
    assert main([base, cand]) == OK
    assert main([base, cand, "--strict"]) == UNDECIDED
    fast = save(rows([{k: v / 2 for k, v in m.items()} for m in GOOD], run="c"), "fast")
    good = save(rows(GOOD), "good")
    assert main([good, fast]) == OK
    assert main([good, fast, "--fail-on", "improvement"]) == FAILED
