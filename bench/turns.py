"""Launches that are alive at once and take turns: one calls `generate` while the others wait. Worker side.

`bench ab --interleave calls` starts them and says whose turn it is, through two named pipes in a folder that it names
in BENCH_TURNS. A worker that waits says so, which also ends the turn that it had.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

VARIABLE = "BENCH_TURNS"
WAITS, GO = "waits", "go"
"""Names of the pipes: the worker writes to the first and reads from the second, a byte each time."""


class Turns:
    """The turns of this process. Without the variable, or once nobody hands out turns, it is always its turn."""

    def __init__(self, folder: str) -> None:
        self._pipes: tuple[int, int] | None = None
        if folder:
            waits, go = (Path(folder) / name for name in (WAITS, GO))
            self._pipes = os.open(waits, os.O_WRONLY), os.open(go, os.O_RDONLY)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Turns:
        """As the environment says."""
        return cls(environ.get(VARIABLE, ""))

    @property
    def taken(self) -> bool:
        """Whether turns are taken at all."""
        return self._pipes is not None

    def wait(self) -> None:
        """End this process's turn, and return when the next one begins."""
        if self._pipes is None:
            return
        waits, go = self._pipes
        with suppress(BrokenPipeError):
            os.write(waits, b".")
        if not os.read(go, 1):
            self._pipes = None
