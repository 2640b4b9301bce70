"""What people read: golden tables of fixed records, rounding, footnotes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import compose, report
from bench import plan as planning
from bench.errors import ConfigError
from bench.hardware import Hardware
from bench.journal import Journal
from bench.metrics import METRICS
from bench.record import Iteration, Outcome, Peaks
from bench.units import duration, gibibytes, milliseconds, percent, significant

Golden = Callable[[str, str], None]


@pytest.fixture
def outcomes(make: Any) -> list[Outcome]:
    """Two lengths and two batches; three launches of the first cell, one failed launch, a failure, two notes."""
    one = make.cell(batch=1)
    two = make.cell(batch=8, beams=4)
    three = make.cell(batch=8, inputs=2000)
    fast_memory = Peaks(bandwidth_measured=1e10, flops_measured=1e14)
    return [
        make.record(one, step=0.012, warnings=("the iterations differ by 9%",)),
        make.record(two, peaks=fast_memory),
        make.failure(three, error="out of memory: 3 GiB | more", log_tail=tuple(f"line {n}" for n in range(20))),
        make.record(one, step=0.010, launch=2, warnings=("the iterations differ by 9%",)),
        make.record(one, step=0.011, launch=3),
        make.failure(two, launch=2, status="killed", error="the worker was killed by SIGKILL", log_tail=()),
    ]


def test_the_terminal_table(outcomes: list[Outcome], golden: Golden, capsys: pytest.CaptureFixture[str],
                            monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    monkeypatch.setenv("COLUMNS", "100")
    report.print_table(outcomes)
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    golden("table.txt", shown)


def test_report_md(outcomes: list[Outcome], golden: Golden):
    golden("report.md", report.markdown(outcomes))


def test_one_cell_without_notes(make: Any, golden: Golden, capsys: pytest.CaptureFixture[str]):
    report.print_table([make.record()])
    golden("one.txt", "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n")
    report.print_table([])
    assert capsys.readouterr().out == ""


def test_the_plan(golden: Golden, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    info = {"device_name": "a GPU", "device_count": 1, "device_memory_bytes": 24 * 2**30, "driver": ""}
    machine = Hardware({"cpu": info, "xpu": info}, {"cuda": "this machine has no such device"})
    monkeypatch.setattr(planning, "hardware_of", lambda python: machine)
    monkeypatch.chdir(tmp_path)
    composed = compose.compose(
        ["-m", "model=llama-2-7b,tiny,org/unknown", "engine=eager,static", "lengths=[32/32,4000/97]",
         "batch_size=[1,64]", "num_beams=1", "launches=2", "env.OMP_NUM_THREADS=4", "results=somewhere"]
    )  # fmt: skip
    assert composed is not None
    report.print_plan(planning.plan(composed[0]))
    golden("plan.txt", capsys.readouterr().out)


def test_launches_are_one_row_with_the_median(make: Any):
    records = [make.record(ttft=value, launch=number) for number, value in enumerate((0.3, 0.1, 0.2), 1)]
    shown = report.view(records)
    (row,) = shown.rows
    assert row.figures[0] == "200.0 ms"
    assert row.axes == ()
    assert ("launches", "3") in shown.common
    assert (
        dict(shown.common).items() >= {"model": "tiny", "precision": "bf16", "on": "a device", "torch": "2.9"}.items()
    )
    assert "tp" not in dict(shown.common)


def test_failures_are_shown_with_and_without_figures(outcomes: list[Outcome]):
    one, two, three = report.view(outcomes).rows
    assert one.failure == ""
    assert two.figures and two.failure == "1 of 2 launches failed: killed: the worker was killed by SIGKILL"
    assert three.figures == () and three.failure == "oom: out of memory: 3 GiB | more"


def test_only_axes_that_vary_are_columns(outcomes: list[Outcome]):
    shown = report.view(outcomes)
    assert shown.axes == ("decoding", "beams", "batch", "in")
    assert [row.axes for row in shown.rows] == [
        ("greedy", "1", "1", "100"),
        ("beam", "4", "8", "100"),
        ("greedy", "1", "8", "2000"),
    ]


def test_notes_are_numbered_once_and_in_order(make: Any):
    records = [
        make.record(make.cell(batch=1), warnings=("first", "second")),
        make.record(make.cell(batch=2), warnings=("second",), approximation="Llama stands in"),
        make.record(make.cell(batch=4), warnings=("second", "first")),
    ]
    shown = report.view(records)
    assert shown.notes == ("first", "second", "Llama stands in")
    assert [row.notes for row in shown.rows] == [(1, 2), (2, 3), (1, 2)]


@pytest.mark.parametrize(
    ("peaks", "note"),
    [
        (Peaks(bandwidth_measured=1e10, flops_measured=1e14), "MBU above 100 %"),
        (Peaks(bandwidth_measured=1e12, flops_measured=1e9), "MFU above 100 %"),
        (Peaks(bandwidth_measured=1e12, flops_measured=1e14), None),
        (Peaks(), None),
    ],
)
def test_more_than_the_peak_is_said_to_be_wrong(make: Any, peaks: Peaks, note: str | None):
    notes = report.view([make.record(peaks=peaks)]).notes
    assert [text.startswith(note or "") for text in notes] == ([True] if note else [])
    assert not note or "bench doctor --measure" in notes[0]


def test_every_figure_of_a_report_is_a_metric():
    assert {name for name, _, _ in report.FIGURES} <= METRICS.keys()


def test_report_command(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, batch in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        Journal(tmp_path / name / "journal.jsonl").outcome(make.record(make.cell(batch=batch)))
    assert report.main(["a", "b"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("100.0 ms") == 2 and "batch" in shown
    assert report.main(["a"]) == 0
    assert (tmp_path / "a" / "report.md").read_text() == report.markdown([make.record(make.cell(batch=1))])
    assert report.main([]) == 2
    with pytest.raises(ConfigError, match="bench report has no option --html"):
        report.main(["--html"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1.000"),
        (9.9996, "10.00"),
        (12.3456, "12.35"),
        (999.96, "1000"),
        (1234.56, "1235"),
        (123456.0, "123500"),
        (0.00123456, "0.001235"),
        (-12.3456, "-12.35"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_four_significant_digits(value: float, text: str):
    assert significant(value) == text


def test_units():
    assert milliseconds(0.0123456) == "12.35 ms"
    assert milliseconds(math.nan) == "-"
    assert [gibibytes(size) for size in (None, math.nan, 2.0**30, 1.5 * 2**30, 2.0**20, 0.0)] == [
        "-", "-", "1.0 GiB", "1.5 GiB", "1.0 MiB", "0.0 MiB",
    ]  # fmt: skip
    assert [percent(share) for share in (0.1234, 1.5, math.nan)] == ["12.3 %", "150.0 %", "-"]
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 3599, 3600, 36_061)] == [
        "0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "10 h 01 min",
    ]  # fmt: skip


def test_a_single_output_token_has_dashes(make: Any):
    item = Iteration((0.1,), 0.1)
    record = make.record(make.cell(outputs=1), iterations=(item,), warmups=())
    (row,) = report.view([dataclasses.replace(record)]).rows
    assert row.figures[1] == "-"
    assert row.figures[4] == "-"
