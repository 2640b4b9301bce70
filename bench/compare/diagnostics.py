"""Iterations of a launch: warm-up, autocorrelation, order-statistic intervals. Diagnostics, never replicates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..journal import NAME as JOURNAL
from ..journal import Journal
from ..metrics import percentile, tpot, ttft
from ..record import Iteration, Record
from .kernels import Array, order_interval
from .match import Match
from .model import Result
from .read import Side
from .rows import Rows

SERIES: dict[str, Callable[[Iteration], float]] = {"ttft_s": ttft, "tpot_s": tpot, "e2e_s": lambda item: item.e2e_s}
"""Metrics with one value per iteration."""
WARM = 1.10
"""A first iteration this much slower than the median of the rest was warm-up."""


def diagnose(results: list[Result], base: Side, cand: Side, matched: Match) -> list[str]:
    """Attach iterations to the results of which a journal lies beside the table. Returns warnings."""
    wanted = [result for result in results if result.metric in SERIES and result.tier in ("T0", "T1", "T1p")]
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
                if found["first_over_rest"] > WARM:
                    slow.add(result.label)
    return [f"the first iteration is slow in {len(slow)} cells: raise warmup"] if slow else []


def summarise(launches: list[Record], metric: str) -> dict[str, Any]:
    """Iterations by launch, with the last launch's median and its 95 % interval, and scatter within launches."""
    series = [[SERIES[metric](iteration) for iteration in record.iterations] for record in launches]
    logs = [np.log(np.array(values)) for values in series]
    last = sorted(series[-1])
    ranks = order_interval(len(last), 0.5)
    firsts = [float(np.exp(x[0] - np.median(x[1:]))) for x in logs if len(x) > 2]
    return {
        "iterations": series,
        "median": percentile(last, 50),
        "median_interval": [last[ranks[0] - 1], last[ranks[1] - 1]] if ranks else None,
        "within_sd": within_sd(logs),
        "lag1": lag1(logs),
        "first_over_rest": float(np.median(firsts)) if firsts else 1.0,
    }


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
