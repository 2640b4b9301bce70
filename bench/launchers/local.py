"""One process on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .base import Command, Launcher, launchers, variables, worker_argv

if TYPE_CHECKING:
    from ..cell import Cell, Job


@launchers("local")
@dataclass(frozen=True)
class Local(Launcher):
    """Start the worker directly."""

    def unsupported(self, cell: Cell) -> str | None:
        """One rank only."""
        if cell.world_size != 1:
            return f"launcher=local runs one rank; world_size={cell.world_size} needs launcher=mpirun or torchrun"
        return None

    def command(self, job: Job, folder: Path) -> Command:
        """The worker, with the cells' environment variables."""
        cell = job.cells[0]
        return Command(worker_argv(cell.python, folder), variables(cell))
