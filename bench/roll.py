"""The roll of a job's ranks: one small file per rank in the job's folder tells the parent who lives and who failed.

Exit statuses of mpirun say little (Intel MPI ORs those of the ranks, and waits for the survivors of a rank that died),
so success and failure are read here. The folder has to be on a file system that all nodes share.
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from .journal import log_tail

RUNNING, DONE, FAILED = "running", "done", "failed"
LAUNCHER_LOG = "log"
"""What the launcher itself says, beside the logs of its ranks."""


@dataclass(frozen=True)
class Entry:
    """What one rank says about itself."""

    rank: int
    pid: int
    host: str
    state: str = RUNNING
    """`running`, `done` or `failed`."""
    kind: str = ""
    """`Failure.kind` of a failed rank, or `results` when it could not write the journal."""
    error: str = ""

    @property
    def local(self) -> bool:
        """Whether its process can be looked at from here."""
        return self.host == platform.node()

    def gone(self) -> bool:
        """Whether its process has ended, a zombie that its parent has not reaped included. False on another host."""
        if not self.local:
            return False
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return True
        return status.rpartition(")")[2].split()[0] in "ZX"


@dataclass(frozen=True)
class Broken:
    """The rank that ended a job, and why."""

    rank: int
    kind: str
    error: str


def log_name(rank: int) -> str:
    """The log of a rank, beside the launcher's own `log`."""
    return f"log.{rank}"


def sign(folder: Path, entry: Entry) -> None:
    """Write a rank's entry, so that a reader sees the old one or the new one."""
    target = folder / f"rank.{entry.rank}"
    temporary = folder / f".rank.{entry.rank}"
    temporary.write_text(json.dumps(asdict(entry)))
    temporary.replace(target)


def entries(folder: Path) -> list[Entry]:
    """All entries there are, those that failed first before those that failed later, then the others."""
    found = []
    for path in folder.glob("rank.*"):
        try:
            found.append((path.stat().st_mtime_ns, Entry(**json.loads(path.read_text()))))
        except (OSError, ValueError):
            continue  # being written
    return [item for _, item in sorted(found, key=lambda pair: (pair[1].state != FAILED, pair[0]))]


def broken(folder: Path, ended: bool = True) -> Broken | None:
    """The rank that failed first; None while all are well, or while the launcher that killed all has not said which.

    A rank that is gone without having said why comes before those that said why: they tell of a lost connection.
    """
    roll = entries(folder)
    gone = sorted((entry for entry in roll if entry.state == RUNNING and entry.gone()), key=lambda entry: entry.rank)
    if gone and (ended or len(gone) < len(roll)):
        first = _named(folder / LAUNCHER_LOG, gone) or (gone[0] if len(gone) == 1 else None)
        if first:
            return Broken(first.rank, "killed", f"rank {first.rank} was killed, or a library ended it,")
        ranks = " and ".join(str(entry.rank) for entry in gone)
        return Broken(
            gone[0].rank, "killed", f"ranks {ranks} were killed together, as some launchers do when one dies,"
        )
    failed = next((entry for entry in roll if entry.state == FAILED), None)
    return Broken(failed.rank, failed.kind, f"rank {failed.rank}: {failed.error}") if failed else None


def _named(log: Path, gone: list[Entry]) -> Entry | None:
    """The rank that the launcher's log names with its process id: some end all others when one dies, and say which.

    MPICH names a process, but not the one that died first.
    """
    text = "\n".join(log_tail(log, 200))
    said = r"(?:RANK \d+ PID |rank \d+ with PID |\(pid: )"
    named = [(found.start(), entry) for entry in gone if (found := re.search(rf"{said}{entry.pid}\b", text))]
    return min(named, key=lambda pair: pair[0])[1] if named else None


def absent(folder: Path) -> int | None:
    """The rank that hangs, after all were asked for their stacks: the one that does not wait for the others.

    None when every rank waits, or none does.
    """
    roll = sorted(entries(folder), key=lambda entry: entry.rank)
    elsewhere = [entry.rank for entry in roll if not _waits(folder / log_name(entry.rank))]
    return elsewhere[0] if elsewhere and len(elsewhere) < len(roll) else None


def _waits(log: Path) -> bool:
    """Whether the last stack in a log is inside a collective operation."""
    stack = [line for line in log_tail(log, 60) if line.startswith('  File "')]
    return any("torch/distributed/" in line or "deepspeed/comm/" in line for line in stack)
