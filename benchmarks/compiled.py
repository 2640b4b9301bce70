"""engine=compiled beside the others: the tables of docs/compiled.md, one GPU, one command after the other.

    python -m benchmarks.compiled FOLDER [PART...]

Each part is one `bench run` into a folder of its own below FOLDER, with random weights, 1024/128, four iterations after
one warm-up; all of them take half an hour on an H200. What is there already is not measured again. Compiled code and
tuned block sizes are kept in FOLDER, too, so that the first process with a model starts cold; `again` is the second.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import AutoConfig

from bench.errors import BenchError
from bench.metrics import values
from bench.record import Record
from bench.table import outcomes

COMMON = ("-m", "weights=random", "lengths=1024/128", "iterations=4", "warmup=1")
LLAMA, SMALL = "model=llama-2-7b", "model=llama-3.2-1b"
INT4 = ("precision=woq_int4", "precision.group_size=128", "precision.compute_dtype=fp16")
BOTH = ("precision=fp16", "engine=compiled,eager", "num_beams=[1,4]")
FAMILIES = ("qwen3-8b", "llama-3-8b", "phi-3-mini-4k-instruct", "gpt-j-6b", "opt-6.7b", "bloom-7b1")
DEFAULTS = ("minicpm3", "qwen3_5_text", "olmoe")
"""Latent attention, linear attention and experts, in the sizes that transformers takes when nothing is said."""
PARTS = {
    "llama-2": (LLAMA, "precision=fp16", "engine=compiled,eager,static", "num_beams=[1,4]"),
    "again": (LLAMA, "precision=fp16", "engine=compiled", "num_beams=1"),
    "launched-prompts": (LLAMA, "precision=fp16", "engine=compiled", "engine.capture_prompts=false", "num_beams=1"),
    "batches": (LLAMA, "precision=fp16", "engine=compiled", "num_beams=1", "batch_size=[8,32]"),
    "int4": (LLAMA, *INT4, "engine=compiled", "num_beams=[1,4]"),
    **{one: (f"model={one}", *BOTH) for one in FAMILIES},
    **{one: (f"model={{folder}}/models/{one}", *BOTH) for one in DEFAULTS},
    "fixed-sizes": (LLAMA, "precision=fp16", "engine=compiled", "engine.tune=false", "num_beams=[1,4]"),
    "fixed-sizes-int4": (LLAMA, *INT4, "engine=compiled", "engine.tune=false", "num_beams=[1,4]"),
    "capture": (SMALL, "precision=fp16", "engine=compiled", "engine.capture=device,torch,none", "num_beams=1"),
    "formats": (LLAMA, "precision=fp8,int8", "engine=compiled", "num_beams=[1,4]"),
}
COLUMNS = ("part", "model", "engine", "weights", "batch", "beams", "TTFT ms", "TPOT ms", "× floor", "× eager",
           "first token s", "first call s", "tuning s", "peak MiB", "tokens")  # fmt: skip


def main(folder: Path, parts: Iterable[str]) -> int:
    """Measure what is missing and print the table; 1 when some cells failed."""
    worst = 0
    for part in parts:
        worst = max(worst, measure(folder, part))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for line in table(folder, parts):
        print(line)
    return worst


def measure(folder: Path, part: str) -> int:
    """`bench run` with the interpreter that runs this; its exit code."""
    caches = {name: str(folder.absolute() / name.lower()) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    command = [sys.executable, "-m", "bench", "run", *COMMON, *asked(folder, part), f"results={folder / part}"]
    return subprocess.run(command, env=os.environ | caches, check=False).returncode


def asked(folder: Path, part: str) -> list[str]:
    """What the part asks `bench run` for; models that are not among bench's are made in `folder`."""
    if part in DEFAULTS:
        AutoConfig.for_model(part).save_pretrained(folder / "models" / part)
    return [one.format(folder=folder.absolute()) for one in PARTS[part]]


def table(folder: Path, parts: Iterable[str]) -> Iterator[str]:
    """A line for each measured cell. The first token and the first call are those of the process's first warm-up.

    `× eager` is eager's TPOT over the row's, of the same part; tokens are the `same` when warm-up and iterations agree.
    """
    for part in parts:
        try:
            found = outcomes(folder / part)
        except BenchError as error:
            yield f"| {part} | {error} |"
            continue
        eager = {one.axes["num_beams"]: values(one)["tpot_s"] for one in found
                 if isinstance(one, Record) and one.axes["engine"] == "eager"}  # fmt: skip
        for one in found:
            axes = one.axes
            name = [part, axes["model"], axes["engine"], axes["precision"], axes["batch_size"], axes["num_beams"]]
            if not isinstance(one, Record):
                yield f"| {' | '.join(map(str, name))} | {one.status}: {one.error} |"
                continue
            found_values = values(one)
            hashes = {each.output_hash for each in itertools.chain(one.warmups, one.iterations)}
            figures = (
                1e3 * found_values["ttft_s"], 1e3 * found_values["tpot_s"], found_values["tpot_over_floor"],
                eager.get(axes["num_beams"], math.nan) / found_values["tpot_s"],
                one.warmups[0].steps_s[0], found_values["first_call_s"], one.tuning_s, one.peak_memory_bytes / 2**20,
            )  # fmt: skip
            written = ["" if math.isnan(each) else f"{each:.4g}" for each in figures]
            yield f"| {' | '.join([*map(str, name), *written, 'same' if len(hashes) == 1 else 'differ'])} |"


if __name__ == "__main__":
    wanted = sys.argv[2:] or list(PARTS)
    if len(sys.argv) < 2 or not set(wanted) <= set(PARTS):
        sys.exit(f"usage: python -m benchmarks.compiled FOLDER [{'|'.join(PARTS)}]...")
    sys.exit(main(Path(sys.argv[1]), wanted))
