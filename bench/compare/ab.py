"""`bench ab`: two commands in turn, a fresh process each, so that drift of the machine falls on both alike."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ResultsError
from .arguments import Parser
from .guard import guarded
from .together import Pipes, hand_out


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
    p.add_argument(
        "--interleave",
        choices=("launches", "calls"),
        default="launches",
        help="calls: both launches of a block are alive at once and take turns, one call of generate each",
    )
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
        launch(command(templates["a"], out / "discarded"), out / "discarded", out, args.cool_down, args.timeout)
    session(turns, templates, out, args.interleave == "calls", args.cool_down, args.timeout)
    collect(out, turns)
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


def session(
    turns: list[Turn], templates: dict[str, str], out: Path, at_once: bool, cool_down: float, timeout: float | None
) -> None:
    """Launch all turns, one after the other or a block at once; a line per launch on standard error."""
    for _, block in itertools.groupby(turns, lambda turn: turn.block):
        group = list(block)
        folders = [out / turn.side / f"{turn.block:03d}" for turn in group]
        words = [command(templates[turn.side], folder) for turn, folder in zip(group, folders, strict=True)]
        if at_once:
            together(words, folders, out, cool_down, timeout)
        else:
            for number, folder in enumerate(folders):
                launch(words[number], folder, out, cool_down, timeout)


def launch(words: list[str], folder: Path, out: Path, cool_down: float, timeout: float | None) -> None:
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
    _ended(words, folder, out, code, time.monotonic() - start, state)


def together(words: list[list[str]], folders: list[Path], out: Path, cool_down: float, timeout: float | None) -> None:
    """A process for each command, all at once, that take turns: see `together.py`. `timeout` is of all of them."""
    time.sleep(cool_down)
    state = machine_state()
    start = time.monotonic()
    turns = [0] * len(words)
    late = False
    with contextlib.ExitStack() as stack:
        processes = []
        pipes = []
        for command_, folder in zip(words, folders, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            pipes.append(stack.enter_context(Pipes.make(folder)))
            log = stack.enter_context((folder / "log").open("wb"))
            try:
                process = subprocess.Popen(command_, env=pipes[-1].environ(), stdout=log, stderr=subprocess.STDOUT)
            except OSError as error:
                raise ConfigError(f"cannot start {command_[0]}: {error.strerror}") from error
            stack.callback(_stop, process)
            processes.append(process)
        try:
            turns = hand_out(processes, pipes, math.inf if timeout is None else start + timeout)
        except TimeoutError:
            late = True
    for number, process in enumerate(processes):
        code: int | str = f"timeout after {timeout} s" if late else process.returncode
        _ended(words[number], folders[number], out, code, time.monotonic() - start, {**state, "turns": turns[number]})
        if not turns[number] and code == 0:
            sys.stderr.write(
                f"warning: {words[number][0]} took no turns, so both sides ran at once: is it bench run?\n"
            )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that was left: bench run, asked like this, ends its worker, too."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ended(words: list[str], folder: Path, out: Path, code: int | str, seconds: float, more: dict[str, object]) -> None:
    """A line in session.jsonl and one on standard error."""
    line = {"folder": str(folder), "command": words, "exit": code, "seconds": seconds, **more}
    with (out / "session.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    sys.stderr.write(f"{folder.relative_to(out)}: {seconds:.1f} s\n")
    if code != 0:
        sys.stderr.write(f"warning: {shlex.join(words)} ended with {code}; see {folder / 'log'}\n")


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


def collect(out: Path, turns: list[Turn]) -> None:
    """One results.csv and journal per side, with the launch, block and order of each row."""
    import pandas as pd

    from .read import FILE, LINE, known, read_side

    for side in dict.fromkeys(turn.side for turn in turns):
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
