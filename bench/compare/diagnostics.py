"""Iterations of a launch: warm-up, autocorrelation, order-statistic intervals. Diagnostics, never replicates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..journal import NAME as JOURNAL
from ..journal import Journal
from ..metrics import itl, tpot, ttft
from ..record import Iteration, Record
from .kernels import Array, order_interval
from .match import Match
from .model import Result
from .read import Side
from .rows import Rows

SERIES: dict[str, Callable[[Iteration], float]] = {"ttft_s": ttft, "tpot_s": tpot, "e2e_s": lambda item: item.e2e_s}
"""Metrics with one value per iteration."""
QUANTILES = {"itl_p50_s": 0.50, "itl_p90_s": 0.90, "itl_p99_s": 0.99}
"""Metrics that are quantiles of all inter-token gaps of a launch."""
WARM = 1.10
"""A first iteration this much slower than the median of the rest was warm-up."""


def diagnose(results: list[Result], base: Side, cand: Side, matched: Match) -> list[str]:
    """Attach iterations to the results of which a journal lies beside the table. Returns warnings."""
    wanted = [
        result
        for result in results
        if result.metric in SERIES.keys() | QUANTILES.keys() and result.tier in ("T0", "T1", "T1p")
    ]
    journals = [_records(side) for side in (base, cand)]
    if not wanted or not any(journals):
        return []
    cells: dict[tuple[str, ...], list[Result]] = {tuple(result.key.values()): [] for result in wanted}
    for result in wanted:
        cells[tuple(result.key.values())].append(result)
    slow = set()
    for name, rows, records in zip(("base", "cand"), (matched.base, matched.cand), journals, strict=True):
        for key, launches in _by_cell(rows, records, matched).items():
            for result in cells.get(key, ()):
                found = summarise(launches, result.metric)
                result.samples = {**(result.samples or {}), name: found}
                if (found.get("first_over_rest") or 0.0) > WARM:
                    slow.add(result.label)
    return [f"the first iteration is slow in {len(slow)} cells: raise warmup"] if slow else []


def summarise(launches: list[Record], metric: str) -> dict[str, Any]:
    """What the iterations of a cell say: its quantile's 95 % interval in the last launch, scatter within launches."""
    if metric in QUANTILES:
        gaps = [[gap for iteration in record.iterations for gap in itl(iteration)] for record in launches]
        return {"samples": len(gaps[-1]), "interval": _interval(gaps[-1], QUANTILES[metric])}
    series = [[SERIES[metric](iteration) for iteration in record.iterations] for record in launches]
    logs = [np.log(np.array(values)) for values in series]
    firsts = [float(np.exp(x[0] - np.median(x[1:]))) for x in logs if len(x) > 2]
    return {
        "iterations": series,
        "samples": len(series[-1]),
        "interval": _interval(series[-1], 0.5),
        "within_sd": within_sd(logs),
        "lag1": lag1(logs),
        "first_over_rest": float(np.median(firsts)) if firsts else None,
    }


def _interval(samples: list[float], quantile: float) -> list[float] | None:
    """Distribution-free 95 % interval of a quantile; None when there are too few samples for one."""
    ranks = order_interval(len(samples), quantile)
    ordered = sorted(samples)
    return [ordered[ranks[0] - 1], ordered[ranks[1] - 1]] if ranks else None


def within_sd(logs: list[Array]) -> float | None:
    """Pooled standard deviation of log iterations within launches."""
    many = [x for x in logs if len(x) > 1]
    df = sum(len(x) - 1 for x in many)
    return float(np.sqrt(sum(((x - x.mean()) ** 2).sum() for x in many) / df)) if df else None


def lag1(logs: list[Array]) -> float | None:
    """Lag-1 autocorrelation of log iterations, pooled over launches."""
    many = [x - x.mean() for x in logs if len(x) > 2]
    total = sum(float((x * x).sum()) for x in many)
    return sum(float((x[1:] * x[:-1]).sum()) for x in many) / total if total else None


def _records(side: Side) -> dict[tuple[str, int], Record]:
    """Records of the journals beside the side's files, by cell id and launch."""
    found: dict[tuple[str, int], Record] = {}
    for folder in dict.fromkeys(Path(file).parent for file in side.files):
        for key, outcome in Journal(folder / JOURNAL).outcomes().items():
            if isinstance(outcome, Record):
                found[key] = outcome
    return found


def cell_records(side: Side, matched: Match) -> dict[tuple[str, ...], list[Record]]:
    """Records of one side by cell key, in the order of launches; empty without a journal."""
    return _by_cell(matched.base, _records(side), matched)


def _by_cell(rows: Rows, records: dict[tuple[str, int], Record], matched: Match) -> dict[tuple[str, ...], list[Record]]:
    """Records by cell key, in the order of launches."""
    if "cell" not in rows.frame or not records:
        return {}
    found: dict[tuple[str, ...], list[Record]] = {}
    columns = zip(rows.frame["cell"], rows.frame["launch"], rows.cell.tolist(), rows.ok.tolist(), strict=True)
    for cell_id, launch, cell, fine in columns:
        record = records.get((cell_id, int(launch))) if fine and str(launch).isdigit() else None
        if record is not None:
            found.setdefault(tuple(values[cell] for values in matched.keys.values()), []).append(record)
    return found
