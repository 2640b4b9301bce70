"""How much processor time does the parent take while a worker measures? Share of one core, between the first and the
last outcome of a run of a few cells.

    python benchmarks/quiet_parent.py [overrides of bench run]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

OVERRIDES = ("model=tiny", "precision=fp32", "device=cpu", "lengths=256/128", "batch_size=[1,2,4,8]", "num_beams=4",
             "iterations=20")  # fmt: skip


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its children not included, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(overrides: list[str]) -> None:
    """Print the share."""
    with TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", "run", *(overrides or OVERRIDES), f"results={folder}/results"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        journal = Path(folder) / "results" / "journal.jsonl"
        samples: list[tuple[float, float, int]] = []
        while process.poll() is None:
            if journal.exists():
                lines = journal.read_text().count('"kind":"record"')
                started = '"phase":"measuring"' in journal.read_text()
                if started:
                    samples.append((time.monotonic(), cpu_seconds(process.pid), lines))
            time.sleep(0.25)
        last = max(count for _, _, count in samples)
        inside = [sample for sample in samples if sample[2] < last]
        wall = inside[-1][0] - inside[0][0]
        used = inside[-1][1] - inside[0][1]
    print("| measured for | outcomes in it | CPU time of the parent | share of one core |")
    print("|---:|---:|---:|---:|")
    print(f"| {wall:.1f} s | {inside[-1][2] - inside[0][2]} | {used * 1e3:.0f} ms | {used / wall:.2%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
