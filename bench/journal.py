"""`journal.jsonl`: everything that happened in a results folder, one JSON object per line, in order.

Lines are appended and fsynced by the worker while it runs, and by the parent when a worker died. Kinds: `phase` (what
the worker does now), `start` (a cell began), `record`, `evaluation` and `failure` (its outcome). A cell's last outcome
wins. A torn last line, left by a process that was killed while writing, is ignored when read and closed off by the next
append.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import ResultsError
from .record import Outcome, from_json, to_json

NAME = "journal.jsonl"


class Journal:
    """The journal of one results folder. Raises ResultsError when it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def outcome(self, outcome: Outcome) -> None:
        """Append an outcome."""
        self.append(to_json(outcome))

    def append(self, line: Mapping[str, Any], sync: bool = True) -> None:
        """Append one line: either all of it is in the file afterwards, or the file is as it was."""
        data = json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    data = b"\n" + data
                self._write_all(handle, data, size)
                if sync:
                    os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise ResultsError(
                f"cannot write {self.path}: {error.strerror}. Everything measured so far is kept; "
                f"make room or choose another folder with results=DIR, then run the same command again"
            ) from error

    @staticmethod
    def _write_all(handle: int, data: bytes, size: int) -> None:
        try:
            while data:
                data = data[os.write(handle, data) :]
        except OSError:
            os.ftruncate(handle, size)
            raise

    def lines(self, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Each complete line from byte `offset` on, with the offset after it. Empty when there is no journal yet."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResultsError(f"cannot read {self.path}: {error.strerror}") from error
        with file:
            file.seek(offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                offset += len(raw)
                try:
                    line = json.loads(raw)
                except ValueError:  # a torn line that a later append closed off
                    continue
                if isinstance(line, dict) and "kind" in line:  # else somebody else's
                    yield line, offset

    def outcomes(self) -> dict[tuple[str, int], Outcome]:
        """The last outcome of every (cell id, launch), in the order in which they first appeared."""
        found: dict[tuple[str, int], Outcome] = {}
        for line, _ in self.lines():
            if line["kind"] in ("record", "evaluation", "failure"):
                try:
                    found[line["cell"], line["launch"]] = from_json(line)
                except (KeyError, TypeError, AttributeError) as error:
                    raise ResultsError(
                        f"{self.path} holds a {line['kind']} that this version of bench cannot read: {error!r}"
                    ) from error
        return found


class NoJournal(Journal):
    """What ranks other than the first have: the first writes for all."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def append(self, line: Mapping[str, Any], sync: bool = True) -> None:
        """Nothing."""


def write_lines(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write a new file of JSON objects, one per line. Raises ResultsError."""
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(item, separators=(",", ":")) + "\n" for item in items)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}") from error


def log_tail(path: Path, lines: int = 40) -> tuple[str, ...]:
    """The last lines of a log, none when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            return tuple(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ()
