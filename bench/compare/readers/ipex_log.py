"""Logs of IPEX `run_generation.py`, `run_generation_with_deepspeed.py` and `run_generation_woq.py`.

The figures are means over the iterations after the warm-up, in seconds with 3, 5 or 6 decimals (XPU) or milliseconds
(CPU); E2E includes tokenising and detokenising. mpirun prefixes each line with `[rank]`: the slowest rank counts. A run
without a summary died.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import Row, precision

NAME = "IPEX run_generation log"
SCHEMA = "ipex-run_generation"

_VALUE = r"([0-9.]+(?:[eE][-+]?\d+)?) (sec|ms)"
_METRICS = {
    "e2e_s": re.compile(rf"Inference latency: {_VALUE}"),
    "ttft_s": re.compile(rf"First token average latency: {_VALUE}"),
    "tpot_s": re.compile(rf"Average 2\.\.\. latency: {_VALUE}"),
    "itl_p90_s": re.compile(rf"P90 2\.\.\. latency: {_VALUE}"),
    "itl_p99_s": re.compile(rf"P99 2\.\.\. latency: {_VALUE}"),
}
_SECONDS = {"sec": 1.0, "ms": 1e-3}
_STARTING = re.compile(r"\*\*\* Starting to generate (\d+) tokens for (\S+) tokens with num_beams=(\d+)")
_NAMESPACE = re.compile(r"Namespace\((model_id=.*)\)")
_FOLDER = re.compile(r"^beam(\d+)_bs(\d+)_input(\d+)_out(\d+)(?:_ranknum(\d+))?$")
_OOM = re.compile(r"out of memory|OUT_OF_(?:DEVICE_|HOST_)?(?:MEMORY|RESOURCES)", re.IGNORECASE)


def matches(path: Path, head: str) -> bool:
    """A summary line, the starting line, or the Namespace that the scripts print first."""
    return bool(_STARTING.search(head) or _NAMESPACE.search(head) or any(m.search(head) for m in _METRICS.values()))


def read(path: Path) -> list[Row]:
    """One row per combination of lengths and beams in the log; a failure row for one without a summary."""
    lines = [re.sub(r"^\s*\[\d+\] ?", "", line) for line in path.read_text(errors="replace").splitlines()]
    text = "\n".join(lines)
    key = _key(text, path)
    # Every rank announces the same run, so announcements that repeat the one before do not start a new run.
    starts = list(_STARTING.finditer(text))
    runs = [start for i, start in enumerate(starts) if i == 0 or start[0] != starts[i - 1][0]]
    if not runs:
        return [{**key, **_outcome(text)}]
    ends = [match.start() for match in runs[1:]] + [len(text)]
    return [
        {
            **key,
            "output_tokens": run[1],
            "input_tokens": run[2],
            "num_beams": run[3],
            "decoding": "greedy" if run[3] == "1" else "beam",
            **_outcome(text[run.start() : end]),
        }
        for run, end in zip(runs, ends, strict=True)
    ]


def _outcome(text: str) -> Row:
    row: Row = {}
    steps: list[float] = []
    for name, pattern in _METRICS.items():
        found = pattern.findall(text)
        if found:
            if name in ("ttft_s", "tpot_s"):
                steps += [10.0 ** -len(value.partition(".")[2]) * _SECONDS[unit] for value, unit in found]
            row[name] = max(float(f"{float(value) * _SECONDS[unit]:.12g}") for value, unit in found)
    if not row:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "empty log")
        return {"status": "oom" if _OOM.search(text) else "error", "error": last[:200]}
    return {"status": "ok", **row, **({"resolution_s": max(steps)} if steps else {})}


def _key(text: str, path: Path) -> Row:
    namespace = _NAMESPACE.search(text)
    flags = dict(re.findall(r"(\w+)=('[^']*'|\"[^\"]*\"|\[[^\]]*\]|[^,]*)", namespace[1])) if namespace else {}
    flags = {name: value.strip("'\"[] ") for name, value in flags.items()}
    place = next((i for i, part in enumerate(path.parts) if _FOLDER.match(part)), None)
    folder = _FOLDER.match(path.parts[place]) if place is not None else None
    beams, batch, tokens_in, tokens_out, ranks = folder.groups() if folder else (None,) * 5
    num_beams = "1" if flags.get("greedy") == "True" else flags.get("num_beams") or beams or "4"
    quantised = "woq_algo" in flags or flags.get("woq") == "True" or "int4_perf" in path.parts
    row: Row = {
        "model": flags.get("model_id") or (path.parts[place - 1] if place else path.stem),
        "engine": "ipex" if "woq_algo" in flags or flags.get("ipex", "True") == "True" else "eager",
        "precision": "woq_int4" if quantised else precision(flags.get("dtype", "float16")),
        "decoding": "greedy" if num_beams == "1" else "beam",
        "num_beams": num_beams,
        "batch_size": flags.get("batch_size") or batch or "1",
        "input_tokens": flags.get("input_tokens") or tokens_in or "",
        "output_tokens": flags.get("max_new_tokens") or tokens_out or "",
        "device": flags.get("device", "xpu"),
        "world_size": ranks or "1",
        "tp": "deepspeed" if ranks or "local_rank" in flags else "none",
        "task": "generate",
        "launch": 1,
        "warmup": flags.get("num_warmup", ""),
        "schema": SCHEMA,
    }
    return {name: value for name, value in row.items() if value != ""}
