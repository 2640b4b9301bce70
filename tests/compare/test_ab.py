"""The interleaving runner, with a fake command that writes a results.csv."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time

import pandas as pd
import pytest

from bench.compare.ab import Turn, command, machine_state, main, schedule
from bench.compare.together import Pipes, hand_out
from tests.conftest import ROOT

pytestmark = pytest.mark.alone

FAKE = """\
import datetime, pathlib, sys
factor, folder = float(sys.argv[1]), pathlib.Path(sys.argv[2].removeprefix("results="))
folder.mkdir(parents=True, exist_ok=True)
if "fail" in sys.argv and folder.name == "002":
    sys.exit(1)
count = folder.parent.parent / "count"
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
now = (datetime.datetime(2026, 1, 1) + datetime.timedelta(minutes=n)).isoformat() + "Z"
rows = ["model,batch_size,launch,status,run,started,tpot_s"]
for batch in (1, 8):
    rows.append(f"m,{batch},1,ok,run-{n},{now},{0.02 * factor * 1.01 ** n * (1 + batch / 1e4)!r}")
(folder / "results.csv").write_text("\\n".join(rows) + "\\n")
(folder / "journal.jsonl").write_text('{"kind": "start", "launch": 1}\\n{"torn')
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(FAKE)

    def make(factor: float, *more: str) -> str:
        return shlex.join([sys.executable, str(path), str(factor), "{results}", *more])

    return make


def test_abba_alternates_who_goes_first():
    assert "".join(turn.side for turn in schedule(4, "abba", 0)) == "abbaabba"
    assert schedule(2, "abba", 0)[2] == Turn("b", 2, 1)


def test_random_order_is_balanced_and_depends_on_the_seed():
    orders = {"".join(turn.side for turn in schedule(6, "random", seed)) for seed in range(8)}
    assert len(orders) > 1
    for seed in range(8):
        turns = schedule(6, "random", seed)
        assert sum(turn.side == "a" and turn.order == 1 for turn in turns) == 3
        assert all({t.side for t in turns if t.block == block} == {"a", "b"} for block in range(1, 7))


def test_the_placeholder_is_filled_or_appended(tmp_path):
    assert command("run --out={results} x", tmp_path) == ["run", f"--out={tmp_path}", "x"]
    assert command("bench run model=tiny", tmp_path) == ["bench", "run", "model=tiny", f"results={tmp_path}"]


def test_drift_hides_nothing_from_interleaved_launches(tmp_path, fake, capsys):
    """1 % drift a launch; the candidate is 8 % slower."""
    out = tmp_path / "out"
    assert main(["--a", fake(1.0), "--b", fake(1.08), "--blocks", "4", "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("FAIL  2 regressed") and "interleaved" in text
    a, b = (pd.read_csv(out / side / "results.csv") for side in "ab")
    assert a.launch.tolist() == a.block.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert (a.order.tolist()[::2], b.order.tolist()[::2]) == ([1, 2, 1, 2], [2, 1, 2, 1])
    sessions = [json.loads(line) for line in (out / "session.jsonl").read_text().splitlines()]
    assert [s["exit"] for s in sessions] == [0] * 9
    assert sessions[0]["folder"].endswith("discarded")
    launches = [json.loads(line)["launch"] for line in (out / "a/journal.jsonl").read_text().splitlines()]
    assert launches == [1, 2, 3, 4]


def test_blocks_that_agree_are_no_outliers(tmp_path, fake, capsys):
    """The drift mixes the launches of both sides up, so that their ranks say nothing; every block says the same."""
    out = tmp_path / "o"
    arguments = ["--a", fake(1.0), "--b", fake(1.05), "--blocks", "6", "--out", str(out), "--keep-first"]
    assert main([*arguments, "--compare", f"--out json={tmp_path / 'c.json'}"]) == 1
    (comparison,) = json.loads((tmp_path / "c.json").read_text())["comparisons"]
    assert all(result["verdict"] == "regressed" and result["mwu_p"] > 0.05 for result in comparison["results"])
    assert "the ranks of the launches do not agree" not in capsys.readouterr().out


def test_a_build_against_itself_passes(tmp_path, fake, capsys):
    arguments = ["--a", fake(1.0), "--b", fake(1.0), "--blocks", "4", "--out", str(tmp_path / "o"), "--keep-first"]
    assert main(arguments) == 0
    assert "2 equivalent" in capsys.readouterr().out
    assert not (tmp_path / "o/discarded").exists()


def test_the_first_launch_is_discarded_by_default(tmp_path, fake, capsys):
    out = tmp_path / "o"
    assert main(["--a", fake(1.0), "--b", fake(1.0), "--blocks", "2", "--out", str(out), "--no-compare"]) == 0
    assert (out / "discarded/results.csv").exists()


def test_a_failed_launch_does_not_end_the_session(tmp_path, fake, capsys):
    out = tmp_path / "o"
    assert main(["--a", fake(1.0), "--b", fake(1.0, "fail"), "--blocks", "4", "--out", str(out), "--keep-first"]) == 0
    assert "ended with 1" in capsys.readouterr().err
    assert sorted(pd.read_csv(out / "b/results.csv").block.unique()) == [1, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--a", "x"], "give --a CMD and --b CMD"),
        (["--a", "x", "--b", "y", "--blocks", "1"], "--blocks 1"),
        (["--a", "no-such-program", "--b", "y"], "cannot start no-such-program"),
        (["--a", "true {results}", "--b", "true {results}", "--blocks", "2"], "no launch of a left a results.csv"),
        (["--order", "aabb"], "invalid choice"),
    ],
)
def test_wrong_requests(tmp_path, capsys, arguments, words):
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 2
    assert words in capsys.readouterr().err


def test_a_session_is_never_overwritten(tmp_path, fake, capsys):
    (tmp_path / "o/a").mkdir(parents=True)
    assert main(["--a", fake(1), "--b", fake(1), "--out", str(tmp_path / "o")]) == 2
    assert "already holds a session" in capsys.readouterr().err


def test_two_interpreters_run_the_same_overrides(tmp_path, capsys, monkeypatch):
    started = []
    monkeypatch.setattr("bench.compare.ab.launch", lambda words, *rest: started.append(words) or 0.0)
    monkeypatch.setattr("bench.compare.ab.collect", lambda *rest: None)
    flags = [
        "--a-python",
        "/opt/a/bin/python",
        "--b-python",
        "/opt/b/bin/python",
        "--blocks",
        "2",
        "--keep-first",
        "--no-compare",
    ]
    assert main([*flags, "--out", str(tmp_path / "o"), "model=tiny", "lengths=[32/32]"]) == 0
    head = [sys.executable, "-m", "bench", "run", "launches=1", "model=tiny", "lengths=[32/32]"]
    assert started[0] == [*head, "python=/opt/a/bin/python", f"results={tmp_path}/o/a/001"]
    assert [words[7] for words in started] == [f"python=/opt/{side}/bin/python" for side in "abba"]


def test_machine_state_has_time_and_load():
    assert {"unix_time", "load"} <= set(machine_state())


# -- turns -------------------------------------------------------------------------------------------------------------

TURNS = """\
import os, pathlib, sys
from bench.turns import Turns
name, calls, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
turns = Turns.of(os.environ)
assert turns.taken
for _ in range(calls):
    turns.wait()
    with open(sys.argv[4], "a") as file:
        file.write(name)
if end == "die":
    os.kill(os.getpid(), 9)
"""


def taken(tmp_path, *sides, deadline=30.0):
    """What processes that take turns wrote, and how many turns each had."""
    written = tmp_path / "written"
    with contextlib.ExitStack() as stack:
        pipes, processes = [], []
        for name, calls, end in sides:
            (tmp_path / name).mkdir()
            pipes.append(stack.enter_context(Pipes.make(tmp_path / name)))
            words = [sys.executable, "-c", TURNS, name, str(calls), end, str(written)]
            processes.append(subprocess.Popen(words, env=pipes[-1].environ(), cwd=ROOT))
        try:
            turns = hand_out(processes, pipes, time.monotonic() + deadline)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    assert not list(tmp_path.glob("*/go")), "the pipes are gone"
    return written.read_text(), turns


def test_processes_take_turns_whichever_is_ready_first(tmp_path):
    assert taken(tmp_path, ("a", 4, ""), ("b", 4, ""), ("c", 4, "")) == ("abc" * 4, [4, 4, 4])


def test_who_ends_or_dies_in_its_turn_gives_it_back(tmp_path):
    assert taken(tmp_path, ("a", 2, "die"), ("b", 4, "")) == ("ababbb", [2, 4])


def test_a_process_that_never_gives_its_turn_back_is_not_waited_for_longer_than_asked(tmp_path):
    (tmp_path / "go").mkdir()
    with Pipes.make(tmp_path / "go") as pipes:
        process = subprocess.Popen(["sleep", "30"])
        try:
            with pytest.raises(TimeoutError):
                hand_out([process], [pipes], time.monotonic() + 0.3)
        finally:
            process.kill()
            process.wait()


def test_launches_of_bench_take_turns_call_by_call(tmp_path, capsys):
    """Two real runs on the simulated device: 2 cells of 1 warm-up and 3 iterations are 8 calls."""
    out = tmp_path / "o"
    run = (
        f"{sys.executable} -m bench run model=tiny device=fake num_beams=1 batch_size=[1,2] lengths=8/4 iterations=3 "
        "warmup=1 results={results}"
    )
    arguments = ["--a", run, "--b", run, "--blocks", "2", "--keep-first", "--interleave", "calls", "--out", str(out)]
    main([*arguments, "--no-compare"])
    sessions = [json.loads(line) for line in (out / "session.jsonl").read_text().splitlines()]
    assert [(item["folder"].removeprefix(f"{out}/"), item["exit"], item["turns"]) for item in sessions] == [
        ("a/001", 0, 8), ("b/001", 0, 8), ("b/002", 0, 8), ("a/002", 0, 8),
    ]  # fmt: skip
    table = pd.read_csv(out / "b/results.csv")
    assert table.block.tolist() == [1, 1, 2, 2] and table.order.tolist() == [2, 2, 1, 1]
    assert table.warnings.str.contains("another launch ran between the calls").all()


def test_a_command_that_takes_no_turns_is_said(tmp_path, fake, capsys):
    arguments = ["--a", fake(1.0), "--b", fake(1.0), "--blocks", "2", "--keep-first", "--interleave", "calls"]
    main([*arguments, "--no-compare", "--out", str(tmp_path / "o")])
    assert "took no turns, so both sides ran at once" in capsys.readouterr().err
