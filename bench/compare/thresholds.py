"""The thresholds file: margins for some cells, and waivers with an end."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .amounts import amount, fraction
from .columns import SHORT
from .model import STATUS
from .selectors import Condition, from_mapping


@dataclass(frozen=True)
class Rule:
    """A margin for the cells and metrics that match."""

    name: str
    metric: str
    conditions: tuple[Condition, ...]
    delta: float | None = None
    absolute: float | None = None

    def matches(self, metric: str, key: dict[str, str]) -> bool:
        """Whether it is about this metric of this cell."""
        return fnmatchcase(metric, self.metric) and all(c.holds(key.get(c.column, "")) for c in self.conditions)


@dataclass(frozen=True)
class Waiver(Rule):
    """A known regression that does not fail the gate, up to `most` and until a date, that day included."""

    most: float | None = None
    until: datetime.date | None = None
    why: str = ""

    def expired(self, today: datetime.date) -> bool:
        """Whether it no longer applies."""
        return self.until is not None and today > self.until


@dataclass(frozen=True)
class Thresholds:
    """Rules, of which the first that matches counts, and waivers."""

    rules: tuple[Rule, ...] = ()
    waivers: tuple[Waiver, ...] = field(default=())

    def matching(self, metric: str, keys: dict[str, list[str]], cells: int) -> Iterator[tuple[int, Rule]]:
        """Each cell for which there is a rule, with the first one."""
        candidates = [rule for rule in self.rules if fnmatchcase(metric, rule.metric)]
        for i in range(cells) if candidates else ():
            key = {name: values[i] for name, values in keys.items()}
            rule = next((rule for rule in candidates if rule.matches(metric, key)), None)
            if rule is not None:
                yield i, rule


def read(path: str | None, known: list[str]) -> Thresholds:
    """Read a thresholds file; `known` are the key columns. Raises ConfigError with the entry that is wrong."""
    if path is None:
        return Thresholds()
    data = read_yaml(path)
    if not isinstance(data, dict) or data.get("version") != 1:
        raise ConfigError(f"{path}: expected a mapping with 'version: 1', 'rules' and 'waivers'")
    if extra := set(data) - {"version", "rules", "waivers"}:
        raise ConfigError(f"{path}: unknown entry '{min(extra)}'. Known: version, rules, waivers")
    rules = [_entry(item, f"{path}: rule {i}", known, False) for i, item in enumerate(data.get("rules") or [], 1)]
    waivers = [_entry(item, f"{path}: waiver {i}", known, True) for i, item in enumerate(data.get("waivers") or [], 1)]
    return Thresholds(tuple(rules), tuple(item for item in waivers if isinstance(item, Waiver)))


def read_yaml(path: str) -> Any:
    """Plain YAML. Raises ConfigError when it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def _entry(item: Any, where: str, known: list[str], waiver: bool) -> Rule:
    allowed = {"match", "max", "until", "why"} if waiver else {"match", "delta", "abs", "why"}
    if not isinstance(item, dict) or not isinstance(item.get("match"), dict):
        raise ConfigError(f"{where} needs 'match: {{column: value}}'")
    if extra := set(item) - allowed:
        raise ConfigError(f"{where}: unknown entry '{min(extra)}'. Known: {', '.join(sorted(allowed))}")
    match = dict(item["match"])
    metric = str(match.pop("metric", "*"))
    metric = metric if metric == STATUS else SHORT.get(metric, metric)
    try:
        conditions = tuple(from_mapping(match, known))
        name = where.rsplit(": ", 1)[1]
        if waiver:
            most = fraction(item["max"]) if "max" in item else None
            return Waiver(
                name, metric, conditions, None, None, most, _date(item.get("until")), str(item.get("why", ""))
            )
        delta = fraction(item["delta"]) if "delta" in item else None
        absolute = amount(item["abs"]) if "abs" in item else None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if delta is None and absolute is None:
        raise ConfigError(f"{where} sets nothing: add 'delta: 5%' or 'abs: 0.2ms'")
    return Rule(name, metric, conditions, delta, absolute)


def _date(value: Any) -> datetime.date | None:
    if value is None or (isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)):
        return value
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(f"'{value}' is no date: write until: 2026-12-01") from None
