"""CSV files of ipex-llm's all-in-one benchmark: means over trials, ms with 2 decimals, no launch and no failure."""

from __future__ import annotations

import csv
from pathlib import Path

from ...errors import ResultsError
from . import Row

NAME = "ipex-llm all-in-one CSV"
SCHEMA = "ipex-llm-all-in-one"

_FIRST = "1st token avg latency (ms)"
_REST = "2+ avg latency (ms/token)"


def matches(path: Path, head: str) -> bool:
    """The header names the first-token latency in its own words."""
    return _FIRST in head.split("\n", 1)[0]


def read(path: Path) -> list[Row]:
    """One row per line; "in-out" is split, a GB is 2^30 bytes as the tool computes it."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [_row(line, path, number) for number, line in enumerate(csv.DictReader(file), 2)]


def _row(line: dict[str, str], path: Path, number: int) -> Row:
    flags = [f"{flag}={line[flag]}" for flag in ("streaming", "use_fp16_torch_dtype") if line.get(flag)]
    try:
        tokens_in, tokens_out = line["input/output tokens"].split("-")
        row: Row = {
            "model": line["model"],
            "engine": f"ipex_llm({','.join(flags)})" if flags else "ipex_llm",
            "precision": line.get("low_bit") or "",
            "num_beams": line.get("num_beams") or 1,
            "batch_size": line.get("batch_size") or 1,
            "input_tokens": int(tokens_in),
            "output_tokens": int(tokens_out),
            "task": "generate",
            "launch": 1,
            "status": "ok",
            "ttft_s": float(f"{float(line[_FIRST]) * 1e-3:.12g}"),
            "tpot_s": float(f"{float(line[_REST]) * 1e-3:.12g}"),
            "schema": SCHEMA,
            "resolution_s": 1e-5,
        }
        for name, column, factor in (
            ("load_s", "model loading time (s)", 1.0),
            ("peak_memory_bytes", "peak mem (GB)", 2.0**30),
        ):
            value = line.get(column) or ""
            if value not in ("", "N/A") and float(value) > 0:
                row[name] = float(value) * factor
    except (KeyError, ValueError, TypeError) as error:
        raise ResultsError(f"{path}:{number}: not a row of ipex-llm's all-in-one benchmark ({error!r})") from error
    return row
