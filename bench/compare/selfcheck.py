"""`bench compare self-check`: split the launches of one build into two sides and count the false alarms."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import ConfigError
from .arguments import Parser
from .compare import chosen
from .latency import latency
from .match import match
from .model import Result
from .read import Side, read_side
from .settings import Settings
from .thresholds import Thresholds

SPLITS = 20
FEWEST = 4


def run(argv: list[str]) -> int:
    """Print the realised false-alarm rate. Raises BenchError."""
    p = Parser(prog="bench compare self-check", description="Compare one build with itself and count false alarms.")
    p.add_argument("results", nargs="+", help=f"at least {FEWEST} launches of one build, 6 or more are better")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    found = self_check(read_side(args.results), Settings(seed=args.seed))
    if found is None:
        raise ConfigError(
            f"nothing to check: a split needs {FEWEST} launches in 20 cells, or 6 launches in fewer; raise launches="
        )
    sys.stdout.write(words(found) + "\n")
    return 0


def self_check(side: Side, settings: Settings) -> dict[str, Any] | None:
    """Flagged and total tests over up to SPLITS random halves; None when no half has enough launches for statistics.

    Launches are split as wholes, because a launch moves all its cells together.
    """
    launch = side.frame["run"] + "/" + side.frame["launch"]
    names = sorted(launch.unique())
    if len(names) < FEWEST:
        return None
    halves = list(combinations(names, len(names) // 2)) if len(names) <= 12 else []
    random = np.random.default_rng(settings.seed)
    if len(names) > 12:
        halves = [tuple(random.permutation(names)[: len(names) // 2]) for _ in range(SPLITS)]
    picked = [halves[i] for i in random.permutation(len(halves))[:SPLITS]]
    gate: list[Result] = []
    zero: list[Result] = []
    for half in picked:
        inside = launch.isin(half)
        # Blocks belong to an interleaved pair of builds and mean nothing within one of them.
        sides = [
            replace(side, frame=side.frame[mask].drop(columns="block", errors="ignore").reset_index(drop=True))
            for mask in (inside, ~inside)
        ]
        matched = match(sides[0], sides[1], settings)
        for metric in chosen(matched, settings)[0]:
            gate += latency(matched, metric, True, settings, Thresholds(), None)
            none = replace(settings, delta={"": 0.0}, abs_floor={metric: 0.0})
            zero += latency(matched, metric, True, none, Thresholds(), None)
    tested = [result for result in gate if result.tier == "T1"]
    if not tested:
        return None
    return {
        "splits": len(picked),
        "tests": len(tested),
        "flagged": sum(result.verdict in ("regressed", "improved") for result in tested),
        "slower_at_zero_margin": sum(r.verdict == "regressed" for r in zero if r.tier == "T1"),
        "alpha": settings.alpha,
    }


def words(found: dict[str, Any]) -> str:
    """The rates in a sentence."""
    tests, flagged, slower = found["tests"], found["flagged"], found["slower_at_zero_margin"]
    return (
        f"A/A: {flagged} of {tests} flagged at the margin ({100 * flagged / tests:.2f} %), {found['splits']} splits; "
        f"at margin 0 {slower} called slower ({100 * slower / tests:.1f} %, nominal {100 * found['alpha']:.0f} %)"
    )
