"""torch's own launcher, for machines without MPI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .base import Command, Launcher, free_port, launchers, rank_env, search_path, worker_argv

if TYPE_CHECKING:
    from ..cell import Cell, Job


@launchers("torchrun")
@dataclass(frozen=True)
class TorchRun(Launcher):
    """One rank per device of this machine; comes with torch. Several machines need launcher=mpirun."""

    threads: int | None = None
    """OMP_NUM_THREADS of each rank; by default the cores divided by the ranks, or what the variable says."""
    pin: bool = True
    """Whether ranks keep to neighbouring cores, in equal parts."""

    def unsupported(self, cell: Cell) -> str | None:
        """Wherever torch runs."""
        return None

    def command(self, job: Job, folder: Path) -> Command:
        """`python -m torch.distributed.run`, with the meeting place said rather than looked up by host name."""
        cell = job.cells[0]
        python, *worker = worker_argv(cell.python, folder.absolute())
        ranks = f"--nproc-per-node={cell.world_size}"
        place = ("--master-addr=127.0.0.1", f"--master-port={free_port()}")
        env = {**rank_env(cell, cell.world_size, self.threads, self.pin), "PATH": search_path(cell.python)}
        return Command((python, "-m", "torch.distributed.run", "--nnodes=1", ranks, *place, *worker), env)
