"""The comparison of two sides, from their rows to the model that everything renders."""

from __future__ import annotations

import numpy as np

from .. import schema
from ..errors import ConfigError
from ..metrics import METRICS
from ..table import VARIES
from . import thresholds
from .accuracy import accuracy
from .columns import column_named
from .diagnostics import diagnose
from .gate import correct, gate, waive
from .latency import latency
from .match import Match, match
from .model import Comparison
from .noise import Floor, read_floor
from .outcome import outcomes
from .read import Side
from .rows import code, extremes
from .settings import Settings
from .suite import launch_counts, marginals, session, suites


def compare(base: Side, cand: Side, settings: Settings) -> Comparison:
    """Compare one candidate with the base. Raises ConfigError and ResultsError, both exit code 2."""
    matched = match(base, cand, settings)
    rules = thresholds.read(settings.thresholds, list(matched.keys))
    floor = read_floor(settings.noise_floor) if settings.noise_floor else None
    warnings = [*matched.warnings, *(floor_warnings(floor, matched, settings) if floor else [])]
    metrics, gating = chosen(matched, settings)
    results = outcomes(matched, settings)
    for metric in metrics:
        results += latency(matched, metric, metric in gating, settings, rules, floor)
    if not settings.metrics or {"acc", "perplexity"} & set(_named(settings)):
        results += accuracy(matched, settings)
    warnings += diagnose(results, base, cand, matched)
    if settings.missing == "ignore":
        results = [result for result in results if result.verdict != "missing"]
    correct(results, settings)
    warnings += waive(results, rules, settings)
    comparison = Comparison(
        base=base.name,
        cand=cand.name,
        results=results,
        cells=matched.cells,
        metrics=metrics,
        environment=matched.environment,
        suites=suites(results, matched.cells),
        marginals=marginals(results),
        launches=launch_counts(results),
        session=session(results),
        identical_outputs=_identical(matched),
        warnings=warnings,
    )
    gate(comparison, settings)
    return comparison


def chosen(matched: Match, settings: Settings) -> tuple[list[str], set[str]]:
    """Metrics to compare, and those among them that gate. Raises ConfigError for one that neither side has."""
    present = [name for name in METRICS if name in matched.base.frame or name in matched.cand.frame]
    directed = [name for name in present if METRICS[name].better is not None]
    primary = {name for name in directed if METRICS[name].primary}
    if settings.metrics:
        named = [name for name in _named(settings) if name in METRICS]
        for name in named:
            if name not in present:
                raise ConfigError(f"neither side has the metric {name}")
            if METRICS[name].better is None:
                raise ConfigError(f"{name} is neither good nor bad, so it cannot be compared")
        return named, set(named)
    if settings.all_metrics:
        return directed, primary
    return [name for name in directed if name in primary], primary


def _named(settings: Settings) -> list[str]:
    known = [*METRICS, *(column.name for column in schema.ACCURACY if column.role == "metric")]
    return [column_named(name, known) for name in settings.metrics]


def floor_warnings(floor: Floor, matched: Match, settings: Settings) -> list[str]:
    """Why a noise floor may not be this machine's of today."""
    warnings = []
    age = (settings.today - floor.created).days
    if age > settings.noise_max_age:
        warnings.append(f"the noise floor is {age} days old (--noise-max-age {settings.noise_max_age})")
    for column, value in floor.fingerprint.items():
        if column in matched.cand.frame:
            here = {text for text in matched.cand.frame[column].unique() if text}
            if here and value and here != {value}:
                warnings.append(f"the noise floor was measured with {column} {value}, the candidate with {min(here)}")
    return warnings


def _identical(matched: Match) -> tuple[int, int] | None:
    """Cells in which both sides generated the same tokens, of those for which both know; None when none is known."""
    sides = (matched.base, matched.cand)
    if any("output_hash" not in rows.frame for rows in sides):
        return None
    codes, texts = code((sides[0].frame, sides[1].frame), "output_hash")
    split = len(sides[0].frame)
    low, high, varies = [], [], np.zeros(matched.cells, bool)
    for rows, mine in zip(sides, (codes[:split], codes[split:]), strict=True):
        known = rows.ok & np.isin(mine, [i for i, text in enumerate(texts) if text])
        varies[rows.cell[rows.ok & np.isin(mine, [i for i, text in enumerate(texts) if text == VARIES])]] = True
        least, most = extremes(rows.cell[known], mine[known], matched.cells)
        low.append(least)
        high.append(most)
    both = (high[0] >= 0) & (high[1] >= 0)
    same = both & ~varies & (np.minimum(*low) == np.maximum(*high))
    return (int(same.sum()), int(both.sum())) if both.any() else None
