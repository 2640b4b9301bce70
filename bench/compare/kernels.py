"""The statistics that scipy and statsmodels do not have, on arrays over cells. Logarithms of ratios throughout."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import brentq

Array = NDArray[np.float64]


def t_quantile(probability: float, df: Array | float) -> Array:
    """Quantile of Student's t; `df` may be infinite."""
    df = np.asarray(df, float)
    finite = np.where(np.isfinite(df), df, 1.0)
    quantile: Array = np.where(np.isfinite(df), special.stdtrit(finite, probability), special.ndtri(probability))
    return quantile


def t_survival(t: Array, df: Array) -> Array:
    """P(T > t) of Student's t; `df` may be infinite. NaN in, NaN out."""
    finite = np.where(np.isfinite(df), df, 1.0)
    survival: Array = np.where(np.isfinite(df), special.stdtr(finite, -t), special.ndtr(-t))
    return survival


@dataclass(frozen=True)
class Estimate:
    """Difference of mean logarithms, candidate minus base, per cell: exp(d) is the ratio shown."""

    d: Array
    se: Array
    df: Array


def welch(mean_a: Array, var_a: Array, n_a: Array, mean_b: Array, var_b: Array, n_b: Array) -> Estimate:
    """Unequal variances, Welch-Satterthwaite degrees of freedom. Variances must be positive."""
    q_a, q_b = var_a / n_a, var_b / n_b
    df = (q_a + q_b) ** 2 / (q_a**2 / (n_a - 1) + q_b**2 / (n_b - 1))
    return Estimate(mean_b - mean_a, np.sqrt(q_a + q_b), df)


def prior_variance(s2: Array, df: Array | float) -> tuple[float, float]:
    """Prior degrees of freedom d0 and prior variance s0^2 of variances `s2` with `df` degrees of freedom each.

    Moment fit of a scaled F distribution: Smyth (2004), Statistical Applications in Genetics and Molecular Biology 3,
    section 6.2. d0 is infinite when the variances spread no more than their own sampling error explains. Variances of
    zero carry no logarithm and are left out; without two positive ones the answer is (0, mean variance).
    """
    positive = s2 > 0
    half = (np.broadcast_to(np.asarray(df, float), s2.shape)[positive]) / 2
    if positive.sum() < 2:
        return 0.0, float(s2.mean()) if s2.size else math.nan
    e = np.log(s2[positive]) - special.digamma(half) + np.log(half)
    excess = float(np.var(e, ddof=1) - special.polygamma(1, half).mean())
    if excess <= 0:
        return math.inf, math.exp(float(e.mean()))
    d0 = 2 * _inverse_trigamma(excess)
    return d0, math.exp(float(e.mean() + special.digamma(d0 / 2)) - math.log(d0 / 2))


def _inverse_trigamma(value: float) -> float:
    """Newton's iteration on 1 / trigamma, which is nearly linear: Smyth (2004), appendix."""
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    return y


def moderated(s2: Array, df: Array) -> tuple[Array, Array, float, float]:
    """Variances drawn towards their common prior: (variance, degrees of freedom, d0, s0^2)."""
    d0, s02 = prior_variance(s2, df)
    if math.isinf(d0):
        return np.full_like(s2, s02), np.full_like(s2, math.inf), d0, s02
    return (d0 * s02 + df * s2) / (d0 + df), d0 + df, d0, s02


MOST_LAUNCHES = 100
"""No advice beyond this many launches per side: measure better instead."""


def resolvable(alpha: float = 0.05, power: float = 0.8, tails: int = 1) -> Array:
    """Smallest gap, in units of the launch SD, that K = 2..MOST_LAUNCHES launches per side tell from a bound.

    Exact for normal launches and a pooled t test with 2K - 2 degrees of freedom: the noncentrality at which a one-sided
    test of level `alpha` has `power`. `tails=2` is for a truth midway between two bounds, as in proving a cell
    unchanged: each bound may then fail with half of 1 - power.
    """
    k = np.arange(2, MOST_LAUNCHES + 1)
    miss = (1 - power) / tails
    noncentrality: Array = special.nctdtrinc(2.0 * k - 2, miss, special.stdtrit(2.0 * k - 2, 1 - alpha))
    return noncentrality * np.sqrt(2 / k)


def launches_needed(gap: Array, sd: Array, table: Array) -> Array:
    """Fewest launches per side that resolve `gap` at launch SD `sd` by a table of `resolvable`; inf above its end."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(sd > 0, gap / sd, np.inf)
    # The table falls with K: the first entry not above the ratio.
    position = np.searchsorted(-table, -ratio)
    return np.where(position < len(table), position + 2.0, np.inf)


def minimum_effect(se: Array, df: Array, alpha: float = 0.05, power: float = 0.8) -> Array:
    """Minimum detectable effect as a fraction: the change from none that a two-sided test sees with `power`.

    exp((t[1 - alpha/2] + t[power]) * se) - 1, the usual approximation of the noncentral t.
    """
    return np.expm1((t_quantile(1 - alpha / 2, df) + t_quantile(power, df)) * se)


def tango(lost: int, gained: int, n: int, z: float) -> tuple[float, float]:
    """Score interval of the difference of paired proportions (gained - lost) / n.

    Tango (1998), Statistics in Medicine 17, 891-908. `lost`: base right, candidate wrong; `gained` the reverse.
    z = 1.645 gives one-sided 95 % bounds.
    """

    def statistic(d: float) -> float:
        b = -gained - lost + (2 * n - gained + lost) * d
        c = -lost * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        numerator = gained - lost - n * d
        return numerator / math.sqrt(variance) if variance > 1e-15 else math.copysign(math.inf, numerator)

    def bound(side: int) -> float:
        # The statistic falls from +inf to -inf and is 0 at the estimate, where its variance may vanish.
        inner, outer = (gained - lost) / n - side * 1e-12, -side * (1 - 1e-12)
        if abs(inner) >= abs(outer) and inner * outer > 0:
            return float(-side)
        return float(brentq(lambda d: max(min(statistic(d), 1e9), -1e9) - side * z, inner, outer, xtol=1e-14))

    return bound(+1), bound(-1)


@functools.lru_cache(maxsize=256)
def order_interval(n: int, p: float, confidence: float = 0.95) -> tuple[int, int] | None:
    """1-based ranks of the shortest distribution-free interval of the p-quantile, None when n is too small for one."""
    ranks = np.arange(n + 1)
    cdf = np.concatenate([[0.0], special.bdtr(ranks, n, p)])
    best: tuple[int, int] | None = None
    for low in range(1, n + 1):
        high = int(np.searchsorted(cdf, cdf[low] + confidence - 1e-12))
        if low < high <= n and (best is None or high - low < best[1] - best[0]):
            best = (low, high)
    return best


def mcnemar(lost: int, gained: int) -> tuple[float, float]:
    """Two-sided p values of McNemar's test: (exact, mid-p)."""
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    total = lost + gained
    if total == 0:
        return 1.0, 1.0
    exact = float(exact_test([[0, lost], [gained, 0]], exact=True).pvalue)
    fewer = min(lost, gained)
    at_edge = special.bdtr(fewer, total, 0.5) - (special.bdtr(fewer - 1, total, 0.5) if fewer else 0.0)
    return exact, min(1.0, 2 * float(special.bdtr(fewer, total, 0.5)) - float(at_edge))
