"""Which column plays which role: the registry of `bench.schema`, other spellings, and what the user overrides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import schema
from ..errors import ConfigError, did_you_mean
from ..metrics import METRICS
from ..schema import Column

EXTRA = (Column("resolution_s", "info", "step to which another tool rounded TTFT and TPOT", "duration", "s"),)

REGISTRY: dict[str, Column] = {
    column.name: column
    for column in (
        *schema.AXES,
        *schema.RUN,
        *METRICS.values(),
        *schema.ACCURACY,
        *EXTRA,
        *schema.INFO,
        *schema.FINGERPRINT,
    )
}

SHORT = {
    "batch": "batch_size",
    "beam": "num_beams",
    "beams": "num_beams",
    "input": "input_tokens",
    "output": "output_tokens",
    "dtype": "precision",
    "memory": "peak_memory_bytes",
    "accuracy": "acc",
    **{name.removesuffix("_s"): name for name in REGISTRY if name.endswith("_s") and not name.endswith("_per_s")},
}
"""Short names that people type, in flags and in the thresholds file."""

_SCALES = {"_s": {"_ms": 1e-3, "_us": 1e-6, "_ns": 1e-9}, "_bytes": {"_mib": 2.0**20, "_gib": 2.0**30, "_gb": 1e9}}

ALIASES: dict[str, tuple[str, float]] = {
    column.name.removesuffix(base) + suffix: (column.name, factor)
    for column in METRICS.values()
    for base, suffixes in _SCALES.items()
    if column.name.endswith(base) and not column.name.endswith("_per_s")
    for suffix, factor in suffixes.items()
}
"""Other units of a known metric: column name in the file -> (our name, factor to the base unit)."""


def column_named(word: str, known: Iterable[str] = REGISTRY) -> str:
    """The full name for what a user typed. Raises ConfigError with the nearest names."""
    names = set(known)
    name = word if word in names else SHORT.get(word, word)
    if name not in names:
        raise ConfigError(
            did_you_mean("column", word, names | {short for short, full in SHORT.items() if full in names})
        )
    return name


@dataclass(frozen=True)
class Roles:
    """Role of every column of one comparison."""

    keys: tuple[str, ...]
    env_hard: tuple[str, ...]
    env_soft: tuple[str, ...]
    unknown: tuple[str, ...]
    """In no registry and not settled by a flag: an error when one varies inside a cell."""


def assign(
    columns: Iterable[str], by: Iterable[str] = (), key: Iterable[str] = (), ignore: Iterable[str] = ()
) -> Roles:
    """Roles of `columns`. `by` replaces the keys, `key` adds some, `ignore` takes columns out of every role."""
    present = list(dict.fromkeys(columns))
    only, more, out = ([column_named(word, present) for word in words] for words in (by, key, ignore))
    roles: dict[str, list[str]] = {"key": [], "env_hard": [], "env_soft": [], "unknown": []}
    for name in present:
        column = REGISTRY.get(name)
        role = "unknown" if column is None else column.role
        if name in out:
            continue
        if name in more or name in only:
            role = "key"
        elif only and role == "key":
            continue
        if role in roles:
            roles[role].append(name)
    return Roles(*(tuple(roles[role]) for role in ("key", "env_hard", "env_soft", "unknown")))
