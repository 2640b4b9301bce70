"""Second opinions on the launches of a cell. They never decide; disagreement becomes a note."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import special

from .kernels import Array

RANKS_FROM = 4
"""Launches per side below which an exact rank test cannot reach .05: at 3 its smallest p is .10."""
HODGES_LEHMANN_FROM = 5

Ints = NDArray[np.int64]


def dense(cell: Ints, x: Array, cells: Ints) -> Array:
    """Values of `cells`, all with the same count, as rows of a matrix. `cell` must be sorted."""
    starts = np.searchsorted(cell, cells)
    count = int(np.searchsorted(cell, cells[0], side="right") - starts[0])
    matrix: Array = x[starts[:, None] + np.arange(count)]
    return matrix


def same_counts(n_a: Array, n_b: Array, fewest: int) -> Iterator[Ints]:
    """Cells grouped by their launch counts, so that each group is a pair of matrices."""
    eligible = np.flatnonzero((n_a >= fewest) & (n_b >= fewest))
    pairs = n_a[eligible] * 1e6 + n_b[eligible]
    for pair in np.unique(pairs):
        yield eligible[pairs == pair]


def hodges_lehmann(a: Array, b: Array) -> Array:
    """Median of all differences b - a, by row."""
    differences = b[:, None, :] - a[:, :, None]
    return np.median(differences.reshape(len(a), -1), axis=1)


def mann_whitney(a: Array, b: Array) -> Array:
    """Two-sided p by row: exact without ties, else by the normal approximation with tie correction."""
    from scipy.stats import mannwhitneyu

    merged = np.sort(np.concatenate([a, b], axis=1), axis=1)
    ties = (np.diff(merged, axis=1) == 0).any(axis=1)
    p = np.ones(len(a))
    constant = merged[:, 0] == merged[:, -1]
    for rows, method in ((~ties, "exact"), (ties & ~constant, "asymptotic")):
        if rows.any():
            p[rows] = mannwhitneyu(a[rows], b[rows], axis=1, method=method).pvalue
    return p


def spread_disagrees(var_a: Array, n_a: Array, var_b: Array, n_b: Array, level: float = 0.01) -> NDArray[np.bool_]:
    """Whether an F test finds the launch variances different; `level` is that of all cells together."""
    with np.errstate(divide="ignore", invalid="ignore"):
        f = var_b / var_a
        above = special.fdtrc(n_b - 1, n_a - 1, f)
    both = np.isfinite(f) & (f > 0) & (n_a > 1) & (n_b > 1)
    disagrees: NDArray[np.bool_] = both & (np.minimum(above, 1 - above) < level / 2 / max(int(both.sum()), 1))
    return disagrees
