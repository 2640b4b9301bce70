"""Time `bench compare` on 10,000 rows against 10,000 rows, process start included, and the size of its HTML.

Run from the repository root: python -m benchmarks.compare_speed [ROWS] [LAUNCHES]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bench import schema
from bench.compare.columns import METRICS

REPEATS = 3


def table(rows: int, launches: int, seed: int) -> pd.DataFrame:
    """A full-width results.csv: every column of the registry, `rows` rows, all metrics with 1 % launch noise."""
    random = np.random.default_rng(seed)
    cells = rows // launches
    cell = np.repeat(np.arange(cells), launches)
    frame = pd.DataFrame({column.name: "constant" for column in schema.AXES}, index=range(cells * launches))
    frame["model"] = np.char.add("model-", (cell % 25).astype(str))
    frame["batch_size"] = 2 ** (cell // 25 % 8)
    frame["num_beams"] = np.where(cell // 200 % 2, 4, 1)
    frame["input_tokens"] = 32 * (1 + cell // 400)
    frame["output_tokens"] = 128
    frame["launch"] = np.tile(np.arange(1, launches + 1), cells)
    frame["status"], frame["error"] = "ok", ""
    for number, name in enumerate(METRICS):
        frame[name] = (0.01 * (1 + number) * (1 + cell)) * np.exp(0.01 * random.standard_normal(len(cell)))
    started = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(cell)), "s")
    info = {column.name: "constant" for column in (*schema.INFO, *schema.FINGERPRINT)}
    info |= {"schema": "1", "iterations": "10", "run": f"run-{seed}", "output_hash": "f00d"}
    extra = pd.DataFrame(info, index=frame.index)
    extra["started"] = started.astype(str)
    return pd.concat([frame, extra], axis=1)


def main() -> None:
    """Print one line per output format: best and worst of REPEATS runs."""
    rows, launches = (int(word) for word in (sys.argv[1:] + ["10000", "5"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{side}.csv" for side in "ab"]
        for seed, path in enumerate(paths):
            table(rows, launches, seed).to_csv(path, index=False)
        print(f"{rows} rows against {rows}, {launches} launches, {paths[0].stat().st_size / 1e6:.1f} MB each")
        for flags in (
            [],
            ["--metrics", "all"],
            ["--out", f"html={folder}/report.html"],
            ["--out", f"json={folder}/r.json"],
        ):
            seconds = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                command = [sys.executable, "-m", "bench.compare", *map(str, paths), *flags]
                code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
                seconds.append(time.perf_counter() - start)
                assert code in (0, 1), code
            shown = " ".join(word.replace(folder, "DIR") for word in flags) or "table"
            print(f"{shown:28} {min(seconds):.2f} s best, {max(seconds):.2f} s worst of {REPEATS}")
        print(f"HTML: {(Path(folder) / 'report.html').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
