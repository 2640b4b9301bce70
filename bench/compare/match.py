"""Two sides become cells: which rows belong together, what happened to each cell, and what may be compared at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import ResultsError
from .columns import Roles, assign
from .environment import differences_of
from .model import Difference
from .read import FILE, LINE, Side
from .rows import Rows, code, combine, make_rows, varies
from .selectors import parse
from .settings import Settings


@dataclass
class Match:
    """All cells of a comparison, in the order in which they appear."""

    keys: dict[str, list[str]]
    """Values of each key column, by cell."""
    labels: list[str]
    base: Rows
    cand: Rows
    hard: list[str]
    """By cell: the hard environment difference, or nothing."""
    environment: list[Difference]
    warnings: list[str]

    @property
    def cells(self) -> int:
        """Number of cells on either side."""
        return len(self.labels)


def match(base: Side, cand: Side, settings: Settings) -> Match:
    """Match the rows of two sides. Raises ResultsError for an unknown column that varies inside a cell, a launch that
    occurs twice, or a key that only one side has and cannot do without."""
    columns = [name for name in dict.fromkeys([*base.frame.columns, *cand.frame.columns]) if name not in (FILE, LINE)]
    roles = assign(columns, settings.by, settings.key, settings.ignore)
    keys, warnings = _common_keys(roles, base, cand)
    frames = _select(base.frame, settings, keys), _select(cand.frame, settings, keys)
    if not len(frames[0]) and not len(frames[1]):
        raise ResultsError(f"no row satisfies --where {' and '.join(settings.where)}")
    split = len(frames[0])
    coded = {name: code(frames, name) for name in keys}
    cell, first = combine([codes for codes, _ in coded.values()], split + len(frames[1]))
    values = {name: [texts[i] for i in codes[first]] for name, (codes, texts) in coded.items()}
    sides = make_rows(frames[0], cell[:split]), make_rows(frames[1], cell[split:])
    for rows, side in zip(sides, (base, cand), strict=True):
        _refuse_duplicates(rows, side, values)
        _refuse_unknown(rows, side, roles.unknown, len(first))
    labels = _labels(values, range(len(first)))
    hard, environment = differences_of(sides, roles, settings, len(first))
    return Match(values, labels, *sides, hard, environment, warnings)


def _common_keys(roles: Roles, base: Side, cand: Side) -> tuple[list[str], list[str]]:
    """Keys that both sides have; one that only one side has is left out if it does not tell that side's rows apart."""
    keys, warnings = [], []
    for name in roles.keys:
        owners = [side for side in (base, cand) if name in side.frame]
        if len(owners) == 2:
            keys.append(name)
        elif owners[0].frame[name].nunique() > 1:
            raise ResultsError(
                f"column '{name}' is only in {owners[0].name} and has several values there: "
                f"leave it out with --ignore {name}"
            )
        elif (owners[0].frame[name] != "").any():
            warnings.append(f"column '{name}' is only in {owners[0].name} and was left out of the key")
    if not keys:
        raise ResultsError("the two sides have no key column in common: name the columns with --by COLUMN,…")
    return keys, warnings


def _select(frame: pd.DataFrame, settings: Settings, keys: Sequence[str]) -> pd.DataFrame:
    for text in settings.where:
        for condition in parse(text, keys):
            texts = frame[condition.column]
            wanted = [value for value in texts.unique() if condition.holds(value)]
            frame = frame[texts.isin(wanted)]
    return frame.reset_index(drop=True)


def _refuse_duplicates(rows: Rows, side: Side, keys: dict[str, list[str]]) -> None:
    launch = combine([code((rows.frame, rows.frame[:0]), name)[0] for name in ("run", "launch")], len(rows.cell))[0]
    twice = pd.Series(rows.cell * (int(launch.max(initial=0)) + 1) + launch).duplicated().to_numpy()
    if twice.any():
        row = rows.frame.iloc[int(np.argmax(twice))]
        where = f"{row[FILE]}:{row[LINE]}" if row[LINE] != "" else str(row[FILE])
        label = _labels(keys, rows.cell[twice][:1].tolist())[0]
        raise ResultsError(
            f"{where}: launch {row['launch']} of one cell occurs twice in {side.name}: {label}. "
            f"Each launch is one process; give each its own number, or tell the rows apart with --key COLUMN"
        )


def _refuse_unknown(rows: Rows, side: Side, unknown: Iterable[str], cells: int) -> None:
    for name in unknown:
        if name in rows.frame and varies(rows, name, cells).any():
            raise ResultsError(
                f"column '{name}' is unknown and varies inside a cell of {side.name}: "
                f"add --key {name} if it tells cells apart, --ignore {name} if it does not matter"
            )


_USUAL = {"decoding": ("greedy", "beam"), "task": ("generate",)}
"""Values that a label leaves out: greedy and beam follow from the number of beams, generating is what most cells do."""


def _labels(keys: dict[str, list[str]], wanted: Iterable[int]) -> list[str]:
    """Cells in words: the model, the precision, and every key with more than one value."""
    chosen = [name for name, values in keys.items() if name in ("model", "precision") or len(set(values) - {""}) > 1]
    lengths = "input_tokens" in chosen or "output_tokens" in chosen
    parts = []
    for name in chosen or list(keys)[:1]:
        if name in ("input_tokens", "output_tokens") and "input_tokens" in keys and "output_tokens" in keys:
            continue
        if name in _USUAL:
            parts.append(["" if value in _USUAL[name] else value for value in keys[name]])
            continue
        prefix = {"batch_size": "bs", "num_beams": "beams", "world_size": "x"}.get(name, "")
        parts.append([f"{prefix}{value}" if value else "" for value in keys[name]])
    if lengths and "input_tokens" in keys and "output_tokens" in keys:
        pairs = zip(keys["input_tokens"], keys["output_tokens"], strict=True)
        parts.append(
            [
                f"{tokens_in}/{tokens_out}" if {tokens_in, tokens_out} - {"", "0"} else ""
                for tokens_in, tokens_out in pairs
            ]
        )
    return [" ".join(part[i] for part in parts if part[i]) for i in wanted]
