"""Files that other tools write, one module per format, each with the same three names.

`NAME` says what it is, `matches(path, head)` recognises a file by its first characters, and `read(path)` returns rows
under our column names in base units. Each module sets the column `schema` to its own value: figures of two tools that
share a word are not comparable, and `schema` is a hard environment column.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, str | int | float]


class Reader(Protocol):
    """A module of this package."""

    NAME: str

    def matches(self, path: Path, head: str) -> bool:
        """Whether a file that begins with `head` is of this format."""

    def read(self, path: Path) -> list[Row]:
        """Rows with our column names; raises ResultsError with one line when the file is damaged."""


def readers() -> list[Reader]:
    """Every reader of this package, in the order of their module names."""
    modules: list[Any] = [importlib.import_module(f"{__name__}.{item.name}") for item in pkgutil.iter_modules(__path__)]
    return modules


def precision(dtype: str) -> str:
    """Our name of a dtype as other tools spell it."""
    names = {"float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
    word = dtype.removeprefix("torch.")
    return names.get(word, word)
