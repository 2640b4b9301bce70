"""Benchmarks of large-language-model inference. `bench.load` reads results into pandas; the rest is the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .table import load, load_samples

__all__ = ["__version__", "load", "load_samples"]


def __getattr__(name: str) -> Any:
    """Import pandas only when a table is asked for: the worker imports this package under foreign interpreters."""
    if name in ("load", "load_samples"):
        from . import table

        return getattr(table, name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")
