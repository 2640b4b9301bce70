"""optimum-benchmark: `benchmark.json` (configuration and report) or `benchmark_report.json` with its config beside it.

TPOT is decode / (N - 1): the tool's own per-token series counts early iterations many times and contains prefills.
Medians over iterations; memory in MB of 10^6 bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ResultsError
from . import Row, precision

NAME = "optimum-benchmark report"
SCHEMA = "optimum-benchmark"


def matches(path: Path, head: str) -> bool:
    """Its file names, or a load_model section with the memory figures that only it has."""
    return path.name in ("benchmark_report.json", "benchmark.json") or (
        head.lstrip().startswith("{") and '"load_model"' in head and '"max_ram"' in head
    )


def read(path: Path) -> list[Row]:
    """One row per report."""
    try:
        data = json.loads(path.read_text())
        beside = path.with_name("benchmark_config.json")
        config = data.get("config") or (json.loads(beside.read_text()) if beside.exists() else {})
        report = data.get("report", data)
        row = {**_key(config, path), **_metrics(report, config.get("scenario") or {})}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: damaged optimum-benchmark report ({error!r})") from error
    if not row.keys() & {"ttft_s", "tpot_s", "e2e_s"}:
        raise ResultsError(f"{path}: no prefill, decode or generate latency in it")
    return [row]


def _key(config: dict[str, Any], path: Path) -> Row:
    backend, environment = config.get("backend") or {}, config.get("environment") or {}
    scenario = config.get("scenario") or {}
    shapes, generate = scenario.get("input_shapes") or {}, scenario.get("generate_kwargs") or {}
    beams = generate.get("num_beams", 1)
    dtype = backend.get("torch_dtype") or backend.get("dtype") or ""
    return {
        "model": str(backend.get("model") or config.get("name") or path.parent.name),
        "weights": "random" if backend.get("no_weights") else "real",
        "engine": str(backend.get("name") or ""),
        "precision": str(backend.get("quantization_scheme") or precision(str(dtype))),
        "decoding": "greedy" if beams == 1 else "beam",
        "num_beams": beams,
        "batch_size": shapes.get("batch_size", ""),
        "input_tokens": shapes.get("sequence_length", ""),
        "output_tokens": _tokens(scenario) or "",
        "device": str(backend.get("device") or ""),
        "task": "generate",
        "launch": 1,
        "status": "ok",
        "torch": str(backend.get("version") or ""),
        "transformers": str(environment.get("transformers_version") or ""),
        "cpu": str(environment.get("cpu") or "").strip(),
        "device_name": ", ".join(sorted(set(environment.get("gpu") or []))),
        "schema": SCHEMA,
    }


def _tokens(scenario: dict[str, Any]) -> int | None:
    return (scenario.get("generate_kwargs") or {}).get("max_new_tokens") or scenario.get("new_tokens")


def _metrics(report: dict[str, Any], scenario: dict[str, Any]) -> Row:
    row: Row = {}
    steps = (_tokens(scenario) or 1) - 1
    sections = (
        ("ttft_s", "prefill", 1),
        ("tpot_s", "decode", steps),
        ("e2e_s", "generate", 1),
        ("load_s", "load_model", 1),
    )
    for name, section, divisor in sections:
        latency = (report.get(section) or {}).get("latency")
        if latency and divisor:
            row[name] = latency["p50"] / divisor
    memory = [(report.get(section) or {}).get("memory") or {} for section in ("prefill", "decode", "generate")]
    for field in ("max_allocated", "max_ram"):
        peaks = [item[field] for item in memory if item.get(field)]
        if peaks:
            return {**row, "peak_memory_bytes": max(peaks) * 1e6}
    return row
