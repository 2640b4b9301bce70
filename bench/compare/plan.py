"""`bench compare plan`: launches per side that each cell needs, from its noise floor."""

from __future__ import annotations

import sys

import numpy as np

from ..errors import ConfigError
from .amounts import fraction
from .arguments import Parser
from .kernels import MOST_LAUNCHES, launches_needed, resolvable
from .margins import DEFAULT, OTHER
from .noise import read_floor
from .text import metric, percent


def run(argv: list[str]) -> int:
    """Print the table, most demanding cells first. Raises BenchError."""
    p = Parser(prog="bench compare plan", description="How many launches per side each cell needs.")
    p.add_argument("--noise-floor", required=True, metavar="FILE", help="from bench compare noise")
    p.add_argument("--mde", default="3%", metavar="3%", help="change from none that is to be seen (3%%)")
    p.add_argument("--power", type=float, default=0.8, help="how surely (0.8)")
    p.add_argument("--alpha", type=float, default=0.05)
    p.add_argument("--metrics", default="ttft_s,tpot_s", help="comma-separated (ttft_s,tpot_s)")
    args = p.parse_args(argv)
    if not 0.5 <= args.power < 1:
        raise ConfigError(f"--power {args.power} is out of range: expected 0.5 up to 1")
    wanted = args.metrics.split(",")
    entries = [entry for entry in read_floor(args.noise_floor).cells if entry["metric"] in wanted]
    if not entries:
        raise ConfigError(f"{args.noise_floor} has no {' or '.join(wanted)}")
    sd = np.array([entry["launch_sd"] for entry in entries])
    margin = np.log1p([DEFAULT.get(entry["metric"], OTHER) for entry in entries])
    gap = np.full(len(sd), np.log1p(fraction(args.mde)))
    see = launches_needed(gap, sd, resolvable(args.alpha / 2, args.power))
    prove = launches_needed(margin, sd, resolvable(args.alpha, args.power, tails=2))
    varying = [name for name in entries[0]["key"] if len({entry["key"].get(name) for entry in entries}) > 1]
    rows = [("cell", "metric", "launch SD", f"K to see {args.mde}", "K to prove unchanged")]
    for i in np.argsort(-sd):
        cell = " ".join(f"{name}={entries[i]['key'].get(name)}" for name in varying) or entries[i]["key"].get(
            "model", ""
        )
        rows.append((cell, metric(entries[i]["metric"]), percent(sd[i], 2), _launches(see[i]), _launches(prove[i])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    sys.stdout.write(f"all cells: launches={_launches(see.max())} to see {args.mde} with {args.power:.0%} power\n")
    return 0


def _launches(k: float) -> str:
    return f"{k:.0f}" if np.isfinite(k) else f">{MOST_LAUNCHES}"
