"""`bench ab`: two commands in turn, a fresh process each, so that drift of the machine falls on both alike."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ResultsError
from .arguments import Parser
from .guard import guarded


@dataclass(frozen=True)
class Turn:
    """One launch: a fresh process of one side."""

    side: str
    block: int
    order: int
    """1 or 2 within the block."""


def schedule(blocks: int, order: str, seed: int) -> list[Turn]:
    """Blocks of one A and one B. `abba` alternates who goes first; `random` shuffles as many AB as BA blocks."""
    first = ["ab" if block % 2 == 0 else "ba" for block in range(blocks)]
    if order == "random":
        random.Random(seed).shuffle(first)
    return [Turn(side, block, place) for block, pair in enumerate(first, 1) for place, side in enumerate(pair, 1)]


def command(template: str, results: Path) -> list[str]:
    """The words of a command with {results} filled in; without the placeholder results=DIR is appended."""
    words = shlex.split(template)
    if not words:
        raise ConfigError("an empty command: give --a and --b, or --a-python and --b-python")
    if any("{results}" in word for word in words):
        return [word.replace("{results}", str(results)) for word in words]
    return [*words, f"results={results}"]


def main(argv: list[str]) -> int:
    """Run all blocks, write DIR/a/results.csv and DIR/b/results.csv, compare them and return the exit code."""
    return guarded(_run, argv)


def _parser() -> Parser:
    p = Parser(prog="bench ab", description="Measure two builds interleaved and compare them.")
    p.add_argument("--a", metavar="CMD", help="command of the base; {results} is its results folder")
    p.add_argument("--b", metavar="CMD", help="command of the candidate")
    p.add_argument("--a-python", metavar="PYTHON", help="interpreter of the base's workers, with bench run overrides")
    p.add_argument("--b-python", metavar="PYTHON", help="interpreter of the candidate's workers")
    p.add_argument("--blocks", type=int, default=5, metavar="K", help="launches of each build (5)")
    p.add_argument("--order", choices=("abba", "random"), default="abba")
    p.add_argument("--seed", type=int, default=0, help="of --order random")
    p.add_argument("--out", default="results/ab", metavar="DIR", help="folder for everything (results/ab)")
    p.add_argument("--cool-down", type=float, default=0.0, metavar="S", help="pause before each launch, s")
    p.add_argument("--timeout", type=float, metavar="S", help="of one launch, s")
    p.add_argument("--keep-first", action="store_true", help="no discarded launch before the first block")
    p.add_argument("--no-compare", action="store_true", help="only measure")
    p.add_argument("--compare", default="", metavar="FLAGS", help="flags of bench compare, as one string")
    p.add_argument("overrides", nargs="*", help="of bench run, with --a-python and --b-python")
    return p


def _run(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.blocks < 2:
        raise ConfigError(f"--blocks {args.blocks}: at least 2 are needed, 3 for a verdict of a few cells")
    templates = _templates(args.a, args.b, args.a_python, args.b_python, args.overrides)
    out = Path(args.out)
    if any((out / side).exists() for side in "ab"):
        raise ResultsError(f"{out} already holds a session: choose another folder with --out")
    turns = schedule(args.blocks, args.order, args.seed)
    if not args.keep_first:
        _launch(command(templates["a"], out / "discarded"), out / "discarded", out, args.cool_down, args.timeout)
    for number, turn in enumerate(turns, 1):
        folder = out / turn.side / f"{turn.block:03d}"
        seconds = _launch(command(templates[turn.side], folder), folder, out, args.cool_down, args.timeout)
        sys.stderr.write(f"{number}/{len(turns)} block {turn.block} {turn.side}: {seconds:.1f} s\n")
    _collect(out, turns)
    if args.no_compare:
        return 0
    from .cli import main as compare

    return compare([str(out / "a"), str(out / "b"), *shlex.split(args.compare)])


def _templates(
    a: str | None, b: str | None, a_python: str | None, b_python: str | None, overrides: list[str]
) -> dict[str, str]:
    if a and b and not (a_python or b_python or overrides):
        return {"a": a, "b": b}
    if a_python and b_python and not (a or b):
        run = [sys.executable, "-m", "bench", "run", "launches=1", *overrides]
        return {side: shlex.join([*run, f"python={path}"]) for side, path in (("a", a_python), ("b", b_python))}
    raise ConfigError("give --a CMD and --b CMD, or --a-python P and --b-python P with overrides of bench run")


def _launch(words: list[str], folder: Path, out: Path, cool_down: float, timeout: float | None) -> float:
    """One process to its end; its output goes to the folder's log. A failed launch does not end the session."""
    time.sleep(cool_down)
    folder.mkdir(parents=True, exist_ok=True)
    state = machine_state()
    start = time.monotonic()
    with (folder / "log").open("wb") as log:
        try:
            code: int | str = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            code = f"timeout after {timeout} s"
        except OSError as error:
            raise ConfigError(f"cannot start {words[0]}: {error.strerror}") from error
    seconds = time.monotonic() - start
    line = {"folder": str(folder), "command": words, "exit": code, "seconds": seconds, **state}
    with (out / "session.jsonl").open("a") as session:
        session.write(json.dumps(line) + "\n")
    if code != 0:
        sys.stderr.write(f"warning: {shlex.join(words)} ended with {code}; see {folder / 'log'}\n")
    return seconds


def machine_state() -> dict[str, object]:
    """Load and clocks before a launch, where the system tells them: evidence when two blocks disagree."""
    clocks = {}
    for pattern in ("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq", "class/drm/card*/gt_cur_freq_mhz"):
        values = list(_numbers(pattern))
        if values:
            clocks[pattern.rsplit("/", 1)[1]] = sum(values) / len(values)
    return {"unix_time": time.time(), "load": os.getloadavg()[0], **clocks}


def _numbers(pattern: str) -> Iterator[float]:
    for path in Path("/sys").glob(pattern):
        try:
            yield float(path.read_text())
        except (OSError, ValueError):
            continue


def _collect(out: Path, turns: list[Turn]) -> None:
    """One results.csv and journal per side, with the launch, block and order of each row."""
    import pandas as pd

    from .read import FILE, LINE, known, read_side

    for side in "ab":
        frames = []
        with (out / side / "journal.jsonl").open("w") as journal:
            for turn in turns:
                folder = out / side / f"{turn.block:03d}"
                if turn.side != side or not (folder / "results.csv").exists():
                    continue
                frame = read_side([str(folder / "results.csv")]).frame
                if frame["launch"].nunique() > 1:
                    raise ResultsError(f"{folder} holds several launches: a block has one per side, set launches=1")
                frames.append(frame.assign(launch=turn.block, block=turn.block, order=turn.order))
                if (folder / "journal.jsonl").exists():
                    for line in (folder / "journal.jsonl").read_text().splitlines():
                        journal.write(_with_launch(line, turn.block))
        if not frames:
            raise ResultsError(f"no launch of {side} left a results.csv: see the logs in {out / side}")
        table = pd.concat(frames, ignore_index=True).drop(columns=[FILE, LINE]).fillna("")
        table[known(table)].to_csv(out / side / "results.csv", index=False)


def _with_launch(line: str, launch: int) -> str:
    try:
        data = json.loads(line)
    except ValueError:  # a torn line of a killed process
        return ""
    return json.dumps({**data, "launch": launch} if "launch" in data else data) + "\n"
