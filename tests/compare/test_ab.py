"""The interleaving runner, with a fake command that writes a results.csv."""

from __future__ import annotations

import json
import shlex
import sys

import pandas as pd
import pytest

from bench.compare.ab import Turn, command, machine_state, main, schedule

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
