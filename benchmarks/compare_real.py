"""The gate on real launches: a build against itself, and against one whose every step takes 10 % longer.

    python -m benchmarks.compare_real [--blocks 5] [--iterations 20] [--out FOLDER]

The same sweep of the built-in tiny model is launched as three builds in turn, a fresh process each, on CPU. All three
are this bench under an interpreter of their own: a script that keeps the worker on one processor, fixes the seed of
Python's hashes, and, for the slow build, makes transformers wait at the end of each step for a tenth of the time that
the step took. bench itself is the same and knows nothing of it. A block is one launch of each build, all three alive at
once and taking turns at each call of `generate`, as with `bench ab --interleave calls`: what the machine does meanwhile
falls on all three alike. Who goes first changes from block to block. One launch before the first block is thrown away.

Ends with 0 if nothing of the same build was flagged and everything of the slow one, else with 1.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.compare.ab import Turn, collect, launch, session

SHARE = 0.10
BUILDS = {"base": 0.0, "same": 0.0, "slow": SHARE}
"""Share of a step by which each build lengthens it."""
SWEEP = ("model=tiny", "precision=fp32", "device=cpu", "env.OMP_NUM_THREADS=1", "env.PYTHONHASHSEED=0",
         "lengths=64/32", "batch_size=[2,8]", "num_beams=[1,4]", "warmup=2")  # fmt: skip

WORKER = """
import os, runpy, sys, time
if sys.argv[2:3] == ["bench.worker"]:
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    share = SHARE
    if share:
        import transformers
        from transformers.generation.stopping_criteria import StoppingCriteriaList
        began = [0.0]

        def wait():
            until = time.perf_counter() + share * (time.perf_counter() - began[0])
            while time.perf_counter() < until:
                pass

        def slow_generate(self, *args, _generate=transformers.GenerationMixin.generate, **kwargs):
            began[0] = time.perf_counter()
            return _generate(self, *args, **kwargs)

        def slow_step(self, *args, _step=StoppingCriteriaList.__call__, **kwargs):
            wait()  # the step ends where its observers are told of it
            began[0] = time.perf_counter()
            return _step(self, *args, **kwargs)

        transformers.GenerationMixin.generate = slow_generate
        StoppingCriteriaList.__call__ = slow_step
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def interpreter(folder: Path, name: str, share: float) -> Path:
    """An executable that runs this Python, each step of `generate` made longer by `share` of itself."""
    place = folder / name / "bin"
    place.mkdir(parents=True)
    (place / "worker.py").write_text(WORKER.replace("SHARE", str(share)))
    python = place / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{place}/worker.py" "$@"\n')
    python.chmod(0o755)
    return python


def turns(blocks: int) -> list[Turn]:
    """Every order of the builds in turn, each followed by its reverse."""
    orders = [order for half in itertools.permutations(BUILDS) if half < half[::-1] for order in (half, half[::-1])]
    return [
        Turn(side, block + 1, place)
        for block in range(blocks)
        for place, side in enumerate(orders[block % len(orders)], 1)
    ]


def measure(out: Path, blocks: int, iterations: int) -> None:
    """All launches, and a table of results per build."""
    run = [sys.executable, "-m", "bench", "run", "launches=1", *SWEEP]
    pythons = {name: interpreter(out / "python", name, share) for name, share in BUILDS.items()}
    words = {
        name: shlex.join([*run, f"iterations={iterations}", f"python={python}"]) for name, python in pythons.items()
    }
    launch(
        [*run, "iterations=1", f"python={pythons['base']}", f"results={out}/discarded"], out / "discarded", out, 0, None
    )
    planned = turns(blocks)
    session(planned, words, out, at_once=True, cool_down=0, timeout=None)
    collect(out, planned)


def verdicts(out: Path, candidate: str) -> tuple[list[str], int, int]:
    """A row per metric: what the gate said of each cell, and by how much the cells changed. Cells flagged, and all."""
    path = out / f"{candidate}.csv"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "compare", out / "base", out / candidate, "--ignore", "stack", "--all",
         "--format", "table", "--out", f"csv={path}"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    sys.stderr.write(done.stdout + done.stderr)
    found: dict[str, list[dict[str, str]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["metric"], []).append(row)
    lines = []
    for metric, cells in found.items():
        counts = Counter(row["verdict"] for row in cells)
        ratios = sorted(float(row["ratio"]) for row in cells if row["ratio"])
        errors = sorted(float(row["se"]) for row in cells if row["se"])
        lines.append(
            f"| {candidate} | {metric} | {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())} "
            f"| {ratios[0]:.3f} to {ratios[-1]:.3f} | {100 * errors[0]:.1f} to {100 * errors[-1]:.1f} % |"
        )
    cells = [row for rows in found.values() for row in rows]
    flags = ("regressed",) if BUILDS[candidate] else ("regressed", "improved")
    return lines, sum(row["verdict"] in flags for row in cells), len(cells)


def main() -> int:
    """Print a row per candidate and metric."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--out", type=Path, help="keep the results in this new folder")
    given = parser.parse_args()
    start = time.monotonic()
    with ExitStack() as stack:
        out = (given.out or Path(stack.enter_context(TemporaryDirectory()))).absolute()
        measure(out, given.blocks, given.iterations)
        same, flagged, _ = verdicts(out, "same")
        slow, found, of = verdicts(out, "slow")
        print("| candidate | metric | verdicts | ratios | standard errors |\n|---|---|---|---|---|")
        print("\n".join([*same, *slow]))
    print(f"\n{given.blocks} blocks in {time.monotonic() - start:.0f} s, {os.cpu_count()} processors")
    print(f"same build: {flagged} of {of} flagged; slow build: {found} of {of} flagged")
    return int(flagged > 0 or found < of)


if __name__ == "__main__":
    sys.exit(main())
