"""What the user asked of a comparison. One value for everything that may change a verdict."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

FAILURES = ("regression", "missing", "failed", "accuracy", "improvement", "new-failed")
"""What may fail a gate."""


@dataclass(frozen=True)
class Settings:
    """Defaults are those of the command line."""

    by: tuple[str, ...] = ()
    """Key columns instead of those of the registry."""
    key: tuple[str, ...] = ()
    """More key columns."""
    ignore: tuple[str, ...] = ()
    """Columns that play no role."""
    metrics: tuple[str, ...] = ()
    """Metrics that are compared and gate; empty is the primary ones."""
    all_metrics: bool = False
    """Compare every metric that both sides have; only primary ones gate."""
    where: tuple[str, ...] = ()
    """Conditions on keys, all of which must hold."""
    delta: dict[str, float] = field(default_factory=dict)
    """Margin by metric; "" is every metric."""
    abs_floor: dict[str, float] = field(default_factory=dict)
    """Absolute margin by metric in base units; "" is every duration."""
    alpha: float = 0.05
    """Level of each one-sided bound."""
    correction: str = "none"
    """`bh` or `holm` make the adjusted p values the gate."""
    strict: bool = False
    """Whether an inconclusive cell fails with exit code 3."""
    fail_on: tuple[str, ...] = ("regression", "missing", "failed", "accuracy")
    missing: str = "fail"
    """`fail`, `warn` or `ignore`."""
    env_policy: str = "error"
    """`error`: a hard difference is not comparable. `warn`: all differences are listed. `ignore`: none is looked at."""
    expect_diff: tuple[str, ...] = ()
    """Environment columns that are the thing under test."""
    allow_single: bool = False
    """One launch per side: gate by the plain margin, without statistics."""
    noise_floor: str | None = None
    noise_max_age: int = 30
    """Days after which a noise floor is used with a warning."""
    thresholds: str | None = None
    """File with rules and waivers."""
    expected: str | None = None
    """File with the matrix that the candidate must have."""
    acc_margin: str = "1%"
    acc_min_n: int = 1000
    """Documents below which accuracy does not gate."""
    expect_identical: bool = False
    """Any flipped document and any differing output hash is a failure."""
    provisional: bool = False
    """A second comparison decides: regressions exit with 3 instead of 1."""
    warn_only: bool = False
    seed: int = 0
    today: datetime.date = field(default_factory=datetime.date.today)
    """Against which waivers and noise floors expire."""
