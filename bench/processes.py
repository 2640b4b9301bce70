"""All processes of a job, however they are grouped: found by a variable that they inherit, ended without exception.

mpirun's ranks live in process groups, and under MPICH in sessions, of their own; a signal to the group of what was
started misses them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

MARK = "BENCH_JOB"
"""Environment variable whose value tells the processes of one job from all others."""
GRACE_S = 5.0
"""How long processes may take to end after SIGTERM."""


def marked(mark: str) -> list[int]:
    """Ids of the processes on this machine that inherited `mark`; zombies, which have no environment, are left out."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue  # gone, or another user's
    return found


def end(process: subprocess.Popen[bytes], ended: threading.Event, mark: str) -> None:
    """Make sure that what was started as `process`, and everything that it started, is gone.

    SIGTERM comes first: mpirun passes it on to other nodes, and Open MPI's leaves its ranks alive after SIGKILL.
    """
    try:
        if not ended.is_set():
            _signal_group(process.pid, signal.SIGTERM)
            _signal(marked(mark), signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while marked(mark) and time.monotonic() < deadline:
                time.sleep(0.1)
    finally:  # also when a second Ctrl-C cuts the waiting short
        _signal_group(process.pid, signal.SIGKILL)
        while left := marked(mark):
            _signal(left, signal.SIGKILL)
            time.sleep(0.02)
    ended.wait()
    if process.stdin:
        process.stdin.close()


def ask_for_stacks(process: subprocess.Popen[bytes], ranks: Iterable[int]) -> None:
    """Have the workers write their stacks to their logs: the ranks, or the process itself when there are none."""
    if hasattr(signal, "SIGUSR1"):
        _signal(list(ranks) or [process.pid], signal.SIGUSR1)
        time.sleep(0.5)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
