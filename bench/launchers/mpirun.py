"""mpirun of Intel MPI, MPICH and Open MPI, on one machine or several."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .base import Command, Launcher, free_port, launchers, rank_env, search_path, worker_argv

if TYPE_CHECKING:
    from ..cell import Cell, Job


@dataclass(frozen=True)
class Flavour:
    """Which mpirun it is."""

    name: str
    """`Intel MPI`, `MPICH` or `Open MPI`."""
    version: str


@launchers("mpirun")
@dataclass(frozen=True)
class MpiRun(Launcher):
    """One rank per device under Intel MPI, MPICH or Open MPI; several machines with hosts= or hostfile=."""

    mpirun: str = "mpirun"
    """The program, by name or path; by name, the environments' own come before PATH."""
    hosts: str | None = None
    """Machines separated by commas, the first of which is this one. Results have their number, not their names."""
    hostfile: str | None = None
    """A file of machines in the format of the MPI, the first of which is this one."""
    ppn: int | None = None
    """Ranks per machine."""
    threads: int | None = None
    """OMP_NUM_THREADS of each rank; by default the machine's cores divided by its ranks, or what the variable says."""
    pin: bool = True
    """Whether ranks keep to neighbouring cores, in equal parts. mpirun's own pinning is always off."""
    port: int | None = None
    """Where the ranks meet on the first machine; by default a free one."""
    arguments: str = ""
    """More arguments for mpirun, as in a shell."""

    def unsupported(self, cell: Cell) -> str | None:
        """Whether an mpirun that is known can be found, and the hosts make sense."""
        path = self._path(cell)
        if path is None:
            return f"there is no {self.mpirun} here: pip install 'bench[mpi]' brings one, or use launcher=torchrun"
        if flavour(path, search_path(cell.python)) is None:
            return f"{path} is none of Intel MPI, MPICH and Open MPI: see {path} --version"
        if self.hostfile and not Path(self.hostfile).is_file():
            return f"launcher.hostfile={self.hostfile}: no such file"
        if self.ppn and cell.world_size % self.ppn:
            return f"world_size={cell.world_size} is no multiple of launcher.ppn={self.ppn}"
        return None

    def ranks_here(self, cell: Cell) -> int | None:
        """All of them unless there are other machines."""
        return self.ppn if self.hosts or self.hostfile else cell.world_size

    def about(self) -> str:
        """Flavour and version of the mpirun that would be used."""
        path = shutil.which(self.mpirun, path=search_path(None))
        found = flavour(path, search_path(None)) if path else None
        return f"{found.name} {found.version}" if found else ""

    def command(self, job: Job, folder: Path) -> Command:
        """mpirun with the flags of its flavour. Raises ConfigError when it has gone since the plan was made."""
        cell = job.cells[0]
        path = self._path(cell)
        found = flavour(path, search_path(cell.python)) if path else None
        if path is None or found is None:
            raise ConfigError(f"there is no {self.mpirun} here any more")
        env = {
            **rank_env(cell, self.ranks_here(cell) or 1, self.threads, self.pin),
            "PATH": search_path(cell.python),
            "MASTER_ADDR": self._first_host(),
            "MASTER_PORT": str(self.port or free_port()),
        }
        flags = _open_mpi(self, cell, env) if found.name == "Open MPI" else _hydra(self, found, env)
        ranks = ("-n", str(cell.world_size))
        worker = worker_argv(cell.python, folder.absolute())
        return Command((path, *flags, *shlex.split(self.arguments), *ranks, *worker), env)

    def _path(self, cell: Cell) -> str | None:
        return shutil.which(self.mpirun, path=search_path(cell.python))

    def _first_host(self) -> str:
        """Where rank 0 runs, as the other machines call it."""
        if self.hosts:
            return self.hosts.split(",")[0].partition(":")[0]
        if self.hostfile:
            lines = (line.partition("#")[0].split() for line in Path(self.hostfile).read_text().splitlines())
            return next((words[0].partition(":")[0] for words in lines if words), "127.0.0.1")
        return "127.0.0.1"


def _hydra(settings: MpiRun, found: Flavour, env: dict[str, str]) -> list[str]:
    """Flags of Intel MPI and MPICH, which pass the whole environment on and have no objection to root or many ranks."""
    if found.name == "Intel MPI":
        env["I_MPI_PIN"] = "0"
    flags = ["-l"] if found.name == "Intel MPI" else ["-l", "-bind-to", "none"]
    if settings.hosts:
        flags += ["-hosts", settings.hosts]
    if settings.hostfile:
        flags += ["-f", settings.hostfile]
    if settings.ppn:
        flags += ["-ppn", str(settings.ppn)]
    return flags


def _open_mpi(settings: MpiRun, cell: Cell, env: dict[str, str]) -> list[str]:
    """Flags of Open MPI, which passes only named variables on to other machines."""
    spread = ["--map-by", f"ppr:{settings.ppn}:node:OVERSUBSCRIBE"] if settings.ppn else ["--oversubscribe"]
    flags = ["--tag-output", "--bind-to", "none", *spread]
    if os.geteuid() == 0:
        flags.append("--allow-run-as-root")
    if settings.hosts:
        per_host = settings.ppn or -(-cell.world_size // len(settings.hosts.split(",")))
        hosts = [host if ":" in host else f"{host}:{per_host}" for host in settings.hosts.split(",")]
        flags += ["--host", ",".join(hosts)]
    if settings.hostfile:
        flags += ["--hostfile", settings.hostfile]
    if settings.hosts or settings.hostfile:
        for name in env:
            flags += ["-x", name]
    return flags


@cache
def flavour(mpirun: str, path: str) -> Flavour | None:
    """What `mpirun --version` says it is, asked once; None for an unknown one."""
    try:
        done = subprocess.run(
            [mpirun, "--version"],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return recognise(done.stdout + done.stderr)


def recognise(text: str) -> Flavour | None:
    """The flavour whose `--version` prints `text`."""
    for name, pattern in (
        ("Intel MPI", r"Intel\(R\) MPI Library.*?Version (\S+)"),
        ("Open MPI", r"\(Open MPI\) (\S+)|\(OpenRTE\) (\S+)"),
        ("MPICH", r"HYDRA build details:\s+Version:\s+(\S+)"),
    ):
        match = re.search(pattern, text)
        if match:
            return Flavour(name, next(group for group in match.groups() if group))
    return None
