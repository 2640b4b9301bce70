"""What differs between the machines and stacks of two sides."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .columns import REGISTRY, Roles
from .model import Difference
from .rows import Ints, Rows, code, extremes
from .settings import Settings


def differences_of(
    sides: tuple[Rows, Rows], roles: Roles, settings: Settings, cells: int
) -> tuple[list[str], list[Difference]]:
    """Hard differences by cell, and every column that differs between the sides' successful rows of common cells."""
    if settings.env_policy == "ignore":
        return [""] * cells, []
    common = (sides[0].count(sides[0].ok, cells) > 0) & (sides[1].count(sides[1].ok, cells) > 0)
    masks = [rows.ok & common[rows.cell] for rows in sides]
    frames = sides[0].frame[masks[0]], sides[1].frame[masks[1]]
    split = len(frames[0])
    cell = np.concatenate([rows.cell[mask] for rows, mask in zip(sides, masks, strict=True)])
    hard = [""] * cells
    differences: list[Difference] = []
    for name in (*roles.env_hard, *roles.env_soft, *roles.unknown):
        codes, texts = code(frames, name)
        if len(texts) < 2:
            continue
        codes = _merge_close(name, codes, texts)
        known = codes != (texts.index("") if "" in texts else -1)
        low, high = extremes(cell[known], codes[known], cells)
        differs = high > low
        if not differs.any():
            continue
        is_hard = name in roles.env_hard
        declared = name in settings.expect_diff
        inside = differs[cell] & known
        base, cand = (sorted({texts[i] for i in np.unique(codes[h & inside])}) for h in _halves(split, len(codes)))
        if base == cand and not is_hard:
            continue  # both sides were spread over the same machines
        differences.append(Difference(name, base, cand, is_hard, declared, int(differs.sum())))
        if is_hard and not declared and settings.env_policy == "error":
            for i in np.flatnonzero(differs):
                hard[i] = hard[i] or f"{name} differs: {texts[low[i]]} and {texts[high[i]]}"
    return hard, sorted(differences, key=lambda item: (not item.hard, item.declared))


def _halves(split: int, total: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first = np.arange(total) < split
    return first, ~first


def _merge_close(name: str, codes: Ints, texts: list[str]) -> Ints:
    """Amounts within 2 % are one value: clocks and memory sizes wobble."""
    column = REGISTRY.get(name)
    if column is None or column.kind not in ("bytes", "rate", "duration"):
        return codes
    numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(float)
    translate = np.arange(len(texts))
    for i, number in enumerate(numbers):
        close = np.flatnonzero(np.abs(numbers[:i] - number) <= 0.02 * abs(number))
        if len(close):
            translate[i] = translate[close[0]]
    return translate[codes].astype(np.int64)
