"""Files, globs and folders of one side, in one frame of text columns: numbers become numbers where they are used."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..errors import ResultsError
from ..journal import NAME as JOURNAL
from ..journal import Journal
from ..metrics import METRICS
from ..table import row
from .columns import ALIASES, REGISTRY
from .readers import readers

FILE, LINE = "_file", "_line"
"""Where a row comes from, for error messages."""


@dataclass(frozen=True)
class Side:
    """All launches of one build."""

    name: str
    frame: pd.DataFrame
    """One row per cell and launch, text; blank is unknown. `run` and `launch` together name a fresh process."""
    files: tuple[Path, ...]


def read_side(paths: Sequence[str], name: str | None = None) -> Side:
    """Read everything that `paths` name. Raises ResultsError for what cannot be read, with the file and the line."""
    files = list(_files(paths))
    frames = [_read(file) for file in files]
    frame = pd.concat(frames, ignore_index=True).fillna("") if len(frames) > 1 else frames[0]
    return Side(name or " ".join(paths), frame, tuple(files))


def _files(paths: Iterable[str]) -> Iterable[Path]:
    for text in paths:
        found = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else [text]  # noqa: PTH207  a pattern
        if not found:
            raise ResultsError(f"no file matches {text}")
        for path in map(Path, found):
            if not path.exists():
                raise ResultsError(f"{path} does not exist")
            yield from _inside(path) if path.is_dir() else [path]


def _inside(folder: Path) -> list[Path]:
    """Our tables in and below `folder`; else our journals; else every file of a known format."""
    for name in ("results.csv", JOURNAL):
        direct = folder / name
        if direct.exists():
            return [direct]
    for pattern in ("results.csv", JOURNAL):
        if found := sorted(folder.rglob(pattern)):
            return found
    optimum = {path.parent for path in folder.rglob("benchmark.json")}
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (path.name == "benchmark_report.json" and path.parent in optimum)
        and (_is_table(path, _head(path)) or any(reader.matches(path, _head(path)) for reader in readers()))
    ]
    if not found:
        raise ResultsError(f"no result file in {folder}: expected results.csv, {JOURNAL} or {_formats()}")
    return found


def _read(path: Path) -> pd.DataFrame:
    head = _head(path)
    if _is_table(path, head):
        frame = _table(path)
    elif '"kind"' in head.split("\n", 1)[0] and path.suffix == ".jsonl":
        frame = _journal(path)
    else:
        reader = next((reader for reader in readers() if reader.matches(path, head)), None)
        if reader is None:
            raise ResultsError(f"{path} is no result file: expected bench's results.csv, {JOURNAL} or {_formats()}")
        frame = _text(pd.DataFrame(reader.read(path)))
        frame[LINE] = ""
    if frame.empty:
        raise ResultsError(f"{path} has no rows")
    frame = _base_units(frame, path)
    for column, default in (("launch", "1"), ("status", "ok")):
        if column not in frame:
            frame[column] = default
    if "run" not in frame or (frame["run"] == "").any():
        # Files without run ids: the content tells copies of one file from different launches.
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        frame["run"] = frame["run"].replace("", digest) if "run" in frame else digest
    if "model" in frame:
        names = {name: _model_name(name) for name in frame["model"].unique()}
        frame["model"] = frame["model"].map(names)
    if "samples" in frame:
        frame["samples"] = [str(path.parent / name) if name else "" for name in frame["samples"]]
    frame[FILE] = str(path)
    return frame


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(65536).decode(errors="replace").removeprefix("\ufeff")
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from error


def _is_table(path: Path, head: str) -> bool:
    names = {name.strip().strip('"') for name in head.split("\n", 1)[0].split(",")}
    metrics = set(METRICS) | set(ALIASES) | {"acc", "perplexity", "status"}
    return "model" in names and bool(names & metrics)


def _formats() -> str:
    return ", ".join(
        f"an {r.NAME}" if r.NAME[0] in "aeioIl" and not r.NAME.startswith("llama") else f"a {r.NAME}" for r in readers()
    )


def _table(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise ResultsError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise ResultsError(f"cannot read {path}: rows have more fields than the header")
    frame.columns = [str(name).strip() for name in frame.columns]
    frame[LINE] = range(2, len(frame) + 2)
    return frame


def _journal(path: Path) -> pd.DataFrame:
    frame = _text(pd.DataFrame([row(outcome) for outcome in Journal(path).outcomes().values()], dtype=object))
    frame[LINE] = ""
    return frame


def _text(frame: pd.DataFrame) -> pd.DataFrame:
    plain = frame.astype(object).where(frame.notna(), "")
    return plain.map(lambda value: repr(value) if isinstance(value, float) and value % 1 else _whole(value)).astype(str)


def _whole(value: object) -> str:
    return str(int(value)) if isinstance(value, float) else str(value)


def _base_units(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Columns in other units, converted and renamed. Raises ResultsError when one metric comes in two units."""
    for column in [name for name in frame.columns if name in ALIASES]:
        name, factor = ALIASES[column]
        if name in frame:
            raise ResultsError(f"{path} has both {name} and {column}: remove one, or say which with --ignore")
        numbers = pd.to_numeric(frame[column], errors="coerce")
        converted = [f"{value * factor:.12g}" if value == value else "" for value in numbers]
        # What is no number stays as it is, so that it is reported with its line.
        frame[name] = [new or old for new, old in zip(converted, frame[column], strict=True)]
        frame = frame.drop(columns=column)
    return frame


def _model_name(name: str) -> str:
    """The last part of a path or hub id, so that two spellings of one model meet; revisions are compared separately."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def known(frame: pd.DataFrame) -> list[str]:
    """The columns of `frame` in the order of results.csv, then those that no registry has."""
    order = [name for name in REGISTRY if name in frame]
    return order + [name for name in frame.columns if name not in REGISTRY and name not in (FILE, LINE)]
