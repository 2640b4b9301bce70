"""Fixtures of every test module: the real command, outcomes with round numbers, golden files."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell import Cell, Choice, Generate
from bench.fingerprint import variables
from bench.models.spec import Model
from bench.record import Failure, Iteration, ModelCost, Peaks, Record

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    """Commands inherit ignored signals, as under nohup and in the background of a script, but no handlers.

    Of several processes with tests each has one thread: more would wait for each other, for twice as long.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def line(self) -> str:
        """The one line of standard error; fails when there are more or fewer."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        return lines[0]


class Bench:
    """The command `bench` as a user runs it: another process, in a folder of its own."""

    def __init__(self, cwd: Path, cache: Path) -> None:
        self.cwd = cwd
        dropped = variables()  # such as those that importing torch sets here
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in dropped and not name.startswith(("BENCH_", "HYDRA_", "COMP_"))
        }
        self.env = {
            **kept,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
            "XDG_CACHE_HOME": str(cache),
            "HF_HUB_OFFLINE": "1",
        }
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start the command and do not wait for it; it is killed at the end of the test if it still runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", *arguments],
            cwd=self.cwd,
            env={**self.env, **(env or {})},
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        self.running.append(process)
        return process

    def __call__(self, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Done:
        """Run the command to its end."""
        return self.end(self.start(*arguments, env=env, **options))

    def end(self, process: subprocess.Popen[str], seconds: float = 120) -> Done:
        """Wait for a command that was started."""
        stdout, stderr = process.communicate(timeout=seconds)
        assert "Traceback" not in stderr, stderr
        return Done(process.returncode, stdout, stderr)

    def close(self) -> None:
        """Kill what is left."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XDG_CACHE_HOME of every command, so that peaks are measured once per session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(tmp_path: Path, cache: Path) -> Iterator[Bench]:
    """The command, running in an empty folder."""
    command = Bench(tmp_path, cache)
    yield command
    command.close()


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of `what()`, asked again and again."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with tests/golden/<name>; a difference leaves the text beside it as <name>.got."""

    def compare(name: str, text: str) -> None:
        expected = GOLDEN / name
        got = GOLDEN / f"{name}.got"
        if not expected.exists() or expected.read_text() != text:
            GOLDEN.mkdir(exist_ok=True)
            got.write_text(text)
            pytest.fail(f"differs from {expected.relative_to(ROOT)}: see {got.name}, rename it when it is right")
        got.unlink(missing_ok=True)

    return compare


TINY = Model(name="tiny", source="hub", weights="random")


def make_cell(batch: int = 1, beams: int = 1, inputs: int = 100, outputs: int = 3, **changes: Any) -> Cell:
    """A cell on the fake device."""
    work = Generate(inputs, outputs, batch, beams, "beam" if beams > 1 else "greedy")
    return Cell(**{"model": TINY, "workload": work, "device": Choice("fake"), **changes})


def make_record(
    cell: Cell | None = None, ttft: float = 0.1, step: float = 0.01, count: int = 2, **changes: Any
) -> Record:
    """A record whose iterations all have the same steps: `ttft`, then one token every `step` seconds."""
    cell = cell or make_cell()
    steps = tuple(ttft + step * number for number in range(cell.workload.output_tokens))
    item = Iteration(steps, steps[-1], "0123456789abcdef")
    fields: dict[str, Any] = {
        "cell": cell.id,
        "launch": 1,
        "axes": cell.axes(),
        "run": "00000001",
        "log": "jobs/001/log",
        "started": "2026-01-02T03:04:05+00:00",
        "iterations": (item,) * count,
        "warmups": (item,),
        "load_s": 2.0,
        "hook_s": 1e-6,
        "peak_memory_bytes": 2.0**30,
        "peak_reserved_bytes": math.nan,
        "other_cores": 0.0,
        "compiled": False,
        "cost": ModelCost(1e9, 1e5, 5e8, 1e7, 1e4),
        "peaks": Peaks(1e12, 1e14),
        "seed": 0,
        "approximation": None,
        "fingerprint": {"clock": "perf_counter", "device_name": "a device", "torch": "2.9", "driver": "1.10"},
    }
    return Record(**{**fields, **changes})


def make_failure(
    cell: Cell | None = None, status: str = "oom", error: str = "out of memory: 3 GiB", **changes: Any
) -> Failure:
    """A failure of the fake device."""
    cell = cell or make_cell()
    fields: dict[str, Any] = {
        "cell": cell.id,
        "launch": 1,
        "axes": cell.axes(),
        "run": "00000001",
        "log": "jobs/001/log",
        "started": "2026-01-02T03:04:05+00:00",
        "status": status,
        "error": error,
        "log_tail": ("line 1", "line 2"),
    }
    return Failure(**{**fields, **changes})


@dataclass(frozen=True)
class Make:
    """The makers of test data."""

    cell = staticmethod(make_cell)
    record = staticmethod(make_record)
    failure = staticmethod(make_failure)


def run_script(name: str, *arguments: str, cwd: Path, **variables: str) -> list[str]:
    """Output of a one-click script under this interpreter, standard error included."""
    env = {**os.environ, "BENCH_PYTHON": sys.executable, "XDG_CACHE_HOME": str(cwd / "cache"), **variables}
    done = subprocess.run([ROOT / name, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


@pytest.fixture(scope="session")
def make() -> type[Make]:
    """`make.cell()`, `make.record()`, `make.failure()`."""
    return Make
