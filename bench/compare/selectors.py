"""Conditions on key columns: `batch<=8` in --where, `{model: "*70b*", input_tokens: "<=32"}` in a thresholds file."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ConfigError
from .columns import column_named

_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Condition:
    """`column` `op` `value`; = and != take globs and ignore case, the others compare numbers."""

    column: str
    op: str
    value: str

    def holds(self, given: str) -> bool:
        """Whether a cell with this value of the column is selected. Text is never below or above a number."""
        if self.op in _ORDER:
            left, right = _number(given), _number(self.value)
            return left is not None and right is not None and _ORDER[self.op](left, right)
        numbers = _number(given), _number(self.value)
        same = fnmatchcase(given.lower(), self.value.lower()) or (numbers[0] is not None and numbers[0] == numbers[1])
        return same == (self.op == "=")


def parse(text: str, known: Iterable[str]) -> list[Condition]:
    """Conditions joined by `and` or commas. Raises ConfigError for an unknown column or a broken condition."""
    conditions = []
    for part in re.split(r"\s+and\s+|,", text.strip()):
        found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)\s*(.+?)\s*", part)
        if not found:
            raise ConfigError(f"'{part}' is no condition: write for example batch<=8 or model=*llama*")
        op = "=" if found[2] == "==" else found[2]
        conditions.append(Condition(column_named(found[1], known), op, found[3].strip("'\"")))
    return conditions


def from_mapping(match: Mapping[str, Any], known: Iterable[str]) -> list[Condition]:
    """One condition per entry; a value may start with an operator: "<=32"."""
    conditions = []
    for name, value in match.items():
        found = re.fullmatch(r"\s*(<=|>=|!=|<|>|=)?\s*(.*?)\s*", str(value))
        assert found is not None
        conditions.append(Condition(column_named(str(name), known), found[1] or "=", found[2]))
    return conditions


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
