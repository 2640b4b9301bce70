"""rich's console, without its own exit code for a reader that has gone away."""

from __future__ import annotations

from typing import NoReturn

from rich import console


class Console(console.Console):
    """rich would end the process with 1, which says that a cell failed, or that there is a regression."""

    def on_broken_pipe(self) -> NoReturn:
        """Whoever called decides."""
        raise BrokenPipeError
