"""Whole runs in real worker processes, on the fake device: numbers known beforehand, faults, signals, full disks."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bench as package
from bench.table import COLUMNS
from tests.conftest import Bench

pytestmark = pytest.mark.alone

FAKE = ("run", "device=fake", "results=out", "num_beams=1", "lengths=100/3", "iterations=2", "warmup=1")
SLOW = ("run", "device=fake", "results=out", "num_beams=1", "lengths=1/4", "iterations=3", "warmup=1", "device.pace=1",
        "device.step=0.15")  # fmt: skip
"""Cells of 1.8 s each: 4 iterations with 3 steps of 0.15 s. Loading takes one second more."""
VALUES = {
    "ttft_s": 0.1,
    "tpot_s": 0.01,
    "e2e_s": 0.12,
    "itl_p50_s": 0.01,
    "itl_p90_s": 0.01,
    "itl_p99_s": 0.01,
    "e2e_cv": 0.0,
    "prefill_tokens_per_s": 1000.0,
    "decode_tokens_per_s": 100.0,
    "output_tokens_per_s": 25.0,
    "peak_memory_bytes": 2.0**30,
    "peak_reserved_bytes": 2.0**31,
    "first_call_s": 0.12,
    "residual_s": 0.0,
    "mbu": (1e9 + 1e5 * 101.5) / 0.010 / 1e12,
    "mfu": (2 * 4.9e8 * 100 + 2 * 1e7 + 4 * 1e4 * 100 * 100 / 2) / 0.1 / 1e14,
}


def rows(bench: Bench, folder: str = "out") -> list[dict[str, str]]:
    """results.csv, as text."""
    with (bench.cwd / folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def journal(bench: Bench, *kinds: str) -> list[dict[str, Any]]:
    """The journal's lines of some kinds; none while there is no journal."""
    path = bench.cwd / "out" / "journal.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["kind"] in kinds]


def workers(bench: Bench) -> list[int]:
    """Process ids of workers whose job lies in the test's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if "bench.worker" in command and str(bench.cwd) in _jobs(process, command):
            found.append(int(process.name))
    return found


def _jobs(process: Path, command: str) -> str:
    """The job folder as an absolute path: the argument may be relative to the worker's directory."""
    try:
        return f"{(process / 'cwd').readlink()} {command}"
    except OSError:
        return command


def in_second_cell(bench: Bench) -> bool:
    """Whether one cell has its record and the next one has begun."""
    return len(journal(bench, "record")) == 1 and len(journal(bench, "start")) == 2


def test_known_numbers_in_every_file(bench: Bench):
    done = bench(*FAKE, "batch_size=[1,2]")
    assert done.code == 0, done.stderr
    assert "100.0 ms" in done.stdout and "10.00 ms" in done.stdout and "120.0 ms" in done.stdout
    assert "[2/2] ok" in done.stderr and "out: 2 ok" in done.stderr
    first, second = rows(bench)
    assert list(first) == [column.name for column in COLUMNS]
    assert first["status"] == "ok"
    for name, value in VALUES.items():
        assert float(first[name]) == pytest.approx(value, rel=1e-9, abs=1e-12), name
        assert repr(float(first[name])) == first[name], f"{name} is not written with full precision"
    assert 0 < float(first["hook_s"]) < 1e-3
    assert float(second["prefill_tokens_per_s"]) == pytest.approx(2000)
    assert float(second["decode_tokens_per_s"]) == pytest.approx(200)
    assert float(second["ttft_s"]) == pytest.approx(0.1)
    for name in ("compile_s", "mbu_datasheet", "mfu_datasheet", "error", "approximation", "torch"):
        assert first[name] == "", name
    axes = {"model": "tiny", "weights": "random", "precision": "bf16", "batch_size": "1", "device": "fake"}
    counts = {"iterations": "2", "warmup": "1", "launch": "1", "schema": "1", "log": "jobs/001/log"}
    assert first.items() >= {**axes, **counts}.items()
    frame = package.load(bench.cwd / "out")
    assert frame["tpot_s"].tolist() == [float(first["tpot_s"]), float(second["tpot_s"])]
    names = {path.name for path in (bench.cwd / "out").iterdir()}
    assert names >= {"config.yaml", "journal.jsonl", "results.csv", "report.md", "jobs"}
    assert not [name for name in names if name.startswith(".") and name != ".lock"]
    assert not workers(bench)


@pytest.mark.parametrize(
    ("fault", "statuses", "message"),
    [
        ("oom:4", ["ok", "oom", "ok"], "out of memory: fake device out of memory"),
        ("short:4", ["ok", "wrong_length", "ok"], "asked for 3 tokens, got 2: is EOS ignored?"),
        ("nan:4", ["ok", "nonfinite", "ok"], "the scores hold NaN"),
        ("error:4", ["ok", "error", "ok"], "ValueError: a fault was asked for"),
        ("exit:4", ["ok", "error", "ok"], "a library called exit(0)"),
        ("kill:4", ["ok", "killed", "ok"], "the worker was killed by SIGKILL during warm-up"),
        ("segv:4", ["ok", "killed", "ok"], "the worker was killed by SIGSEGV during warm-up"),
        ("hang:4", ["ok", "timeout", "ok"], "no result after 1 s, ended during warm-up; raise timeout_s"),
        ("load:1", ["load", "load", "load"], "fake weights cannot be loaded"),
        ("kill", ["killed", "killed", "killed"], "the worker was killed by SIGKILL during warm-up"),
    ],
)
def test_each_fault_is_one_failure_and_the_other_cells_are_measured(
    bench: Bench, fault: str, statuses: list[str], message: str
):
    arguments = [*FAKE, "batch_size=[1,4,8]", *(["timeout_s=1"] if "hang" in fault else [])]
    done = bench(*arguments, env={"BENCH_FAKE_FAULT": fault})
    assert done.code == 1
    found = rows(bench)
    assert [row["status"] for row in found] == statuses
    failures = journal(bench, "failure")
    assert len(failures) == len([status for status in statuses if status != "ok"])
    assert len(journal(bench, "record")) == statuses.count("ok")
    for row in found:
        if row["status"] != "ok":
            assert row["error"].startswith(message)
            assert row["ttft_s"] == ""
            assert row["batch_size"] and row["log"]
            assert (bench.cwd / "out" / row["log"]).is_file()
    assert f"{len(failures)} failed" in done.stderr
    assert message in done.stderr
    if fault in ("hang:4", "segv:4"):  # the stacks at that time
        assert any("fake.py" in line for line in failures[0]["log_tail"])
    assert not workers(bench)

    again = bench(*arguments)  # failures count as done
    assert again.code == 1
    assert rows(bench) == found
    if fault in ("oom:4", "load:1", "kill:4"):
        assert bench(*arguments, "retry_failed=true").code == 0
        repaired = rows(bench)
        assert [row["status"] for row in repaired] == ["ok"] * 3
        kept = [row for row in found if row["status"] == "ok"]
        assert [row for row in repaired if row["run"] == found[0]["run"]] == kept


def test_a_killed_worker_costs_one_cell(bench: Bench, wait_for: Callable[..., Any]):
    process = bench.start(*SLOW, "batch_size=[1,2,3]")
    wait_for(lambda: in_second_cell(bench))
    (pid,) = workers(bench)
    os.kill(pid, signal.SIGKILL)
    done = bench.end(process)
    assert done.code == 1
    found = rows(bench)
    assert [row["status"] for row in found] == ["ok", "killed", "ok"]
    assert "killed by SIGKILL" in found[1]["error"]
    assert [row["log"] for row in found] == ["jobs/001/log", "jobs/001/log", "jobs/002/log"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["SIGKILL", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_run_that_is_stopped_goes_on_where_it_was(
    bench: Bench, wait_for: Callable[..., Any], number: signal.Signals, code: int
):
    process = bench.start(*SLOW, "batch_size=[1,2,3]")
    wait_for(lambda: in_second_cell(bench))
    pids = workers(bench)
    assert len(pids) == 1
    process.send_signal(number)
    stopped = bench.end(process)
    assert stopped.code == code
    wait_for(lambda: not workers(bench), 10)
    assert len(journal(bench, "record", "failure")) == 1
    if number == signal.SIGINT:
        assert "bench: interrupted; what was measured is kept" in stopped.stderr
    if number != signal.SIGKILL:
        (before,) = rows(bench)
        assert before["status"] == "ok"
    if number not in (signal.SIGKILL, signal.SIGINT):
        return
    (kept,) = journal(bench, "record")
    done = bench(*SLOW, "batch_size=[1,2,3]")
    assert done.code == 0
    assert "out: 2 to measure, 1 already there" in done.stderr
    found = rows(bench)
    assert [row["status"] for row in found] == ["ok"] * 3
    assert (found[0]["started"], found[0]["run"]) == (kept["started"], kept["run"])
    assert found[1]["run"] == found[2]["run"] != kept["run"]


def test_under_nohup_a_run_outlives_its_terminal(bench: Bench, wait_for: Callable[..., Any]):
    process = bench.start(*SLOW, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(lambda: journal(bench, "start"))
    process.send_signal(signal.SIGHUP)
    assert bench.end(process).code == 0
    assert [row["status"] for row in rows(bench)] == ["ok"]


def test_results_are_readable_and_locked_while_the_run_goes_on(bench: Bench, wait_for: Callable[..., Any]):
    process = bench.start(*SLOW, "batch_size=[1,2]", "device.step=0.5")
    wait_for(lambda: in_second_cell(bench))
    frame = package.load(bench.cwd / "out")
    assert frame["status"].tolist() == ["ok"]
    assert frame["tpot_s"].tolist() == pytest.approx([0.5])
    (row,) = wait_for(lambda: rows(bench))
    assert row["batch_size"] == "1"
    second = bench(*SLOW, "batch_size=4")
    assert second.code == 2
    assert second.line == (
        "bench: another run is writing to out: wait for it to end, or choose another folder with results=DIR"
    )
    assert process.poll() is None, "the first run ended too early for this test to mean anything"
    shown = bench("report", "out")
    assert shown.code == 0 and "500.0 ms" in shown.stdout
    process.send_signal(signal.SIGINT)
    assert bench.end(process).code == 130


def test_a_rerun_measures_only_what_is_missing(bench: Bench):
    assert bench(*FAKE, "batch_size=1").code == 0
    (first,) = rows(bench)
    before = (bench.cwd / "out" / "journal.jsonl").read_bytes()
    done = bench(*FAKE, "batch_size=1")
    assert done.code == 0
    assert "nothing to do, all 1 results were there already (1 ok)" in done.stderr
    assert (bench.cwd / "out" / "journal.jsonl").read_bytes() == before
    assert rows(bench) == [first]
    assert bench(*FAKE, "batch_size=[2,1]").code == 0
    assert [row["batch_size"] for row in rows(bench)] == ["1", "2"]
    assert rows(bench)[0] == first
    done = bench(*FAKE, "batch_size=1", "iterations=3")
    assert done.code == 0
    assert "out: 1 to measure" in done.stderr
    assert [row["iterations"] for row in rows(bench)] == ["2", "2", "3"]


def test_a_finished_folder_of_an_earlier_day_is_left_alone_unless_failures_are_retried(bench: Bench):
    arguments = [word for word in FAKE if not word.startswith("results")] + ["batch_size=[1,4]"]
    assert bench(*arguments, env={"BENCH_FAKE_FAULT": "oom:4"}).code == 1
    (today,) = (bench.cwd / "results").iterdir()
    earlier = today.rename(today.with_name("2020-01-01" + today.name[10:]))
    assert "1 to measure, 1 already there" in bench(*arguments, "retry_failed=true").stderr
    assert [row["status"] for row in rows(bench, str(earlier))] == ["ok", "ok"]
    assert f"{today.name}: 2 to measure" in bench(*arguments).stderr
    assert sorted((bench.cwd / "results").iterdir()) == [earlier, today]


def test_launches_are_fresh_processes_one_round_after_the_other(bench: Bench):
    done = bench(*FAKE, "batch_size=[1,2]", "launches=3", "-m", "engine=eager,static")
    assert done.code == 0
    found = journal(bench, "record")
    assert [line["launch"] for line in found] == [1] * 4 + [2] * 4 + [3] * 4
    assert [line["axes"]["engine"] for line in found] == ["eager", "eager", "static", "static"] * 3
    assert len({line["log"] for line in found}) == 6
    table = rows(bench)
    assert [row["launch"] for row in table] == ["1"] * 4 + ["2"] * 4 + ["3"] * 4
    assert len({(row["cell"], row["launch"]) for row in table}) == 12
    more = bench(*FAKE, "batch_size=[1,2]", "launches=4", "-m", "engine=eager,static")
    assert "out: 4 to measure, 12 already there" in more.stderr


def test_a_sweep_is_one_folder_with_one_table_and_loads_each_model_once(bench: Bench):
    arguments = [word for word in FAKE if not word.startswith("results")]
    done = bench(*arguments, "-m", "batch_size=1,2,1", "precision=bf16,fp16", "env.OMP_NUM_THREADS=1,2")
    assert done.code == 0
    (folder,) = (bench.cwd / "results").iterdir()
    table = rows(bench, f"results/{folder.name}")
    assert len(table) == 8
    assert {(row["batch_size"], row["precision"], row["env"]) for row in table} == {
        (batch, precision, f"OMP_NUM_THREADS={threads}")
        for batch in ("1", "2")
        for precision in ("bf16", "fp16")
        for threads in "12"
    }
    assert len(list((folder / "jobs").iterdir())) == 4
    assert {row["variables"] for row in table if row["env"].endswith("2")} == {"OMP_NUM_THREADS=2"}
    again = bench(*arguments, "-m", "batch_size=1,2,1", "precision=bf16,fp16", "env.OMP_NUM_THREADS=1,2")
    assert "nothing to do" in again.stderr
    assert len(list((bench.cwd / "results").iterdir())) == 1


def test_a_sweep_with_one_impossible_cell(bench: Bench):
    done = bench(*FAKE, "lengths=[100/3,4094/3]")
    assert done.code == 1
    good, bad = sorted(rows(bench), key=lambda row: int(row["input_tokens"]))
    assert good["status"] == "ok"
    assert bad["status"] == "unsupported"
    assert bad["error"] == "4094+3 tokens exceed the model's 4096 positions"
    assert bad["log"] == ""


@pytest.mark.parametrize("results", ["a-file", "a-file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_one_line(bench: Bench, results: str):
    (bench.cwd / "a-file").write_text("mine")
    done = bench(*FAKE, f"results={results}")
    assert done.code == 2
    assert done.line.startswith(f"bench: cannot write the results folder {results}: ")
    assert done.line.endswith("Choose another one with results=DIR")
    assert (bench.cwd / "a-file").read_text() == "mine"


@pytest.mark.parametrize("size", [100, 4000, 12000])
def test_a_full_disk_is_one_line_and_loses_nothing(bench: Bench, size: int):
    """No file may grow beyond `size` bytes: first config.yaml is too long, then job.json, then the journal."""

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    arguments = [*FAKE, "batch_size=[1,2,3,4,5,6,7,8]"]
    done = bench(*arguments, preexec_fn=full)
    assert done.code == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bench: cannot write ")
    assert "File too large" in last and "run the same command again" in last
    kept = journal(bench, "record")
    assert len(kept) < 8
    assert not workers(bench)
    assert bench(*arguments).code == 0
    table = rows(bench)
    assert [row["status"] for row in table] == ["ok"] * 8
    assert [row["run"] for row in table[: len(kept)]] == [line["run"] for line in kept]


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_parent_sleeps_while_the_worker_measures(bench: Bench, wait_for: Callable[..., Any]):
    process = bench.start(*SLOW, "batch_size=[1,2,3,4,5,6]", "device.step=0.17")
    began = wait_for(lambda: journal(bench, "start"))
    assert began
    first = last = processor_seconds(process.pid)

    def until_the_last_cell() -> bool:
        nonlocal last
        done = len(journal(bench, "record"))
        if done < 6:
            last = processor_seconds(process.pid)
        return done >= 5

    wait_for(until_the_last_cell)
    assert last - first < 0.01 * 5 * 4 * 3 * 0.17, "more than 1 % of one core over 5 cells of 2 s"
    assert bench.end(process).code == 0


def test_an_interpreter_that_cannot_be_started_is_one_line(bench: Bench):
    text = bench.cwd / "text"
    text.write_text("not a program")
    done = bench(*FAKE, f"python={text}")
    assert done.code == 2
    assert done.line == f"bench: python={text} is not an interpreter: it cannot be executed"
    text.chmod(0o755)
    done = bench(*FAKE, f"python={text}")
    assert done.code == 2
    assert f"bench: cannot start {text}: Exec format error" in done.stderr.splitlines()[-1]
    done = bench(*FAKE, "python=/bin/true")
    assert done.code == 1
    (row,) = rows(bench)
    assert row["status"] == "load"
    assert row["error"] == "the worker ended with status 0 while starting, without a result"


@pytest.fixture
def stubborn(bench: Bench) -> Path:
    """An "interpreter" that ignores SIGTERM and has a child which does too: it sleeps for 4711.5 s."""
    wrapper = bench.cwd / "stack-h" / "bin" / "python"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text("#!/bin/sh\ntrap '' TERM\nsleep 4711.5 &\nwait\nwait\n")
    wrapper.chmod(0o755)
    return wrapper


def sleepers(bench: Bench) -> list[str]:
    """The processes of `stubborn` in this test's folder."""
    found = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if b"4711.5" in _read(path)]
    return [path.name for path in found if os.path.realpath(path / "cwd") == str(bench.cwd)]


def test_a_second_interrupt_does_not_wait_for_a_stubborn_worker(
    bench: Bench, stubborn: Path, wait_for: Callable[..., Any]
):
    process = bench.start(*FAKE, f"python={stubborn}")
    wait_for(lambda: sleepers(bench))
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.7)
    process.send_signal(signal.SIGINT)
    assert bench.end(process, 4).code == 130
    wait_for(lambda: not sleepers(bench), 5)


def test_a_hanging_start_is_a_timeout_and_takes_its_children_along(bench: Bench, stubborn: Path):
    done = bench(*FAKE, "batch_size=[1,2]", f"python={stubborn}", "load_timeout_s=1")
    assert done.code == 1
    errors = {(row["status"], row["error"]) for row in rows(bench)}
    assert errors == {
        ("timeout", "no result after 1 s, ended while starting; raise load_timeout_s if it only needs longer")
    }
    assert not workers(bench)
    assert not sleepers(bench)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {}])
def test_names_beyond_ascii(bench: Bench, locale: dict[str, str]):
    folder = bench.cwd / "mödel"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    done = bench(*FAKE, f"model={folder}", "weights=random", env=locale)
    assert done.code == 0
    assert "out: 1 ok" in done.stderr
    assert package.load(bench.cwd / "out" / "results.csv")["model"].tolist() == ["mödel"]
    assert "mödel" in (bench.cwd / "out" / "report.md").read_text(encoding="utf-8")


def test_python_is_the_interpreter_of_the_worker(bench: Bench):
    wrapper = bench.cwd / "stack-a" / "bin" / "python"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexport TORCH_FROM_WRAPPER=yes\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    assert bench(*FAKE, f"python={wrapper}").code == 0
    (row,) = rows(bench)
    assert row["stack"] == "stack-a"
    assert row["variables"] == "TORCH_FROM_WRAPPER=yes"


def test_a_reader_that_has_gone_away_is_no_failed_cell(bench: Bench):
    """`bench run | head`: the code of a broken pipe, and nothing is lost; nor a regression."""
    for arguments in (("run", "device=fake", "results=out"), ("compare", "out", "out")):
        process = bench.start(*arguments)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 141
    again = bench("run", "device=fake", "results=out")
    assert again.code == 0 and "nothing to do" in again.stderr
