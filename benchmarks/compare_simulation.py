"""False alarms and power of the gate by simulation. Prints the tables of docs/compare-simulation.md.

Run from the repository root: python -m benchmarks.compare_simulation [MATRICES] > docs/compare-simulation.md

Model: log-normal launch effect whose SD differs between cells, median 1 %; within a launch 20 iterations with SD 0.5 %,
lag-1 correlation 0.5, and a spike of 5 % in one of twenty. The launch statistic is the median.
"""

from __future__ import annotations

import datetime
import math
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from bench.compare.decide import Sample, decide, paired, unpaired

Array = NDArray[np.float64]

ITERATIONS, WITHIN, LAG, SPIKE, SPIKES = 20, 0.005, 0.5, 0.05, 0.05
MARGIN = math.log1p(0.03)


def launches(random: np.random.Generator, cells: int, k: int, spread: float, noise: float) -> tuple[Array, Array]:
    """Log medians of k launches per side, shape (cells, k) each, without any true change."""
    sd = noise * np.exp(spread * random.standard_normal((cells, 1)))
    sides = []
    for _ in range(2):
        steps = random.standard_normal((cells, k, ITERATIONS)).astype(np.float32)
        for i in range(1, ITERATIONS):
            steps[..., i] = LAG * steps[..., i - 1] + math.sqrt(1 - LAG**2) * steps[..., i]
        inside = WITHIN * steps + SPIKE * (random.random((cells, k, ITERATIONS), dtype=np.float32) < SPIKES)
        sides.append(sd * random.standard_normal((cells, k)) + np.median(inside, axis=2))
    return sides[0], sides[1]


def sample(x: Array) -> Sample:
    """Statistics of each row."""
    return Sample(np.full(len(x), float(x.shape[1])), x.mean(axis=1), x.var(axis=1, ddof=1))


def shares(
    matrices: int,
    cells: int,
    k: int,
    change: float,
    margin: float = MARGIN,
    spread: float = 0.3,
    noise: float = 0.01,
    seed: int = 0,
) -> dict[str, float]:
    """Share of cells by verdict over many matrices, and of matrices with any regressed cell."""
    random = np.random.default_rng(seed)
    counts = dict.fromkeys(("regressed", "improved", "equivalent", "inconclusive", "any"), 0)
    for _ in range(matrices):
        a, b = launches(random, cells, k, spread, noise)
        estimate, _ = unpaired(sample(a), sample(b + math.log1p(change)))
        verdict = decide(estimate, np.full(cells, margin), 1, 0.05, np.full(cells, noise)).verdict
        names, found = np.unique(verdict, return_counts=True)
        for name, count in zip(names.tolist(), found.tolist(), strict=True):
            counts[name] += count
        counts["any"] += bool((verdict == "regressed").any())
    return {name: count / (matrices if name == "any" else matrices * cells) for name, count in counts.items()}


def drift(sessions: int, k: int = 6, total: float = 0.03, noise: float = 0.005, seed: int = 0) -> dict[str, float]:
    """False alarms at margin 0 when the machine slows down by `total` over a session without any true change.

    Two-sided share: a drift may favour either build. `abba` and `random` are analysed in pairs.
    """
    random = np.random.default_rng(seed)
    place = np.linspace(0, total, 2 * k)
    orders = {"sequential": np.repeat([0, 1], k), "abab": np.tile([0, 1], k), "abba": np.resize([0, 1, 1, 0], 2 * k)}
    alarms = {}
    for name in (*orders, "random"):
        flagged = 0
        for _ in range(sessions):
            order = orders.get(name)
            if order is None:
                first = random.permutation(np.resize([0, 1], k))
                order = np.stack([first, 1 - first], axis=1).ravel()
            x = place + noise * random.standard_normal(2 * k)
            a, b = x[order == 0][None], x[order == 1][None]
            estimate, _ = unpaired(sample(a), sample(b)) if name == "sequential" else paired(sample(b - a))
            verdict = decide(estimate, np.zeros(1), 1, 0.025, np.ones(1)).verdict[0]
            flagged += verdict in ("regressed", "improved")
        alarms[name] = flagged / sessions
    return alarms


def tables(matrices: int) -> Iterator[str]:
    """The document, line by line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    yield "# False alarms and power of `bench compare`, simulated"
    yield ""
    yield f"{datetime.date.today()}, Python {platform.python_version()}, {packages}."
    yield f"Command: `python -m benchmarks.compare_simulation {matrices}`."
    yield ""
    yield "Launch noise is an assumption (median SD 1 %), so the launch counts are; the ranking of methods is not."
    yield ""
    yield f"## Nothing changed (A/A), {matrices} matrices of 200 cells"
    yield ""
    yield "| K | flagged by the gate (3 %) | matrices with any flag | called slower at margin 0 | proved equivalent |"
    yield "|---|---|---|---|---|"
    for k in (2, 3, 5):
        gate, zero = shares(matrices, 200, k, 0.0), shares(matrices, 200, k, 0.0, margin=0.0)
        flagged = gate["regressed"] + gate["improved"]
        yield f"| {k} | {flagged:.3%} | {gate['any']:.1%} | {zero['regressed']:.2%} | {gate['equivalent']:.1%} |"
    yield ""
    yield "## A true change, margin 3 %, 200 cells"
    yield ""
    yield "| K | spread of the noise | +5 % found | +10 % found | type I at the margin (+3 %) |"
    yield "|---|---|---|---|---|"
    some = max(matrices // 5, 1)
    for k in (2, 3, 5):
        for spread in (0.3, 0.7):
            found = [shares(some, 200, k, change, spread=spread)["regressed"] for change in (0.05, 0.10, 0.03)]
            yield f"| {k} | {spread} | {found[0]:.1%} | {found[1]:.1%} | {found[2]:.2%} |"
    yield ""
    yield "## Matrices of 20 and of 19 cells, where sharing variance begins"
    yield ""
    yield "| cells | K | called slower at margin 0 | +5 % found | type I at the margin |"
    yield "|---|---|---|---|---|"
    for cells in (19, 20):
        for k in (2, 3, 5):
            zero = shares(matrices, cells, k, 0.0, margin=0.0)["regressed"]
            found = [shares(matrices, cells, k, change, seed=1)["regressed"] for change in (0.05, 0.03)]
            yield f"| {cells} | {k} | {zero:.2%} | {found[0]:.1%} | {found[1]:.2%} |"
    yield ""
    yield "## A drift of 3 % over the session, nothing changed, K = 6, launch SD 0.5 %"
    yield ""
    yield "| order | false alarms at a nominal 5 % |"
    yield "|---|---|"
    for name, share in drift(4 * matrices).items():
        yield f"| {name} | {share:.1%} |"


def main() -> None:
    """Print the tables and, on standard error, the time they took."""
    start = time.perf_counter()
    for line in tables(int(sys.argv[1]) if len(sys.argv) > 1 else 1000):
        print(line, flush=True)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
