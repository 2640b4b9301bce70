"""One side's rows, each with its cell, and the coding of text columns as small integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .columns import REGISTRY
from .kernels import Array

Ints = NDArray[np.int64]


@dataclass
class Rows:
    """One side's rows, each with its cell."""

    frame: pd.DataFrame
    cell: Ints
    ok: NDArray[np.bool_]
    started: Array
    """Seconds since the epoch, NaN when unknown."""
    block: Ints
    """Interleaved block, -1 for none."""

    def count(self, mask: NDArray[np.bool_], cells: int) -> Ints:
        """Rows per cell among those in `mask`."""
        return np.bincount(self.cell[mask], minlength=cells)


def make_rows(frame: pd.DataFrame, cell: Ints) -> Rows:
    """Rows of a frame whose cells are known; times that cannot be read are unknown."""
    status = frame["status"].to_numpy(object)
    if "started" in frame:
        times = pd.to_datetime(frame["started"], utc=True, errors="coerce", format="ISO8601")
        started = (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(1, "s")
    else:
        started = pd.Series(np.full(len(frame), np.nan))
    block = (
        pd.to_numeric(frame["block"], errors="coerce") if "block" in frame else pd.Series(np.full(len(frame), np.nan))
    )
    return Rows(frame, cell, status == "ok", np.asarray(started, float), block.fillna(-1).to_numpy(np.int64))


def code(frames: tuple[pd.DataFrame, pd.DataFrame], name: str) -> tuple[Ints, list[str]]:
    """Codes of a column over both frames, and the text of each code. 8, 8.0 and "8 " are one value of a count."""
    parts = [frame[name] if name in frame else pd.Series([""] * len(frame), dtype=object) for frame in frames]
    codes, texts = pd.factorize(pd.concat(parts, ignore_index=True).to_numpy(object))
    canonical: dict[str, int] = {}
    column = REGISTRY.get(name)
    counts = column is not None and column.kind == "count"
    translate = [canonical.setdefault(_canonical(str(text), counts), len(canonical)) for text in texts]
    return np.asarray(translate, np.int64)[codes], list(canonical)


def _canonical(text: str, count: bool) -> str:
    text = text.strip()
    if count:
        try:
            return f"{float(text):.15g}"
        except ValueError:
            pass
    return text


def combine(columns: Iterable[Ints], rows: int) -> tuple[Ints, Ints]:
    """One number per distinct combination, in the order of first appearance, and the first row of each."""
    cell = np.zeros(rows, np.int64)
    for codes in columns:
        cell = pd.factorize(cell * (int(codes.max(initial=0)) + 1) + codes)[0].astype(np.int64)
    return cell, np.unique(cell, return_index=True)[1]


def varies(rows: Rows, name: str, cells: int) -> NDArray[np.bool_]:
    """By cell: whether a column has more than one value among the successful rows that have one."""
    codes, texts = code((rows.frame, rows.frame[:0]), name)
    known = rows.ok & (codes != (texts.index("") if "" in texts else -1))
    low, high = extremes(rows.cell[known], codes[known], cells)
    return high > low


def extremes(cell: Ints, codes: Ints, cells: int) -> tuple[Ints, Ints]:
    """Smallest and largest code of each cell; (large, -1) for a cell without any."""
    low, high = np.full(cells, np.iinfo(np.int64).max), np.full(cells, -1, np.int64)
    np.minimum.at(low, cell, codes)
    np.maximum.at(high, cell, codes)
    return low, high


def statuses(rows: Rows, cells: int) -> list[str]:
    """What happened on one side, by cell: "ok", the most frequent failure, or nothing for an absent cell."""
    found: list[Counter[str]] = [Counter() for _ in range(cells)]
    for cell, status in zip(rows.cell[~rows.ok].tolist(), rows.frame["status"].to_numpy(object)[~rows.ok], strict=True):
        found[cell][status] += 1
    succeeded = rows.count(rows.ok, cells) > 0
    return [
        "ok" if fine else kinds.most_common(1)[0][0] if kinds else ""
        for fine, kinds in zip(succeeded, found, strict=True)
    ]
