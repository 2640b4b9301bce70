"""Run a plan: one worker process after the other, exactly one outcome per cell and launch. Starts all processes.

While a worker measures, this process sleeps; once a second it looks whether the journal has grown.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from . import processes, roll
from .cell import Cell, Job
from .errors import ConfigError, ResultsError
from .folder import Folder
from .journal import log_tail
from .launchers.base import launchers
from .plan import Plan
from .ranks import PARENT
from .record import Failure, Outcome, from_json
from .worker import EXIT_JOURNAL, NO_RESULTS, WATCH_STDIN

POLL_S = 1.0


@dataclass(frozen=True)
class Event:
    """Something a user may want to see: `phase` of the worker, `start` of a cell, its `outcome`."""

    kind: str
    cell: Cell
    launch: int
    phase: str = ""
    outcome: Outcome | None = None


Listener = Callable[[Event], None]


def missing(plan: Plan, folder: Folder) -> list[tuple[Cell, int]]:
    """The (cell, launch) pairs still to be measured, in the plan's order.

    Failures count as done unless `retry_failed`; a cell that an earlier plan would not even try is looked at again.
    """
    done = folder.journal.outcomes()

    def wanted(cell: Cell, launch: int, unsupported: bool) -> bool:
        outcome = done.get((cell.id, launch))
        if outcome is None:
            return True
        if isinstance(outcome, Failure):
            return plan.retry_failed or (not outcome.log and not unsupported)
        return False

    return [
        (item.cell, launch)
        for launch in range(1, plan.launches + 1)
        for item in plan.planned
        if wanted(item.cell, launch, item.unsupported is not None)
    ]


def run(plan: Plan, folder: Folder, lock: int, run_id: str, listen: Listener) -> None:
    """Measure what is missing. Raises ResultsError when the journal cannot be written.

    `lock` is the descriptor of the folder's lock, which the workers inherit. An exception such as KeyboardInterrupt
    ends the running worker with all its children before it goes on up; what is measured is kept.
    """
    runner = _Runner(plan, folder, lock, run_id, listen)
    reasons = {item.cell.id: item.unsupported for item in plan.planned}
    todo = missing(plan, folder)
    for cell, launch in todo:
        reason = reasons[cell.id]
        if reason:
            runner.fail(cell, launch, "unsupported", reason, log="")
    for job in plan.jobs((cell, launch) for cell, launch in todo if not reasons[cell.id]):
        remaining: Sequence[Cell] = job.cells
        while remaining:
            remaining = runner.attempt(Job(tuple(remaining), job.launch))


class _Runner:
    def __init__(self, plan: Plan, folder: Folder, lock: int, run_id: str, listen: Listener) -> None:
        self.plan = plan
        self.folder = folder
        self.lock = lock
        self.run_id = run_id
        self.listen = listen

    def attempt(self, job: Job) -> list[Cell]:
        """Run the job in one worker; the cells that a new worker has to take up."""
        place = self.folder.new_job()
        log = f"{place.relative_to(self.folder.path)}/log"
        task = {
            "cells": [cell.to_json() for cell in job.cells],
            "launch": job.launch,
            "run": self.run_id,
            "log": log,
            "journal": str(self.folder.journal.path.absolute()),
        }
        try:
            (place / "job.json").write_text(json.dumps(task, indent=1))
        except OSError as error:
            raise self._full(f"cannot write {place}/job.json: {error.strerror}") from error
        watch = _Watch(job, self.folder, self.listen, self.plan)
        killed_before = _oom_kills()
        end = self._process(job, place, watch)
        left = [cell for cell in job.cells if cell.id not in watch.done]
        if end.rank is not None:
            log = f"{place.relative_to(self.folder.path)}/{roll.log_name(end.rank)}"
        if end.status == EXIT_JOURNAL or (end.broken and end.broken.kind == NO_RESULTS):
            raise self._full(f"cannot write {self.folder.journal.path}: {_reason(self.folder.path / log)}")
        if not left or (watch.current is None and watch.done and not end.timed_out):
            return left  # all done, or it died between two cells: the next worker goes on
        victims = [watch.current] if watch.current else left
        kind, message = _cause(end, watch, _oom_kills() > killed_before)
        for cell in victims:
            self.fail(cell, job.launch, kind, message, log)
        return [cell for cell in left if cell not in victims]

    def _process(self, job: Job, place: Path, watch: _Watch) -> _End:
        """Start the worker, or the launcher of its ranks, and see it end; nothing of it runs when this returns."""
        launcher = job.cells[0].launcher
        command = launchers.get(launcher.name)(**launcher.kwargs).command(job, place)
        try:
            log = (place / "log").open("wb")
        except OSError as error:
            raise self._full(f"cannot write {place}/log: {error.strerror}") from error
        mark = uuid.uuid4().hex
        own = {WATCH_STDIN: "1", PARENT: f"{platform.node()}:{os.getpid()}", processes.MARK: mark}
        with log:
            try:
                process = subprocess.Popen(
                    command.argv,
                    env={**os.environ, **command.env, **own},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(self.lock,),
                )
            except OSError as error:
                raise ConfigError(f"cannot start {command.argv[0]}: {error.strerror}") from error
        ended = threading.Event()

        def wait() -> None:
            process.wait()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        timed_out = False
        broken = absent = None
        try:
            while not (ended.wait(POLL_S) or broken or timed_out):
                watch.look()
                timed_out = time.monotonic() > watch.deadline
                broken = roll.broken(place, ended=False)
            if timed_out:
                processes.ask_for_stacks(process, (item.pid for item in roll.entries(place) if item.local))
                absent = roll.absent(place)
            else:
                broken = roll.broken(place)
        finally:
            processes.end(process, ended, mark)
            watch.look()
        return _End(process.returncode, timed_out, broken, absent)

    @staticmethod
    def _full(what: str) -> ResultsError:
        return ResultsError(
            f"{what}. Everything measured so far is kept; make room or choose another folder with results=DIR, "
            f"then run the same command again"
        )

    def fail(self, cell: Cell, launch: int, kind: str, message: str, log: str) -> None:
        """Write the failure of a cell whose worker could not."""
        failure = Failure(
            cell=cell.id,
            launch=launch,
            axes=cell.axes(),
            run=self.run_id,
            log=log,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            status=kind,
            error=message,
            log_tail=log_tail(self.folder.path / log) if log else (),
        )
        self.folder.journal.outcome(failure)
        self.listen(Event("outcome", cell, launch, outcome=failure))


@dataclass(frozen=True)
class _End:
    """How a worker ended."""

    status: int
    """Exit status of what was started."""
    timed_out: bool
    broken: roll.Broken | None = None
    """The rank that failed first, where there are ranks."""
    absent: int | None = None
    """The rank for which the others waited when the time was up."""

    @property
    def rank(self) -> int | None:
        """The rank whose log tells why."""
        return self.broken.rank if self.broken else self.absent


class _Watch:
    """Follows one worker through the journal."""

    def __init__(self, job: Job, folder: Folder, listen: Listener, plan: Plan) -> None:
        self.job = job
        self.journal = folder.journal
        self.listen = listen
        self.plan = plan
        self.offset = self.journal.path.stat().st_size if self.journal.path.exists() else 0
        self.cells = {cell.id: cell for cell in job.cells}
        self.done: set[str] = set()
        self.current: Cell | None = None
        self.phase = "starting"
        self.limit = plan.load_timeout_s
        self.deadline = time.monotonic() + self.limit

    def look(self) -> None:
        """Take in what the worker has written since the last look."""
        for line, offset in self.journal.lines(self.offset):
            self.offset = offset
            if line["kind"] == "phase":
                self.phase = line["phase"]
                self.listen(Event("phase", self.current or self.job.cells[0], self.job.launch, self.phase))
            elif line["kind"] == "start":
                self.current = self.cells[line["cell"]]
                self._allow(self.plan.timeout_s)
                self.listen(Event("start", self.current, self.job.launch))
            elif self.current and line["cell"] != self.current.id:
                task = replace(self.current.workload, task=line["axes"]["task"])  # of the group that is evaluated
                part = replace(self.current, workload=task)
                self.listen(Event("outcome", part, self.job.launch, outcome=from_json(line)))
            else:
                cell = self.cells[line["cell"]]
                self.done.add(cell.id)
                self.current = None
                self._allow(self.plan.timeout_s)
                self.listen(Event("outcome", cell, self.job.launch, outcome=from_json(line)))

    def _allow(self, seconds: float) -> None:
        self.limit = seconds
        self.deadline = time.monotonic() + seconds


def _reason(log: Path) -> str:
    """Why the worker could not write the journal, from its log; on a full disk that line may be missing too."""
    said = [line for line in log_tail(log) if "journal.jsonl: " in line]
    return said[-1].partition("journal.jsonl: ")[2].partition(".")[0] if said else "the disk may be full"


def _cause(end: _End, watch: _Watch, oom_killed: bool) -> tuple[str, str]:
    """Failure kind and message for a worker that ended without the outcome it owed."""
    doing = f"while {watch.phase}" if watch.phase != "warm-up" else "during warm-up"
    out_of_memory = f"the kernel ended the worker {doing}, because the machine ran out of memory"
    if end.broken:
        if end.broken.kind != "killed":
            return end.broken.kind, end.broken.error
        return ("oom", out_of_memory) if oom_killed else ("killed", f"{end.broken.error} {doing}")
    if end.timed_out:
        setting = "timeout_s" if watch.current else "load_timeout_s"
        who = "" if end.absent is None else f" (the other ranks waited for rank {end.absent})"
        raising = f"raise {setting} if it only needs longer"
        return "timeout", f"no result after {watch.limit:g} s, ended {doing}{who}; {raising}"
    if end.status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-end.status).name
            if end.status == -signal.SIGKILL and oom_killed:
                return "oom", out_of_memory
            return "killed", f"the worker was killed by {name} {doing}"
        return "killed", f"the worker was killed by signal {-end.status} {doing}"
    kind = "error" if watch.current else "load"
    launcher = watch.job.cells[0].launcher.name
    if launcher != "local":
        return kind, f"{launcher} ended with status {end.status} {doing}, without a result: its log says why"
    return kind, f"the worker ended with status {end.status} {doing}, without a result"


def _oom_kills() -> int:
    """How often this machine's kernel has killed a process for memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
