"""llama-bench CSV, JSON and JSONL: a prompt test (pp), a generation test (tg), or both in one (pg).

pp: `avg_ns` is the prompt's time without sampling, close to TTFT. tg: `avg_ns / n_gen` is the TPOT. The average over
repetitions is used in all three formats, because CSV has nothing else.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ...errors import ResultsError
from . import Row

NAME = "llama-bench CSV, JSON or JSONL"
SCHEMA = "llama-bench"

_NOT_SETTINGS = {
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "test_time", "n_prompt", "n_gen",
    "model_filename", "model_type", "model_size", "model_n_params",
    "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
}  # fmt: skip


def matches(path: Path, head: str) -> bool:
    """`n_prompt` and `n_gen` beside `build_commit`, as a CSV header or as JSON keys."""
    where = head if head.lstrip()[:1] in ("[", "{") else head.split("\n", 1)[0]
    return all(name in where for name in ("build_commit", "n_prompt", "n_gen"))


def read(path: Path) -> list[Row]:
    """One row per test."""
    text = path.read_text()
    tests: list[dict[str, Any]]
    try:
        if text.lstrip().startswith("["):
            tests = json.loads(text)
        elif text.lstrip().startswith("{"):
            tests = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            tests = list(csv.DictReader(text.splitlines()))
        return [_row(test) for test in tests]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: damaged llama-bench output ({error!r})") from error


def _row(test: dict[str, Any]) -> Row:
    prompt, generated = int(test["n_prompt"]), int(test["n_gen"])
    seconds = float(test["avg_ns"]) * 1e-9
    # Every setting is part of the cell: averaging over one that a script did not know is how rows get lost.
    settings = ",".join(f"{name}={_plain(test[name])}" for name in sorted(test) if name not in _NOT_SETTINGS)
    row: Row = {
        "model": Path(str(test["model_filename"])).stem,
        "engine": f"llama.cpp({settings})",
        "precision": str(test["model_type"]).split(maxsplit=2)[-1],
        "num_beams": 1,
        "batch_size": 1,
        "input_tokens": prompt,
        "output_tokens": generated,
        "device": str(test.get("backends") or "").lower(),
        "task": "prefill" if not generated else "decode" if not prompt else "prefill+decode",
        "launch": 1,
        "status": "ok",
        "started": str(test.get("test_time") or ""),
        "device_name": str(test.get("gpu_info") or test.get("cpu_info") or ""),
        "cpu": str(test.get("cpu_info") or ""),
        "bench": f"llama.cpp {test['build_commit']}",
        "schema": SCHEMA,
    }
    if not generated:
        return {**row, "ttft_s": seconds, "prefill_tokens_per_s": prompt / seconds}
    if not prompt:
        return {**row, "tpot_s": seconds / generated, "decode_tokens_per_s": generated / seconds}
    return {**row, "e2e_s": seconds}


def _plain(value: object) -> str:
    """CSV writes booleans as 0 and 1, JSON as words: one spelling, so that the two formats meet."""
    return str(int(value)) if isinstance(value, bool) else str(value)
