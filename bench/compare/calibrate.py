"""`bench compare noise`: measure the noise floor from launches of one build."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..metrics import METRICS
from .arguments import Parser
from .command import write
from .compare import chosen
from .diagnostics import SERIES, cell_records, lag1, within_sd
from .kernels import Array
from .latency import launches_of
from .match import Match, match
from .model import plain
from .noise import FEWEST, KIND, VERSION
from .read import Side, read_side
from .selfcheck import self_check, words
from .settings import Settings

FINGERPRINT = ("device_name", "driver", "cpu", "governor", "hostname_hash", "torch")
"""What a floor belongs to: on another machine or stack it is used with a warning."""


def run(argv: list[str]) -> int:
    """Write the floor and say what it holds. Raises BenchError."""
    p = Parser(prog="bench compare noise", description="How far launches of one build scatter on this machine.")
    p.add_argument("results", nargs="+", help=f"at least {FEWEST} launches of one build")
    p.add_argument("--out", default="noise.json", metavar="FILE", help="noise floor to write (noise.json)")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    side = read_side(args.results)
    floor = calibrate(side, args.seed)
    write(Path(args.out), json.dumps(plain(floor), indent=1, allow_nan=False) + "\n")
    spread = sorted(entry["launch_sd"] for entry in floor["cells"])
    sys.stdout.write(
        f"{args.out}: {len(spread)} cells × metrics, launch SD {100 * spread[0]:.2f} to {100 * spread[-1]:.2f} %, "
        f"median {100 * spread[len(spread) // 2]:.2f} %\n"
    )
    if floor["self_check"]:
        sys.stdout.write(words(floor["self_check"]) + "\n")
    return 0


def calibrate(side: Side, seed: int = 0) -> dict[str, Any]:
    """The floor as plain data. Raises ConfigError when no cell has enough launches."""
    settings = Settings(all_metrics=True, seed=seed)
    matched = match(side, side, settings)
    records = cell_records(side, matched)
    cells = [
        entry
        for metric in chosen(matched, settings)[0]
        for entry in _metric(matched, metric, records)
        if METRICS[metric].kind != "proportion"
    ]
    if not cells:
        raise ConfigError(f"no cell has {FEWEST} successful launches: measure with launches={FEWEST} or more")
    frame = matched.base.frame
    fingerprint = {name: str(frame[name].iloc[-1]) for name in FINGERPRINT if name in frame}
    return {
        "kind": KIND,
        "version": VERSION,
        "created": datetime.date.today().isoformat(),
        "fingerprint": fingerprint,
        "cells": cells,
        "self_check": self_check(side, Settings(seed=seed)),
    }


def _metric(matched: Match, metric: str, records: dict[tuple[str, ...], list[Any]]) -> list[dict[str, Any]]:
    launches = launches_of(matched.base, metric, matched.cells)
    entries = []
    for cell in np.flatnonzero(launches.sample.n >= FEWEST).tolist():
        key = {name: values[cell] for name, values in matched.keys.items()}
        x = np.log(np.array(launches.of(cell)))
        inside = records.get(tuple(key.values()), [])
        logs = [np.log([SERIES[metric](i) for i in record.iterations]) for record in inside if metric in SERIES]
        entries.append(
            {
                "key": key,
                "metric": metric,
                "k": len(x),
                "value": float(np.exp(x.mean())),
                "launch_sd": float(x.std(ddof=1)),
                "lag1_launches": lag1([x]),
                "first_launch_effect": float(x[0] - x[1:].mean()),
                "drift_per_launch": _slope(x),
                "within_sd": within_sd(logs),
                "lag1_iterations": lag1(logs),
            }
        )
    return entries


def _slope(x: Array) -> float:
    """Least-squares slope of log values over the launch's place in time."""
    place = np.arange(len(x)) - (len(x) - 1) / 2
    return float((place * x).sum() / (place * place).sum())
