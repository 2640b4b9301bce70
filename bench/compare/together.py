"""Several launches at once that take turns, call of `generate` by call: what `turns.py` of the worker waits for."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..turns import GO, VARIABLE, WAITS

LOOK_S = 0.2
"""How often to look whether a process that has the turn is gone."""


@dataclass(frozen=True)
class Pipes:
    """The two pipes of one launch."""

    folder: Path
    waits: int
    go: int

    @classmethod
    def make(cls, folder: Path) -> Pipes:
        """Open at both ends, so that the worker's opening never blocks and no write of ours fails."""
        for name in (WAITS, GO):
            os.mkfifo(folder / name)
        return cls(folder, *(os.open(folder / name, os.O_RDWR) for name in (WAITS, GO)))

    def __enter__(self) -> Pipes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, pipe in ((WAITS, self.waits), (GO, self.go)):
            os.close(pipe)
            (self.folder / name).unlink()

    def environ(self) -> Mapping[str, str]:
        """The environment of the launch."""
        return {**os.environ, VARIABLE: str(self.folder)}


def hand_out(processes: Sequence[subprocess.Popen[bytes]], pipes: Sequence[Pipes], deadline: float) -> list[int]:
    """Give turns in the order of the processes until all have ended; the calls that each of them made.

    The first turn begins when all wait, or have ended: starting and loading happen at once. After `deadline`, a
    reading of the monotonic clock, raises TimeoutError.
    """
    turns = [0] * len(processes)
    alive = [_waits(process, pipe, deadline) for process, pipe in zip(processes, pipes, strict=True)]
    while any(alive):
        for number, (process, pipe) in enumerate(zip(processes, pipes, strict=True)):
            if alive[number]:
                os.write(pipe.go, b".")
                turns[number] += 1
                alive[number] = _waits(process, pipe, deadline)
    return turns


def _waits(process: subprocess.Popen[bytes], pipe: Pipes, deadline: float) -> bool:
    """True when the process waits for its turn, False when it has ended."""
    while True:
        ended = process.poll() is not None
        if select.select([pipe.waits], [], [], 0 if ended else LOOK_S)[0]:
            os.read(pipe.waits, 1)
            return True
        if ended:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError
