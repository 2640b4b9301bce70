"""One metric over all cells: from rows to results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ResultsError
from ..schema import Column
from .checks import HODGES_LEHMANN_FROM, RANKS_FROM, dense, hodges_lehmann, mann_whitney, same_counts, spread_disagrees
from .columns import REGISTRY
from .decide import SHARED, VARIANCE_FLOOR, Sample, decide, paired, sample, single, unpaired
from .kernels import Array, Estimate, order_interval, t_quantile
from .margins import NOISE_CAP, Margins, margins
from .match import Match
from .model import Result
from .noise import Floor
from .read import FILE, LINE
from .rows import Ints, Rows
from .settings import Settings
from .thresholds import Thresholds

PERCENTILES = {"itl_p90_s": 0.90, "itl_p99_s": 0.99}
"""Metrics that gate only when a launch has enough samples for an interval of the quantile."""


@dataclass(frozen=True)
class Launches:
    """Launch values of one metric and side, sorted by cell and time."""

    cell: Ints
    value: Array
    started: Array
    block: Ints
    sample: Sample
    """Of the logarithms."""

    def of(self, cell: int) -> list[float]:
        """Launch values of one cell."""
        low, high = np.searchsorted(self.cell, [cell, cell + 1])
        return self.value[low:high].tolist()  # type: ignore[no-any-return]

    def blocks_of(self, cell: int) -> list[int]:
        """Block of each launch of one cell."""
        low, high = np.searchsorted(self.cell, [cell, cell + 1])
        return self.block[low:high].tolist()  # type: ignore[no-any-return]


def latency(
    match: Match, metric: str, gates: bool, settings: Settings, rules: Thresholds, floor: Floor | None
) -> list[Result]:
    """Results of one metric for every cell that has it on both sides, and is comparable."""
    column = REGISTRY[metric]
    a, b = (launches_of(rows, metric, match.cells) for rows in (match.base, match.cand))
    n_a, n_b = a.sample.n, b.sample.n
    hard = np.array([bool(text) for text in match.hard])
    with np.errstate(invalid="ignore"):
        middle = np.exp((a.sample.mean + b.sample.mean) / 2)
    margin = margins(metric, match.keys, middle, settings, rules, floor)
    least = _least_variance(match, metric, middle)
    results = _Results(match, column, gates, a, b, margin)

    blocks = _blocks(a, b, match.cells)
    enough = (n_a >= 2) & (n_b >= 2) & ~hard
    in_blocks = enough & (blocks.n >= 2)
    for tier, mask in (("T1p", in_blocks), ("T1", enough & ~in_blocks)):
        fewest = blocks.n if tier == "T1p" else np.minimum(n_a, n_b)
        mask = mask if mask.sum() >= SHARED else mask & (fewest > 2)
        if not mask.any():
            continue
        if tier == "T1p":
            estimate, method = paired(blocks.take(mask), least[mask])
            sd = estimate.se * np.sqrt(blocks.n[mask] / 2)
        else:
            estimate, method = unpaired(a.sample.take(mask), b.sample.take(mask), least[mask])
            sd = estimate.se / np.sqrt(1 / n_a[mask] + 1 / n_b[mask])
        results.decided(mask, tier, estimate, method, sd, settings.alpha)
        enough = enough & ~mask
    results.single(hard, settings, floor)
    results.check()
    return results.finish(hard)


def launches_of(rows: Rows, metric: str, cells: int) -> Launches:
    """Launch values of a metric; blank is unknown. Raises ResultsError for what is no positive number."""
    if metric not in rows.frame:
        nothing = np.zeros(0)
        empty = np.zeros(0, np.int64)
        return Launches(empty, nothing, nothing, empty, sample(empty, nothing, cells))
    text = rows.frame[metric]
    value = pd.to_numeric(text, errors="coerce").to_numpy(float)
    given = rows.ok & (text != "").to_numpy(bool)
    wrong = given & ~(np.isfinite(value) & (value > 0))
    if wrong.any():
        row = rows.frame.iloc[int(np.argmax(wrong))]
        where = f"{row[FILE]}:{row[LINE]}" if row[LINE] != "" else str(row[FILE])
        raise ResultsError(f"{where}: {metric} is '{row[metric]}', expected a positive number, or nothing when unknown")
    launch = pd.to_numeric(rows.frame["launch"], errors="coerce").fillna(0).to_numpy(float)[given]
    cell, value, started, block = rows.cell[given], value[given], rows.started[given], rows.block[given]
    order = np.lexsort((launch, started, cell))
    cell, value, started, block = cell[order], value[order], started[order], block[order]
    return Launches(cell, value, started, block, sample(cell, np.log(value), cells))


def _blocks(a: Launches, b: Launches, cells: int) -> Sample:
    """Differences of the mean logarithms of blocks that both sides have."""
    means = []
    for side in (a, b):
        inside = side.block >= 0
        means.append(
            pd.Series(np.log(side.value[inside])).groupby([side.cell[inside], side.block[inside]]).mean()
            if inside.any()
            else pd.Series(dtype=float)
        )
    if not len(means[0]) or not len(means[1]):
        return sample(np.zeros(0, np.int64), np.zeros(0), cells)
    difference = (means[1] - means[0]).dropna()
    return sample(difference.index.get_level_values(0).to_numpy(np.int64), np.asarray(difference, float), cells)


def _least_variance(match: Match, metric: str, value: Array) -> Array:
    """0.1 % of the value, or the rounding of another tool's output: resolution / sqrt(12) of the value."""
    least = np.full(match.cells, VARIANCE_FLOOR)
    for rows in (match.base, match.cand):
        if "resolution_s" in rows.frame and REGISTRY[metric].kind == "duration":
            step = np.zeros(match.cells)
            given = pd.to_numeric(rows.frame["resolution_s"], errors="coerce").to_numpy(float)
            np.fmax.at(step, rows.cell, given)
            least = np.fmax(least, (step / value) ** 2 / 12)
    return least


class _Results:
    """Results under construction: one slot per cell, filled by the tier that applies."""

    def __init__(self, match: Match, column: Column, gates: bool, a: Launches, b: Launches, margin: Margins) -> None:
        self.match, self.column, self.gates, self.a, self.b, self.margin = match, column, gates, a, b, margin
        self.sign = 1 if column.better == "lower" else -1
        self.slots: dict[int, Result] = {}
        self.log_margin = np.log1p(margin.delta)
        self.sequential = _sequential(a, b, match.cells)
        self.too_few = _too_few_samples(match, column.name)
        self.rows = [np.bincount(rows.cell, minlength=match.cells) for rows in (match.base, match.cand)]

    def new(self, cell: int, verdict: str, tier: str) -> Result:
        """The result of a cell with what does not depend on the tier."""
        a, b = self.a.sample, self.b.sample
        keys = self.match.keys
        noisy = bool(self.margin.noisy[cell])
        result = Result(
            label=self.match.labels[cell],
            key={name: values[cell] for name, values in keys.items()},
            metric=self.column.name,
            verdict=verdict,
            tier=tier,
            gates=self.gates and not noisy and not self.too_few[cell],
            kind=self.column.kind,
            better=self.column.better or "",
            base=float(np.exp(a.mean[cell])) if a.n[cell] else None,
            cand=float(np.exp(b.mean[cell])) if b.n[cell] else None,
            base_ok=int(a.n[cell]),
            cand_ok=int(b.n[cell]),
            base_n=int(self.rows[0][cell]),
            cand_n=int(self.rows[1][cell]),
            margin=float(self.margin.delta[cell]),
            margin_source=self.margin.source[cell],
            sequential=bool(self.sequential[cell]) and tier != "T1p",
            base_launches=self.a.of(cell),
            cand_launches=self.b.of(cell),
            base_blocks=self.a.blocks_of(cell) if tier == "T1p" else [],
            cand_blocks=self.b.blocks_of(cell) if tier == "T1p" else [],
        )
        if noisy:
            result.notes.append(f"noisy: twice its launch SD is above {NOISE_CAP:.0%}, so it does not gate")
        if self.gates and self.too_few[cell]:
            result.notes.append(f"does not gate: {self.too_few[cell]}")
        self.slots[cell] = result
        return result

    def decided(
        self, mask: NDArray[np.bool_], tier: str, estimate: Estimate, method: str, sd: Array, alpha: float
    ) -> None:
        """Fill the cells in `mask` with margin verdicts."""
        decision = decide(estimate, self.log_margin[mask], self.sign, alpha, sd)
        interval = f"{1 - 2 * alpha:.0%}"
        ratio, lower, upper = np.exp(estimate.d), np.exp(decision.lower), np.exp(decision.upper)
        for i, cell in enumerate(np.flatnonzero(mask).tolist()):
            result = self.new(cell, str(decision.verdict[i]), tier)
            result.lean = str(decision.lean[i])
            result.d, result.se, result.df = float(estimate.d[i]), float(estimate.se[i]), float(estimate.df[i])
            result.ratio, result.lower, result.upper = float(ratio[i]), float(lower[i]), float(upper[i])
            result.p_worse, result.p_better = float(decision.p_worse[i]), float(decision.p_better[i])
            result.mde = float(decision.mde[i])
            result.interval, result.method = interval, method
            if result.verdict == "inconclusive":
                result.needs_k = float(decision.needs_k[i])

    def single(self, hard: NDArray[np.bool_], settings: Settings, floor: Floor | None) -> None:
        """Fill what is left with one-launch verdicts: `suspect` at most, unless --allow-single."""
        n_a, n_b = self.a.sample.n, self.b.sample.n
        left = (n_a > 0) & (n_b > 0) & ~hard
        left[list(self.slots)] = False
        if not left.any():
            return
        d = (self.b.sample.mean - self.a.sample.mean)[left]
        half = np.full(left.sum(), np.nan)
        if floor is not None:
            metric, cells = self.column.name, self.match.cells
            sd = floor.launch_sd(metric, self.match.keys, cells)[left]
            df = floor.launches(metric, self.match.keys, cells)[left] - 1
            half = t_quantile(1 - settings.alpha / 2, np.where(df > 0, df, 1)) * sd * np.sqrt(1 / n_a + 1 / n_b)[left]
        verdict, lean = single(d, self.log_margin[left], self.sign, half, settings.allow_single)
        for i, cell in enumerate(np.flatnonzero(left).tolist()):
            result = self.new(cell, str(verdict[i]), "T0")
            result.lean, result.d, result.ratio = str(lean[i]), float(d[i]), float(np.exp(d[i]))
            result.method = "noise floor" if np.isfinite(half[i]) else "no statistics"
            if np.isfinite(half[i]):
                result.lower, result.upper = float(np.exp(d[i] - half[i])), float(np.exp(d[i] + half[i]))
                result.interval = f"{1 - settings.alpha:.0%} prediction"
            fewest = int(min(n_a[cell], n_b[cell]))
            result.reason = "one launch" if fewest == 1 else f"2 launches need {SHARED} cells to share variance"

    def check(self) -> None:
        """Add the second opinions."""
        a, b = self.a, self.b
        for cells in same_counts(a.sample.n, b.sample.n, RANKS_FROM):
            x, y = (np.log(dense(side.cell, side.value, cells)) for side in (a, b))
            ranks = mann_whitney(x, y)
            middle = hodges_lehmann(x, y) if min(x.shape[1], y.shape[1]) >= HODGES_LEHMANN_FROM else None
            for i, cell in enumerate(cells.tolist()):
                result = self.slots.get(cell)
                if result is None:
                    continue
                result.mwu_p = float(ranks[i])
                if middle is not None:
                    result.hl_ratio = float(np.exp(middle[i]))
                flagged = result.verdict in ("regressed", "improved")
                if flagged and ranks[i] > 0.05 and not (result.tier == "T1p" and _one_sided(result)):
                    result.notes.append(f"the ranks of the launches do not agree (p = {ranks[i]:.2g}): an outlier?")
        wide = spread_disagrees(a.sample.var, a.sample.n, b.sample.var, b.sample.n)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.sqrt(b.sample.var / a.sample.var)
        for cell, result in self.slots.items():
            if np.isfinite(spread[cell]):
                result.spread_ratio = float(spread[cell])
            if wide[cell]:
                result.notes.append(f"the candidate's launches spread {spread[cell]:.2g} times as far as the base's")

    def finish(self, hard: NDArray[np.bool_]) -> list[Result]:
        """Results in the order of the cells, with those that cannot be compared.

        A cell that lost its value gates, because a gate that never sees a value passes for ever.
        """
        n_a, n_b = self.a.sample.n, self.b.sample.n
        cells = self.match.cells
        succeeded = [rows.count(rows.ok, cells) > 0 for rows in (self.match.base, self.match.cand)]
        one_sided = (n_a > 0) != (n_b > 0)
        for cell in np.flatnonzero(((n_a > 0) | (n_b > 0)) & succeeded[0] & succeeded[1] & (hard | one_sided)).tolist():
            result = self.new(cell, "not-comparable", "")
            result.reason = self.match.hard[cell] or f"the {'base' if n_a[cell] == 0 else 'candidate'} has no value"
            result.gates &= bool(hard[cell] or n_b[cell] == 0)
        return [self.slots[cell] for cell in sorted(self.slots)]


def _one_sided(result: Result) -> bool:
    """Whether the candidate came out on the same side of the base in every block that both have."""
    sums: dict[int, list[list[float]]] = {}
    sides = ((result.base_blocks, result.base_launches), (result.cand_blocks, result.cand_launches))
    for side, (blocks, values) in enumerate(sides):
        for block, value in zip(blocks, values, strict=True):
            sums.setdefault(block, [[], []])[side].append(math.log(value))
    differences = [fmean(b) - fmean(a) for a, b in sums.values() if a and b]
    return all(d > 0 for d in differences) or all(d < 0 for d in differences)


def _sequential(a: Launches, b: Launches, cells: int) -> NDArray[np.bool_]:
    """Cells whose launches of one side all started before all of the other's; False when a time is unknown."""
    first, last = [], []
    for side in (a, b):
        low, high = np.full(cells, np.inf), np.full(cells, -np.inf)
        with np.errstate(invalid="ignore"):  # an unknown time makes the whole cell unknown
            np.minimum.at(low, side.cell, side.started)
            np.maximum.at(high, side.cell, side.started)
        first.append(low)
        last.append(high)
    return (last[0] < first[1]) | (last[1] < first[0])


def _too_few_samples(match: Match, metric: str) -> list[str]:
    """By cell: why its percentile has too few samples to gate, or nothing."""
    if metric not in PERCENTILES:
        return [""] * match.cells
    fewest = np.full(match.cells, np.inf)
    for rows in (match.base, match.cand):
        columns = [
            pd.to_numeric(rows.frame[name], errors="coerce").to_numpy(float) if name in rows.frame else np.nan
            for name in ("iterations", "output_tokens")
        ]
        gaps = np.nan_to_num(columns[0] * (columns[1] - 1)) * np.ones(len(rows.cell))
        np.minimum.at(fewest, rows.cell[rows.ok], gaps[rows.ok])
    known = {int(n): order_interval(int(n), PERCENTILES[metric]) for n in np.unique(fewest[np.isfinite(fewest)])}
    return [
        "" if not np.isfinite(n) or known[int(n)] else f"{int(n)} inter-token gaps are too few for this percentile"
        for n in fewest
    ]
