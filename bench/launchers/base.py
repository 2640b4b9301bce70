"""Launchers make commands; only `schedule.py` starts processes."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import affinity
from ..registry import Registry

if TYPE_CHECKING:
    from ..cell import Cell, Job


@dataclass(frozen=True)
class Command:
    """A process to start: plain data, so tests compare tuples."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    """Variables added to the parent's environment."""


class Launcher:
    """One way to start a worker. Settings are the fields of the subclass, a frozen dataclass."""

    def unsupported(self, cell: Cell) -> str | None:
        """Why this launcher cannot start the cell, in one line; None when it can."""
        raise NotImplementedError

    def command(self, job: Job, folder: Path) -> Command:
        """The command that runs the job whose `job.json` lies in `folder`."""
        raise NotImplementedError

    def ranks_here(self, cell: Cell) -> int | None:
        """How many ranks share this machine; None when that is for other machines to say."""
        return cell.world_size

    def about(self) -> str:
        """What `bench doctor` says of it beside its docstring, such as a version."""
        return ""


launchers: Registry[Launcher] = Registry("launcher", __package__)


def worker_argv(python: str | None, folder: Path) -> tuple[str, ...]:
    """Run one worker on `folder/job.json` under an interpreter that need not have bench installed."""
    return module_argv(python, "bench.worker", str(folder / "job.json"))


def module_argv(python: str | None, module: str, *arguments: str) -> tuple[str, ...]:
    """Run a module of this bench under `python`, None for the interpreter that runs now."""
    return (python or sys.executable, str(Path(__file__).parent.parent / "start.py"), module, *arguments)


def variables(cell: Cell) -> dict[str, str]:
    """Variables of the worker: what its engine needs and nobody has set, its stack's, its own."""
    from ..engines.base import engines

    engine = engines.get(cell.engine.name)(**cell.engine.kwargs)
    said = {*os.environ, *dict(cell.stack_env), *dict(cell.env)} - {"LD_PRELOAD"}
    needed = {name: value for name, value in engine.environment(cell).items() if name not in said}
    return {**needed, **dict(cell.stack_env), **dict(cell.env)}


def rank_env(cell: Cell, ranks_per_node: int, threads: int | None, pin: bool) -> dict[str, str]:
    """Variables of every rank, whatever starts it. Those of the cell's `env` axis win.

    The number of threads is always said: under mpirun, torch falls back to one thread. An empty PYTHONUNBUFFERED is an
    unset one; set, it makes Hydra prefix every fragment of a line.
    """
    chosen = str(threads) if threads else os.environ.get("OMP_NUM_THREADS") or str(affinity.threads(ranks_per_node))
    return {"OMP_NUM_THREADS": chosen, "BENCH_PIN": "1" if pin else "0", "PYTHONUNBUFFERED": "", **variables(cell)}


def search_path(python: str | None) -> str:
    """PATH with the programs of the worker's and of this environment first: mpirun's helpers and ninja lie there."""
    places = [str(Path(executable).parent) for executable in (python, sys.executable) if executable]
    return os.pathsep.join([*dict.fromkeys(places), os.environ.get("PATH", os.defpath)])


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
