"""The results as one flat table."""

from __future__ import annotations

import csv
import io
import math

from .model import Report

FIELDS = (
    "metric", "verdict", "tier", "gates", "fails", "lean", "waived", "base", "cand", "base_ok", "base_n",
    "cand_ok", "cand_n",
    "ratio", "lower", "upper", "interval", "d", "se", "df", "margin", "margin_source", "p_worse", "p_better",
    "q_worse", "q_better", "mde", "needs_k", "hl_ratio", "mwu_p", "spread_ratio", "shift_removed", "sequential",
    "base_status", "cand_status", "method", "reason", "log",
)  # fmt: skip


def render(report: Report) -> str:
    """One row per result: candidate, keys, then every figure, unrounded; unknown is blank."""
    keys = list(dict.fromkeys(key for c in report.comparisons for result in c.results for key in result.key))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["candidate", *map(safe, keys), *FIELDS])
    for comparison in report.comparisons:
        for result in comparison.results:
            key = [safe(result.key.get(name, "")) for name in keys]
            writer.writerow([safe(comparison.cand), *key, *(_cell(getattr(result, field)) for field in FIELDS)])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return "" if value is None else safe(value) if isinstance(value, str) else value


def safe(words: str) -> str:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    return f"'{words}" if words[:1] in ("=", "+", "-", "@", "\t", "\r") else words
