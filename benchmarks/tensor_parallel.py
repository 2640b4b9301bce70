"""What splitting a model over several devices gives: one device against `world_size` of them, in one session.

python benchmarks/tensor_parallel.py RANKS [OVERRIDE...]
python benchmarks/tensor_parallel.py 2 launcher=torchrun iterations=5

Llama-2-7B and 13B shapes with random fp16 weights, 1024/128, greedy and beams 4. It runs `bench run` twice into
results/tensor-parallel-RANKS and prints the table; what is there already is not measured again.
"""

from __future__ import annotations

import math
import subprocess
import sys

import bench

COMMON = ("-m", "model=llama-2-7b,llama-2-13b", "weights=random", "precision=fp16", "lengths=1024/128",
          "num_beams=[1,4]")  # fmt: skip


def main(ranks: int, *overrides: str) -> int:
    """Measure what is missing and print the table; 1 when some cells failed."""
    folder = f"results/tensor-parallel-{ranks}"
    of_launcher = [item for item in overrides if item.startswith("launcher")]
    others = [item for item in overrides if item not in of_launcher]
    split = ("launcher=mpirun", f"world_size={ranks}", "tp=deepspeed,transformers", *of_launcher)
    codes = [run(f"results={folder}", *COMMON, *others), run(f"results={folder}", *COMMON, *split, *others)]
    frame = bench.load(folder).sort_values(["model", "num_beams", "world_size", "tp"])
    alone = frame[frame.world_size == 1].set_index(["model", "num_beams"])
    print(
        "| model | beams | devices | tp | TTFT ms | TPOT ms | skew ms, median and largest | GiB per device | TPOT × |"
    )
    print("|---|---:|---:|---|---:|---:|---:|---:|---:|")
    for row in frame.itertuples():
        base = alone.tpot_s.get((row.model, row.num_beams), math.nan)
        skew = f"{row.skew_p50_s * 1e3:.3f}, {row.skew_max_s * 1e3:.2f}" if row.world_size > 1 else ""
        figures = f"{row.ttft_s * 1e3:.1f} | {row.tpot_s * 1e3:.2f} | {skew} | {row.peak_memory_bytes / 2**30:.1f}"
        measured = (
            f"{figures} | {base / row.tpot_s:.2f}" if row.status == "ok" else f"{row.status}: {row.error} | | | |"
        )
        print(f"| {row.model} | {row.num_beams} | {row.world_size} | {row.tp} | {measured} |")
    return max(codes)


def run(*arguments: str) -> int:
    """`bench run` with the interpreter that runs this."""
    return subprocess.run([sys.executable, "-m", "bench", "run", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
