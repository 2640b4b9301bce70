"""What the cells say together: the suite's geometric mean, a shift that all share, the axis values behind the flags."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from .kernels import t_quantile
from .model import STATUS, Result, Suite

SHIFT_CELLS = 5
SHIFT_SHARE = 0.7
SHIFT_LEAST = 0.005
"""A common shift moves at least this share of at least this many cells, by at least half a per cent."""
FLAGGED = ("regressed", "accuracy-regressed", "failed-new")


def suites(results: list[Result], cells: int) -> list[Suite]:
    """One line per metric with ratios. Sets `shift_removed` of its results when all cells moved together.

    The interval is a 95 % t interval over cells: it covers measurement noise and real differences between cells.
    """
    lines = []
    for metric in dict.fromkeys(
        result.metric for result in results if result.ratio is not None and result.tier != "T3"
    ):
        mine = [
            result for result in results if result.metric == metric and result.d is not None and result.tier != "T3"
        ]
        d = np.array([result.d for result in mine], float)
        mean, n = float(d.mean()), len(d)
        lower = upper = None
        if n > 1:
            half = float(t_quantile(0.975, n - 1.0)) * float(d.std(ddof=1)) / math.sqrt(n)
            lower, upper = math.exp(mean - half), math.exp(mean + half)
        line = Suite(metric, math.exp(mean), lower, upper, n, cells, _shift(d))
        if line.shift is not None:
            for result in mine:
                assert result.ratio is not None
                result.shift_removed = result.ratio / line.shift
        lines.append(line)
    return lines


def _shift(d: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    """The median ratio, if more than 70 % of the cells share its sign and it exceeds the robust spread."""
    if len(d) < SHIFT_CELLS:
        return None
    middle = float(np.median(d))
    same = float(np.mean(np.sign(d) == np.sign(middle)))
    spread = 1.4826 * float(np.median(np.abs(d - middle)))
    moved = same > SHIFT_SHARE and abs(middle) > spread and abs(middle) >= SHIFT_LEAST
    return math.exp(middle) if moved else None


def marginals(results: list[Result]) -> list[str]:
    """Sentences such as "11 of 12 flagged cells have precision=int4 (20 of 60 cells do)", most telling first.

    A value is named when at least 80 % of three or more flagged cells have it, and at least 1.5 times as often as all.
    """
    everyone = {result.label: result.key for result in results}
    flagged = {result.label: result.key for result in results if result.verdict in FLAGGED}
    if len(flagged) < 3:
        return []
    found = []
    seen: set[frozenset[str]] = set()
    # Decoding follows from the number of beams: the number says more, so it is asked first.
    for column in sorted(next(iter(everyone.values())), key=lambda name: name == "decoding"):
        among = Counter(key.get(column, "") for key in flagged.values())
        value, count = among.most_common(1)[0]
        total = sum(key.get(column, "") == value for key in everyone.values())
        share, usual = count / len(flagged), total / len(everyone)
        owners = frozenset(label for label, key in everyone.items() if key.get(column, "") == value)
        if share >= 0.8 and share >= 1.5 * usual and owners not in seen:
            seen.add(
                owners
            )  # a column that says the same as one before, such as decoding after num_beams, adds nothing
            found.append((share / usual, column, value, count, total))
    found.sort(reverse=True)
    sentences = [
        f"{count} of {len(flagged)} flagged cells have {column}={value or 'none'} ({total} of {len(everyone)} cells do)"
        for _, column, value, count, total in found
    ]
    if len(found) > 1:
        pair = found[:2]
        both = sum(all(key.get(column) == value for _, column, value, _, _ in pair) for key in flagged.values())
        words = ", ".join(f"{column}={value}" for _, column, value, _, _ in pair)
        sentences.insert(0, f"{both} of {len(flagged)} flagged cells have {words}")
    return sentences


def launch_counts(results: list[Result]) -> str:
    """ "K=5", or "K=1 to 5"."""
    counts = [n for result in results if result.metric != STATUS and result.tier != "T3" for n in _both(result) if n]
    if not counts:
        return ""
    return f"K={counts[0]}" if len(set(counts)) == 1 else f"K={min(counts)} to {max(counts)}"


def _both(result: Result) -> tuple[int, int]:
    return result.base_ok, result.cand_ok


def session(results: list[Result]) -> str:
    """How the launches of the two sides lay in time."""
    timed = [result for result in results if result.tier in ("T0", "T1", "T1p")]
    interleaved = sum(result.tier == "T1p" for result in timed)
    sequential = sum(result.sequential for result in timed)
    if not timed or not interleaved + sequential:
        return "unknown"
    if interleaved == len(timed):
        return "interleaved"
    return "sequential" if sequential == len(timed) else "mixed"
