"""What people type for a size: "3%", "0.2ms", ".5pp"."""

from __future__ import annotations

import re

from ..errors import ConfigError

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "b": 1.0, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}


def fraction(text: str | float) -> float:
    """ "3%" and "0.03" are 0.03. Raises ConfigError."""
    number, unit = _split(text)
    if unit not in ("", "%"):
        raise ConfigError(f"'{text}' is no share: write 3% or 0.03")
    value = number / 100 if unit == "%" else number
    if not 0 <= value < 1:
        raise ConfigError(f"'{text}' is out of range: a margin is at least 0 and below 100 %")
    return value


def amount(text: str | float) -> float:
    """ "0.2ms" is 0.0002 (s), "1MiB" is 1048576 (byte). Raises ConfigError."""
    number, unit = _split(text)
    if unit.lower() not in _UNITS:
        raise ConfigError(f"'{text}' has no unit: write for example 0.2ms")
    return number * _UNITS[unit.lower()]


def accuracy_margin(text: str, base: float) -> float:
    """The margin as a difference of accuracies: ".5pp" is 0.005, "1%" is 1 % of `base`. Raises ConfigError."""
    number, unit = _split(text)
    if unit == "pp":
        return number / 100
    if unit == "%":
        return number / 100 * base
    raise ConfigError(f"'{text}' is no accuracy margin: write .5pp (percentage points) or 1% (of the baseline)")


def _split(text: str | float) -> tuple[float, str]:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)\s*", str(text))
    if not found:
        raise ConfigError(f"'{text}' is no amount: write for example 3%, 0.2ms or .5pp")
    return float(found[1]), found[2]
