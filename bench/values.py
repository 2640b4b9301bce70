"""Values that a user wrote, as what they mean. All raise ConfigError: one line with the key and what is needed."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, did_you_mean


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """One of the words that are known."""
    if value not in known:
        raise ConfigError(did_you_mean(name, str(value), known))
    return str(value)


def listed(value: Any) -> Sequence[Any]:
    """A list of one for a single value."""
    return value if isinstance(value, (list, tuple)) else [value]


def integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """An integer within bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name}={value}: an integer of at least {minimum} is needed")
    if maximum is not None and value > maximum:
        raise ConfigError(f"{name}={value}: at most {maximum} is possible")
    return value


def integers(name: str, value: Any) -> list[int]:
    """Positive integers, each once, in the order in which they were given."""
    numbers = [integer(name, item, 1) for item in listed(value)]
    if not numbers:
        raise ConfigError(f"{name} is empty: give at least one value, such as {name}=[1,4]")
    return list(dict.fromkeys(numbers))


def seconds(name: str, value: float) -> float:
    """A time that is longer than nothing."""
    if not value > 0:
        raise ConfigError(f"{name}={value}: a number of seconds greater than 0 is needed")
    return float(value)


def lengths(value: Any) -> list[tuple[int, int]]:
    """Pairs of input and output tokens, each once."""
    pairs = []
    for item in listed(value):
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", str(item))
        if not match or not int(match[1]) or not int(match[2]):
            raise ConfigError(f"lengths: '{item}' is not input/output tokens, such as lengths=[32/32,1024/128]")
        pairs.append((int(match[1]), int(match[2])))
    if not pairs:
        raise ConfigError("lengths is empty: give at least one pair, such as lengths=[1024/128]")
    return list(dict.fromkeys(pairs))


def environments(value: Any) -> list[tuple[tuple[str, str], ...]]:
    """The product of all variables' values: name and value of each, in the order of names."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"env={value}: a mapping is needed, such as env.OMP_NUM_THREADS=4")
    names = sorted(value)
    axes = [_variable(name, value[name]) for name in names]
    return [tuple(zip(names, values, strict=True)) for values in itertools.product(*axes)]


def _variable(name: str, value: Any) -> list[str]:
    """The values of one variable as text; those that YAML would not give back as they were typed are refused."""
    found = listed(value)
    if not found:
        raise ConfigError(f"env.{name} is empty: give at least one value, such as env.{name}=[1,2]")
    for item in found:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise ConfigError(f"env.{name}={item}: a text or a number is needed; put 'true' and the like in quotes")
    return list(dict.fromkeys(str(item) for item in found))


def run_name(name: str | None) -> str | None:
    """A name that can be part of a folder's."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ConfigError(f"name={name}: letters, digits and _.- only; a whole path is given with results=DIR")
    return name


def interpreter(key: str, python: str) -> str:
    """The whole path of an interpreter that can be run."""
    path = Path(python).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}={python} is not an interpreter: no such file")
    if not os.access(path, os.X_OK):
        raise ConfigError(f"{key}={python} is not an interpreter: it cannot be executed")
    return str(path.absolute())
