"""Per-document results of an accuracy task, as lm-eval writes them with `--log_samples`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ResultsError


@dataclass(frozen=True)
class Document:
    """What one side made of one document."""

    right: bool | None
    loglikelihood: float
    """NaN when the task has none."""
    identity: tuple[str, str]
    """prompt_hash and target_hash: the same document asked in the same way."""
    text: str
    answer: str
    target: str


Name = tuple[str, str, int]
"""Task (blank in a file of one task), doc_hash, and occurrence: a data set may hold one document twice."""


def read_documents(path: str) -> dict[Name, Document]:
    """Documents by name. Raises ResultsError."""
    found: dict[Name, Document] = {}
    seen: Counter[tuple[str, str]] = Counter()
    wanted: dict[str, Any] = {}
    for number, line in _lines(path):
        try:
            sample: dict[str, Any] = json.loads(line)
            name, document = (str(sample.get("task", "")), str(sample["doc_hash"])), _document(sample)
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path}:{number}: no lm-eval sample ({error!r})") from error
        # A task with several filters scores every document once per filter: the first filter counts.
        if sample.get("filter") == wanted.setdefault(name[0], sample.get("filter")):
            seen[name] += 1
            found[(*name, seen[name])] = document
    if not found:
        raise ResultsError(f"{path} has no samples")
    return found


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        with Path(path).open() as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"cannot read {path}: {error}") from error


def _document(sample: dict[str, Any]) -> Document:
    score = next((sample[name] for name in ("acc", "exact_match") if isinstance(sample.get(name), (int, float))), None)
    # lambada's `perplexity` of one document is its log-likelihood; the exponential of the mean is taken over all.
    likelihood = sample.get("perplexity")
    return Document(
        right=None if score is None else score >= 0.5,
        loglikelihood=float(likelihood) if isinstance(likelihood, (int, float)) else math.nan,
        identity=(str(sample.get("prompt_hash", "")), str(sample.get("target_hash", ""))),
        text=_short(sample.get("doc", "")),
        answer=_short(sample.get("filtered_resps", sample.get("resps", ""))),
        target=_short(sample.get("target", "")),
    )


def _short(value: Any, most: int = 300) -> str:
    if isinstance(value, list) and len(value) == 1:
        return _short(value[0], most)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = value["text"]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else "… " + text[-most:]
