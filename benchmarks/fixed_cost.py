"""What does a run cost beside measuring? 12 cells on a 4-layer hidden-256 Llama: wall time that is neither warm-up nor
measurement, from the start of the command to its end, with an empty cache of peaks (so the probe is in it).

    python benchmarks/fixed_cost.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import bench.table

OVERRIDES = ("model=tiny", "precision=fp32", "device=cpu", "lengths=[64/32,128/32,256/32]", "batch_size=[1,4]",
             "num_beams=[1,4]", "iterations=10", "warmup=2")  # fmt: skip


def once(cache: str) -> tuple[float, float]:
    """Wall time of the command, and the part of it that warm-ups and iterations took, s."""
    with TemporaryDirectory() as folder:
        results = f"{folder}/results"
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "bench", "run", *OVERRIDES, f"results={results}"],
            env={**os.environ, "XDG_CACHE_HOME": cache},
            check=True,
            capture_output=True,
        )
        wall = time.perf_counter() - start
        measured = sum(
            item.e2e_s for record in bench.table.outcomes(results) for item in (*record.warmups, *record.iterations)
        )
    return wall, measured


def main() -> None:
    """Print the table: the first run on a machine, and a later one."""
    print("| 12 cells | wall | warm-up and measuring | the rest |")
    print("|---|---:|---:|---:|")
    with TemporaryDirectory() as cache:
        for name in ("first run on a machine", "later run"):
            wall, measured = once(cache)
            print(f"| {name} | {wall:.1f} s | {measured:.1f} s | {wall - measured:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
