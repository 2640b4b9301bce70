"""The text that an algorithm learns from: a local file."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import LoadError

LENGTH = 4000
"""Characters of a passage that plain text is cut into: about 1000 tokens."""


def texts(file: str | None) -> list[str]:
    """The passages of a .jsonl file with rows of {"text": ...}, or of plain text. Raises LoadError."""
    path = Path(file or "")
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            found = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
        else:
            found = [content[start : start + LENGTH] for start in range(0, len(content), LENGTH)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f'precision.calibration={path.name} is no text: rows of {{"text": ...}} in a .jsonl file, or plain text, '
            f"are needed ({type(error).__name__}: {error})"
        ) from error
    if not found:
        raise LoadError(f"precision.calibration={path.name} is empty")
    return found
