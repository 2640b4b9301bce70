"""Cells as a whole: failed, missing, new, fixed, skipped. One result per cell about which there is something to say."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..errors import ConfigError
from .match import Match
from .model import STATUS, Result
from .rows import Rows, statuses
from .selectors import Condition, from_mapping
from .settings import Settings
from .thresholds import read_yaml

DIFFERENT_WORK = "wrong_length"
"""A failure that makes a cell not comparable: it did other work than asked."""
NOT_HERE = ("skipped", "unsupported")
"""Not failures as long as the base did not succeed: the combination does not exist."""


def outcomes(match: Match, settings: Settings) -> list[Result]:
    """Status results. Partly failed cells are also compared, by the launches that succeeded."""
    base, cand = (statuses(rows, match.cells) for rows in (match.base, match.cand))
    succeeded = [rows.count(rows.ok, match.cells) for rows in (match.base, match.cand)]
    launches = [rows.count(np.ones(len(rows.ok), bool), match.cells) for rows in (match.base, match.cand)]
    expected = _expected(match, settings)
    results = []
    for cell in range(match.cells):
        counts = [int(column[cell]) for column in (succeeded[0], launches[0], succeeded[1], launches[1])]
        verdict, reason = _verdict(base[cell], cand[cell], counts, settings.alpha)
        if not cand[cell] and expected is not None:
            if not expected[cell]:
                continue  # the matrix no longer has this cell
            verdict = "missing"
        if not verdict:
            continue
        row = _last_failure(match.cand if cand[cell] not in ("ok", "") or verdict == "failed-new" else match.base, cell)
        results.append(
            Result(
                label=match.labels[cell],
                key={name: values[cell] for name, values in match.keys.items()},
                metric=STATUS,
                verdict=verdict,
                gates=verdict in ("failed-new", "missing", "new"),
                reason=reason or row.get("error", ""),
                base_ok=counts[0],
                base_n=counts[1],
                cand_ok=counts[2],
                cand_n=counts[3],
                base_status=base[cell],
                cand_status=row["status"] if verdict == "failed-new" and row else cand[cell],
                log=row.get("log", ""),
            )
        )
    return results + _never_seen(match, settings)


def _verdict(base: str, cand: str, counts: list[int], alpha: float) -> tuple[str, str]:
    """Verdict and reason; no verdict for a cell that succeeded on both sides."""
    if DIFFERENT_WORK in (base, cand):
        return "not-comparable", "fewer or more tokens than asked"
    if "skipped" in (base, cand) or (cand in NOT_HERE and base != "ok") or (base in NOT_HERE and cand != "ok" and cand):
        return "skipped", ""
    if base == "ok" and cand == "ok":
        return _partly(counts, alpha)
    if not base:
        return "new", ""
    if not cand:
        return "missing" if base == "ok" else "both-failed", "" if base == "ok" else "absent, and failed before"
    if base == "ok":
        return "failed-new", ""
    return ("fixed", "") if cand == "ok" else ("both-failed", "")


def _partly(counts: list[int], alpha: float) -> tuple[str, str]:
    base_ok, base_n, cand_ok, cand_n = counts
    if cand_ok == cand_n:
        return "", ""
    half = cand_ok <= cand_n / 2 and base_ok > base_n / 2
    if not half:
        from scipy.stats import fisher_exact

        table = [[cand_n - cand_ok, cand_ok], [base_n - base_ok, base_ok]]
        if fisher_exact(table, alternative="greater").pvalue >= alpha:
            return "", ""
    return "failed-new", f"{cand_n - cand_ok} of {cand_n} launches failed"


def _last_failure(rows: Rows, cell: int) -> dict[str, str]:
    at = np.flatnonzero((rows.cell == cell) & ~rows.ok)
    if not len(at):
        return {}
    row = rows.frame.iloc[int(at[-1])]
    return {name: str(row[name]) for name in ("status", "error", "log") if name in row}


def _combinations(match: Match, settings: Settings) -> list[list[Condition]] | None:
    """Conditions of every combination of the expected matrix: a mapping of axes to lists, or several of them."""
    if settings.expected is None:
        return None
    data = read_yaml(settings.expected)
    combinations = []
    for item in data if isinstance(data, list) else [data]:
        if not isinstance(item, dict):
            raise ConfigError(f"{settings.expected}: expected axes with lists of values, such as batch_size: [1, 8]")
        axes = {str(name): value if isinstance(value, list) else [value] for name, value in item.items()}
        pairs = [str(pair).partition("/")[::2] for pair in axes.pop("lengths", [])]
        lengths = [{"input_tokens": tokens_in, "output_tokens": tokens_out} for tokens_in, tokens_out in pairs]
        for values in product(*axes.values(), lengths or [{}]):
            axis = {**dict(zip(axes, values, strict=False)), **values[-1]}
            combinations.append(from_mapping(axis, match.keys))
    return combinations


def _expected(match: Match, settings: Settings) -> list[bool] | None:
    """By cell: whether the expected matrix has it; None without a matrix, when the base's cells are expected."""
    combinations = _combinations(match, settings)
    if combinations is None:
        return None
    return [any(_holds(match, cell, combination) for combination in combinations) for cell in range(match.cells)]


def _holds(match: Match, cell: int, conditions: list[Condition]) -> bool:
    return all(condition.holds(match.keys[condition.column][cell]) for condition in conditions)


def _never_seen(match: Match, settings: Settings) -> list[Result]:
    """Expected combinations that neither side has."""
    results = []
    for combination in _combinations(match, settings) or []:
        if any(_holds(match, cell, combination) for cell in range(match.cells)):
            continue
        key = {condition.column: condition.value for condition in combination}
        label = " ".join(f"{name}={value}" for name, value in key.items())
        results.append(
            Result(label, key, STATUS, "missing", gates=True, reason="in the expected matrix, never measured")
        )
    return results
