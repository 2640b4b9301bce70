"""Launchers make commands; only `schedule.py` starts processes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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


launchers: Registry[Launcher] = Registry("launcher", __package__)


def worker_argv(python: str | None, folder: Path) -> tuple[str, ...]:
    """Run one worker on `folder/job.json` under an interpreter that need not have bench installed."""
    return module_argv(python, "bench.worker", str(folder / "job.json"))


def module_argv(python: str | None, module: str, *arguments: str) -> tuple[str, ...]:
    """Run a module of this bench under `python`, None for the interpreter that runs now."""
    return (python or sys.executable, str(Path(__file__).parent.parent / "start.py"), module, *arguments)
