"""A results folder: `config.yaml journal.jsonl results.csv report.md report.html jobs/<n>/{job.json,log}`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from .errors import ResultsError
from .journal import NAME, Journal
from .plan import Plan
from .record import Failure

LOCK = ".lock"


class Folder:
    """One results folder, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = Journal(path / NAME)

    @classmethod
    def of(cls, plan: Plan) -> Folder:
        """The folder `results=` names, else results/<date>-<name>-<hash of the cells>.

        The newest folder of the same cells is taken up again when it is of today or not finished, so that the same
        command resumes what was interrupted.
        """
        if plan.results:
            return cls(Path(plan.results))
        digest = hashlib.sha256("".join(sorted(cell.id for cell in plan.cells)).encode()).hexdigest()[:6]
        slug = f"{plan.name or _slug(plan)}-{digest}"
        today = Path("results") / f"{date.today().isoformat()}-{slug}"
        earlier = sorted(Path("results").glob(f"[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]-{slug}"))
        if earlier and earlier[-1] != today and not _finished(earlier[-1], plan):
            return cls(earlier[-1])
        return cls(today)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder; yields the lock's file descriptor, for workers to inherit.

        The lock is the open file's: it lasts until the last process that inherited it is gone, so a worker that
        outlives a killed parent by a moment still guards the journal. Raises ResultsError when somebody holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ResultsError(
                f"cannot write the results folder {self.path}: {error.strerror}. Choose another one with results=DIR"
            ) from error
        try:
            self._lock(handle)
            yield handle
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        for attempt in range(20):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt < 19:
                    time.sleep(0.1)
        raise ResultsError(
            f"another run is writing to {self.path}: wait for it to end, or choose another folder with results=DIR"
        )

    def new_job(self) -> Path:
        """A new folder for a job, numbered on from those that exist."""
        jobs = self.path / "jobs"
        numbers = [int(path.name) for path in jobs.glob("*") if path.name.isdigit()]
        folder = jobs / f"{max(numbers, default=0) + 1:03d}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise ResultsError(f"cannot write {folder}: {error.strerror}") from error
        return folder

    def write(self, name: str, text: str) -> None:
        """Write a file so that a reader sees the old one or the new one, never half of it."""
        target = self.path / name
        temporary = target.with_name(f".{name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ResultsError(
                f"cannot write {target}: {error.strerror}. What was measured is safe in {self.journal.path}; "
                f"make room and run the same command again"
            ) from error


def _slug(plan: Plan) -> str:
    models = list(dict.fromkeys(cell.model.name for cell in plan.cells))
    name = models[0] if len(models) == 1 else f"{models[0]}-and-{len(models) - 1}-more"
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def _finished(path: Path, plan: Plan) -> bool:
    done = Journal(path / NAME).outcomes()
    return all(
        (cell.id, launch) in done and not (plan.retry_failed and isinstance(done[cell.id, launch], Failure))
        for cell in plan.cells
        for launch in range(1, plan.launches + 1)
    )
