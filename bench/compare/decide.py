"""The latency decision on arrays over cells: estimate, bounds and verdict from launch values. `compare.md` says why.

x is the logarithm of a launch's statistic. A launch is the unit of replication, never an iteration. Estimates are
candidate minus base; the verdict is taken on w, the same with the sign turned so that larger is worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .kernels import (
    Array,
    Estimate,
    launches_needed,
    minimum_effect,
    moderated,
    resolvable,
    t_quantile,
    t_survival,
    welch,
)

SHARED = 20
"""Cells of one metric from which variance is shared across cells."""
VARIANCE_FLOOR = 0.001**2
"""A launch SD of 0.1 %: no set of equal launches makes a cell certain."""

Words = NDArray[np.str_]


@dataclass(frozen=True)
class Sample:
    """Launches of one side, or block differences, by cell."""

    n: Array
    mean: Array
    var: Array
    """Unbiased; NaN for fewer than two."""

    def take(self, mask: NDArray[np.bool_]) -> Sample:
        """The cells in `mask`."""
        return Sample(self.n[mask], self.mean[mask], self.var[mask])


def sample(cell: NDArray[np.int64], x: Array, cells: int) -> Sample:
    """Count, mean and variance of `x` by cell; two passes, because launches differ in the last digits."""
    n = np.bincount(cell, minlength=cells).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(cell, x, cells) / n
        var = np.bincount(cell, (x - mean[cell]) ** 2, cells) / np.where(n > 1, n - 1, np.nan)
    return Sample(n, mean, var)


def unpaired(a: Sample, b: Sample, least: Array | float = VARIANCE_FLOOR) -> tuple[Estimate, str]:
    """Welch below SHARED cells, moderated variance from there on. Every cell needs two launches on each side."""
    if len(a.n) < SHARED:
        return welch(a.mean, np.maximum(a.var, least), a.n, b.mean, np.maximum(b.var, least), b.n), "Welch"
    df = a.n + b.n - 2
    pooled = ((a.n - 1) * a.var + (b.n - 1) * b.var) / df
    variance, df, d0, _ = moderated(pooled, df)
    se = np.sqrt(np.maximum(variance, least) * (1 / a.n + 1 / b.n))
    return Estimate(b.mean - a.mean, se, df), f"moderated variance, prior df {d0:.3g}"


def paired(blocks: Sample, least: Array | float = VARIANCE_FLOOR) -> tuple[Estimate, str]:
    """Differences of blocks; moderated from SHARED cells on. Every cell needs two blocks."""
    variance, df, method = blocks.var, blocks.n - 1, "paired blocks"
    if len(blocks.n) >= SHARED:
        variance, df, d0, _ = moderated(blocks.var, df)
        method = f"paired blocks, moderated variance, prior df {d0:.3g}"
    se = np.sqrt(np.maximum(variance, 2 * np.asarray(least)) / blocks.n)
    return Estimate(blocks.mean, se, df), method


@dataclass(frozen=True)
class Decision:
    """By cell. Bounds are on the log scale of the estimate, not of w."""

    verdict: Words
    lean: Words
    lower: Array
    upper: Array
    p_worse: Array
    p_better: Array
    mde: Array
    needs_k: Array


def decide(estimate: Estimate, margin: Array, sign: int, alpha: float, launch_sd: Array) -> Decision:
    """Margin verdicts from one-sided bounds of level `alpha`. `margin` is log(1 + delta), `sign` +1 if low is good."""
    w = sign * estimate.d
    half = t_quantile(1 - alpha, estimate.df) * estimate.se
    low, high = w - half, w + half
    verdict = np.select(
        [low > margin, high < -margin, (low > -margin) & (high < margin)],
        ["regressed", "improved", "equivalent"],
        "inconclusive",
    )
    open_ = verdict == "inconclusive"
    lean = np.select([open_ & (low > 0), open_ & (high < 0)], ["worse", "better"], "")
    needed = launches_needed(np.abs(np.abs(w) - margin), launch_sd, resolvable(alpha))
    return Decision(
        verdict,
        lean,
        estimate.d - half,
        estimate.d + half,
        t_survival((w - margin) / estimate.se, estimate.df),
        t_survival((-w - margin) / estimate.se, estimate.df),
        minimum_effect(estimate.se, estimate.df),
        np.where(open_, needed, np.nan),
    )


def single(d: Array, margin: Array, sign: int, half: Array, gate: bool) -> tuple[Words, Words]:
    """Verdict and lean of one launch per side; `half` is the half-width of a prediction interval, NaN without a floor.

    `suspect` at most: beyond the margin, by the whole interval when there is one. With `gate` (--allow-single) the
    margin is a plain threshold, or the prediction interval decides.
    """
    w = sign * d
    reach = np.nan_to_num(half)
    beyond, below = w - reach > margin, w + reach < -margin
    inside = (w - reach > -margin) & (w + reach < margin)
    if gate:
        verdict = np.select([beyond, below, inside], ["regressed", "improved", "equivalent"], "inconclusive")
    else:
        verdict = np.where(beyond | below, "suspect", "inconclusive")
    open_ = np.isin(verdict, ("suspect", "inconclusive"))
    some = np.maximum(reach, 1e-9)  # a change of units leaves the last digits different
    return verdict, np.select([open_ & (w > some), open_ & (w < -some)], ["worse", "better"], "")
