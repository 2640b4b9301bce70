"""results.csv and the DataFrames: the same figures, whichever way they are read."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pandas
import pytest

import bench
from bench.errors import ResultsError
from bench.journal import Journal
from bench.record import Iteration
from bench.table import COLUMNS, append_csv, outcomes, row, to_csv

NAMES = [column.name for column in COLUMNS]


@pytest.fixture
def folder(tmp_path: Path, make: Any) -> Path:
    """Three outcomes; texts that look like numbers, and a message with everything that CSV has to quote."""
    journal = Journal(tmp_path / "journal.jsonl")
    prints = {"device_name": 'a "fast", device', "driver": "1.10", "kernel": "6.1", "hostname_hash": "12345678",
              "device_count": 1, "torch": "2.9"}  # fmt: skip
    journal.outcome(make.record(make.cell(batch=1), run="00000001", fingerprint=prints, warnings=("one", "two")))
    journal.outcome(make.failure(make.cell(batch=2), error='bad, "very" bad', run="12e45678", fingerprint=prints))
    journal.outcome(make.record(make.cell(batch=4), ttft=1 / 3, run="00000001", fingerprint=prints))
    (tmp_path / "results.csv").write_text(to_csv(journal.outcomes().values()))
    return tmp_path


def test_columns_are_axes_run_metrics_info_fingerprint():
    assert len(set(NAMES)) == len(NAMES)
    assert NAMES[:3] == ["model", "weights", "engine"]
    assert NAMES[NAMES.index("env") + 1 :][:6] == ["launch", "status", "error", "ttft_s", "tpot_s", "e2e_s"]
    assert NAMES[-1] == "variables"
    assert all(len(column.doc) > 3 for column in COLUMNS)


def test_a_row_has_every_column_and_blanks_for_unknown(make: Any):
    good = row(
        make.record(warnings=("one", "two"), iterations=(Iteration((0.1,), 0.1, "a"), Iteration((0.1,), 0.1, "b")))
    )
    assert list(good) == NAMES
    assert (good["status"], good["error"], good["warnings"]) == ("ok", None, "one; two")
    assert good["output_hash"] == "varies"
    assert (good["iterations"], good["warmup"], good["peak_reserved_bytes"]) == (2, 1, None)
    assert not [name for name, value in good.items() if isinstance(value, float) and math.isnan(value)]
    bad = row(make.failure())
    assert list(bad) == NAMES
    assert (bad["status"], bad["error"], bad["ttft_s"]) == ("oom", "out of memory: 3 GiB", None)


def test_load_gives_the_columns_of_the_csv(folder: Path):
    frame = bench.load(folder)
    assert list(frame.columns) == NAMES
    assert frame["status"].tolist() == ["ok", "oom", "ok"]
    assert frame["ttft_s"].tolist()[::2] == [0.1, 1 / 3]
    assert math.isnan(frame["ttft_s"][1])
    assert frame["peak_reserved_bytes"].dtype == float
    assert bench.load(folder / "journal.jsonl").equals(frame)


def test_the_csv_reads_back_as_the_same_frame(folder: Path):
    """Texts that look like numbers (a driver 1.10, hashes of digits) stay texts."""
    frame, read = bench.load(folder), bench.load(folder / "results.csv")
    assert list(read.columns) == NAMES
    for name in NAMES:
        left, right = ([None if pandas.isna(value) or value == "" else value for value in one[name]]
                       for one in (frame, read))  # fmt: skip
        assert left == right, name
    assert read["driver"].tolist() == ["1.10"] * 3
    assert read["run"].tolist() == ["00000001", "12e45678", "00000001"]


def test_appending_rows_gives_the_same_file(folder: Path):
    path = folder / "appended.csv"
    for outcome in outcomes(folder):
        append_csv(path, outcome)
    assert path.read_text() == (folder / "results.csv").read_text()
    with path.open() as file:
        assert [line["error"] for line in csv.DictReader(file)] == ["", 'bad, "very" bad', ""]
    with pytest.raises(ResultsError, match=r"cannot write .*What was measured is safe in journal\.jsonl"):
        append_csv(folder / "gone" / "results.csv", outcomes(folder)[0])


def test_samples_in_long_form(folder: Path):
    frame = bench.load_samples(folder)
    assert len(frame) == 2 * 3 * 3  # two records, one warm-up and two iterations, three tokens
    first = frame[(frame["batch_size"] == 1) & (frame["iteration"] == 2)]
    assert first["step"].tolist() == [1, 2, 3]
    assert first["end_s"].tolist() == pytest.approx([0.10, 0.11, 0.12])
    assert first["gap_s"].tolist() == pytest.approx([0.10, 0.01, 0.01])
    assert sorted(frame["iteration"].unique()) == [-1, 1, 2]
    assert {"model", "launch", "cell"} <= set(frame.columns)


def test_no_results(tmp_path: Path):
    with pytest.raises(ResultsError, match="is not a results folder: there is no journal"):
        bench.load(tmp_path)
    with pytest.raises(ResultsError, match="cannot read"):
        bench.load(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ResultsError, match="cannot read"):
        bench.load(tmp_path / "empty.csv")
    with pytest.raises(ResultsError, match="is not a results folder"):
        outcomes(tmp_path / "empty.csv")
    (tmp_path / "journal.jsonl").write_text("")
    frame = bench.load(tmp_path)
    assert list(frame.columns) == NAMES
    assert frame.empty
    assert bench.load_samples(tmp_path).empty
