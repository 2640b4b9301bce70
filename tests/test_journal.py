"""The journal and its lines: torn writes, full disks, round trips, reading while it grows."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.errors import ResultsError
from bench.journal import Journal, log_tail
from bench.record import FAILURE_KINDS, Failure, ModelCost, Record, from_json, to_json
from tests.conftest import ROOT


def same(one: Record | Failure, other: Record | Failure) -> bool:
    """Equality that takes NaN for NaN."""
    return repr(one) == repr(other)


def test_record_round_trip_with_unknown_values(make: Any):
    costs = ModelCost(kv_bytes_per_token=5.0, windows=((3.0, 12.0), (1.0, 30.0)))
    record = make.record(warnings=("a", "b"), approximation="x", peak_memory_bytes=math.nan, cost=costs)
    line = json.dumps(to_json(record), allow_nan=False)
    assert json.loads(line)["peak_reserved_bytes"] is None
    again = from_json(json.loads(line))
    assert same(again, record)
    assert isinstance(again, Record) and math.isnan(again.peaks.bandwidth_datasheet)
    assert isinstance(again.iterations[0].steps_s, tuple)
    failure = make.failure(fingerprint={"torch": "2.9"})
    assert from_json(json.loads(json.dumps(to_json(failure)))) == failure


def test_samples_are_not_rounded(make: Any):
    record = make.record(ttft=0.1234567890123456789, step=1e-9 / 3)
    again = from_json(json.loads(json.dumps(to_json(record))))
    assert isinstance(again, Record)
    assert again.iterations == record.iterations


def test_fields_of_a_later_version_are_ignored(make: Any):
    for outcome in (make.record(), make.failure()):
        data = {**to_json(outcome), "energy_j": 3.0, "schema": 99}
        if isinstance(outcome, Record):
            data["cost"]["bytes_per_joule"] = 5.0
        assert same(from_json(data), dataclasses.replace(outcome, schema=99))


def test_failure_kinds_are_those_of_the_design():
    assert FAILURE_KINDS == (
        "oom", "timeout", "killed", "unsupported", "wrong_length", "nonfinite", "load", "error",
    )  # fmt: skip


def test_the_last_outcome_of_a_cell_and_launch_wins(tmp_path: Path, make: Any):
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.outcomes() == {}
    one, two = make.cell(batch=1), make.cell(batch=2)
    journal.append({"kind": "phase", "phase": "loading"}, sync=False)
    for outcome in (make.failure(one), make.record(two), make.record(one), make.record(one, launch=2)):
        journal.outcome(outcome)
    found = journal.outcomes()
    assert list(found) == [(one.id, 1), (two.id, 1), (one.id, 2)]
    assert {outcome.status for outcome in found.values()} == {"ok"}
    journal.outcome(make.failure(two, status="timeout"))
    assert journal.outcomes()[two.id, 1].status == "timeout"


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_last_line_is_ignored_and_closed_off(tmp_path: Path, make: Any, cut: int):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    one, two = make.cell(batch=1), make.cell(batch=2)
    journal.outcome(make.record(one))
    whole = path.stat().st_size
    journal.outcome(make.record(two))
    torn = path.read_bytes()[:-cut]
    path.write_bytes(torn)
    assert list(journal.outcomes()) == [(one.id, 1)]
    assert [offset for _, offset in journal.lines()] == [whole]
    journal.outcome(make.failure(two))
    assert path.read_bytes().startswith(torn + b"\n{")
    found = journal.outcomes()
    if cut == 1:  # only the newline was lost: the record is whole, and the failure came later
        assert len(list(journal.lines())) == 3
    assert [outcome.status for outcome in found.values()] == ["ok", "oom"]


def test_reading_while_it_grows(tmp_path: Path, make: Any):
    journal = Journal(tmp_path / "journal.jsonl")
    seen = []
    offset = 0
    for number in range(3):
        journal.append({"kind": "start", "number": number})
        with journal.path.open("ab") as file:  # another line is just being written
            file.write(b'{"kind":"sta')
        for line, after in journal.lines(offset):
            seen.append(line["number"])
            offset = after
        assert seen == list(range(number + 1))
        with journal.path.open("r+b") as file:
            file.truncate(offset)
    reader = journal.lines()
    next(reader)
    journal.append({"kind": "start", "number": 3})
    assert [line["number"] for line, _ in reader] == [1, 2, 3]


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from bench.errors import ResultsError
from bench.journal import Journal
path = Path({path!r})
journal = Journal(path)
journal.append({{"kind": "start", "cell": "a"}})
before = path.read_bytes()
limit = len(before) + 50
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    journal.append({{"kind": "start", "cell": "b" * 100}})
except ResultsError as error:
    print(error)
assert path.read_bytes() == before
journal.append({{"kind": "c"}})
assert len(list(journal.lines())) == 2
"""


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    code = FULL.format(root=str(ROOT), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"cannot write {path}: File too large. Everything measured so far is kept; make room or choose another folder "
        f"with results=DIR, then run the same command again\n"
    )


def test_a_folder_that_is_gone_is_an_error_with_advice(tmp_path: Path):
    with pytest.raises(ResultsError, match=r"cannot write .*: No such file or directory"):
        Journal(tmp_path / "gone" / "journal.jsonl").append({"kind": "start"})


def test_lines_of_another_program_are_not_outcomes(tmp_path: Path, make: Any):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"foo": 1}\n[1, 2]\n3\nnot json\n\n{"kind": "energy", "cell": "x", "launch": 1}\n')
    journal = Journal(path)
    assert journal.outcomes() == {}
    journal.outcome(make.record())
    assert len(journal.outcomes()) == 1


def test_what_cannot_be_read_is_one_line(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "record", "cell": "a", "launch": 1}\n')
    with pytest.raises(ResultsError, match="holds a record that this version of bench cannot read"):
        Journal(path).outcomes()
    path.unlink()
    path.mkdir()
    with pytest.raises(ResultsError, match=r"cannot read .*: Is a directory"):
        Journal(path).outcomes()


def test_log_tail(tmp_path: Path):
    log = tmp_path / "log"
    assert log_tail(log) == ()
    log.write_bytes(b"\n".join(b"line %d \xff" % number for number in range(100_000)))
    assert log_tail(log, 2) == ("line 99998 \ufffd", "line 99999 \ufffd")
    assert len(log_tail(log)) == 40
