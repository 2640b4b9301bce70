"""Results JSON of lm-evaluation-harness, with the per-document `samples_*.jsonl` of `--log_samples` beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ...errors import ResultsError
from . import Row, precision

NAME = "lm-eval results JSON"

_SOURCES = {"acc": ("acc", "exact_match"), "perplexity": ("perplexity", "word_perplexity")}


def matches(path: Path, head: str) -> bool:
    """A JSON object whose results have lm-eval's `metric,filter` keys."""
    return head.lstrip().startswith("{") and bool(
        re.search(r'"(acc|acc_norm|perplexity|exact_match|word_perplexity)(_stderr)?,[\w-]+":', head)
    )


def read(path: Path) -> list[Row]:
    """One row per task that reports acc, exact_match or perplexity; groups, which have no documents, are left out."""
    try:
        data = json.loads(path.read_text())
        results: dict[str, dict[str, Any]] = data["results"]
        groups = {name for name, members in (data.get("group_subtasks") or {}).items() if members}
        rows = [_row(data, task, scores, path) for task, scores in results.items() if task not in groups]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: damaged lm-eval results ({error!r})") from error
    rows = [row for row in rows if "acc" in row or "perplexity" in row]
    if not rows:
        raise ResultsError(f"{path}: no task in it reports acc, exact_match or perplexity")
    return rows


def _row(data: dict[str, Any], task: str, scores: dict[str, Any], path: Path) -> Row:
    config = data.get("config") or {}
    arguments = _arguments(config.get("model_args"))
    count = ((data.get("n-samples") or {}).get(task) or {}).get("effective", "")
    version, shots = (data.get("versions") or {}).get(task, "?"), (data.get("n-shot") or {}).get(task, 0)
    return {
        "model": str(data.get("model_name") or arguments.get("pretrained") or config.get("model") or path.stem),
        "precision": precision(str(arguments.get("dtype") or config.get("model_dtype") or "")),
        "device": re.sub(r":\d+$", "", str(config.get("device") or "")),
        "batch_size": str(config.get("batch_size") or ""),
        "task": task,
        "launch": 1,
        "status": "ok",
        **_score(scores),
        "n": count,
        "samples": _samples(path, task),
        "transformers": str(data.get("transformers_version") or ""),
        "git": str(data.get("git_hash") or ""),
        "schema": f"lm-eval {task} version {version}, {shots}-shot",
    }


def _score(scores: dict[str, Any]) -> Row:
    """The first filter of the first source that has a number, with its standard error."""
    row: Row = {}
    for name, sources in _SOURCES.items():
        numbers = [key for source in sources for key in scores if key.split(",")[0] == source]
        numbers = [key for key in numbers if isinstance(scores[key], (int, float))]
        if numbers:
            row[name] = scores[numbers[0]]
            error = scores.get("{}_stderr,{}".format(*numbers[0].split(",")) if "," in numbers[0] else "")
            if isinstance(error, (int, float)):
                row[f"{name}_stderr"] = error
    return row


def _arguments(given: Any) -> dict[str, Any]:
    """`model_args` is a string "a=b,c=d" in older files and an object in newer ones."""
    if isinstance(given, dict):
        return given
    return dict(item.split("=", 1) for item in str(given or "").split(",") if "=" in item)


def _samples(path: Path, task: str) -> str:
    """results_<time>.json belongs to samples_<task>_<time>.jsonl."""
    beside = path.with_name(f"samples_{task}{path.stem.removeprefix('results')}.jsonl")
    return beside.name if beside.exists() else ""
