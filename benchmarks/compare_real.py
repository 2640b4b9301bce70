"""The gate on real launches: a build against itself, and against one that is 10 % slower by design.

    python -m benchmarks.compare_real [blocks]

Both sides are measured with `bench ab`, interleaved, on CPU with one thread. The slow side's interpreter is a script
that wraps the model's forward pass in a busy wait before the worker starts; bench itself is not touched.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

OVERRIDES = ("model=tiny", "precision=fp32", "device=cpu", "env.OMP_NUM_THREADS=1", "lengths=64/32",
             "batch_size=[1,4]", "num_beams=[1,4]", "iterations=8", "warmup=2")  # fmt: skip

SLOW = """
import runpy, sys, time
if sys.argv[2:3] == ["bench.worker"]:
    from transformers.models.llama.modeling_llama import LlamaForCausalLM
    forward = LlamaForCausalLM.forward
    def slower(self, *args, **kwargs):
        start = time.perf_counter()
        output = forward(self, *args, **kwargs)
        end = time.perf_counter()
        until = end + SHARE * (end - start)
        while time.perf_counter() < until:
            pass
        return output
    import functools
    LlamaForCausalLM.forward = functools.wraps(forward)(slower)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def interpreter(folder: Path, name: str, share: float) -> Path:
    """An executable that runs this Python, the forward pass of Llama made longer by `share` of itself."""
    place = folder / name / "bin"
    place.mkdir(parents=True)
    (place / "slow.py").write_text(SLOW.replace("SHARE", str(share)))
    python = place / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{place}/slow.py" "$@"\n')
    python.chmod(0o755)
    return python


def verdicts(folder: Path, title: str, share: float, blocks: str) -> str:
    """One row: what the gate said of each cell's TTFT and TPOT."""
    name = f"share-{share}"
    same, other = interpreter(folder, f"{name}/same", 0.0), interpreter(folder, f"{name}/other", share)
    out = folder / f"{name}.csv"
    subprocess.run(
        [sys.executable, "-m", "bench", "ab", "--a-python", same, "--b-python", other, "--blocks", blocks,
         "--out", folder / name / "ab", "--compare", f"--ignore stack --all --format csv --out csv={out}",
         *OVERRIDES],
        check=False,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    counts: dict[str, Counter[str]] = {}
    with out.open() as file:
        for row in csv.DictReader(file):
            counts.setdefault(row["metric"], Counter())[row["verdict"]] += 1
    return "| " + " | ".join([title, *(f"{metric}: {_words(count)}" for metric, count in counts.items())]) + " |"


def _words(count: Counter[str]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in count.most_common())


def main(arguments: list[str]) -> None:
    """Print both rows."""
    blocks = arguments[0] if arguments else "5"
    print("| candidate | | |\n|---|---|---|")
    with TemporaryDirectory() as folder:
        print(verdicts(Path(folder), "the same build", 0.0, blocks), flush=True)
        print(verdicts(Path(folder), "forward 12 % longer", 0.12, blocks), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
