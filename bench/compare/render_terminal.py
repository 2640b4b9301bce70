"""The comparison for a terminal: the sentence first, then what changed, worst first. Colour only for a person."""

from __future__ import annotations

import os
import sys
from dataclasses import astuple
from typing import TextIO

from . import text
from .model import Comparison, Report

HEADER = ("cell", "metric", "base", "cand", "change", "interval", "tier", "verdict")
ROWS = 40
"""Rows shown before they are only counted."""
NOTES = 12
"""Footnotes shown before they are only counted."""

_STYLES = {"regressed": "red", "failed": "red", "missing": "red", "accuracy-regressed": "red", "improved": "green"}
_GATE = {"FAIL": "bold red", "PASS": "bold green", "INCONCLUSIVE": "bold yellow", "NOT COMPARABLE": "bold yellow"}


def render(report: Report, most: int | None = ROWS, everything: bool = False, sort: str = "severity") -> str:
    """Plain text; `show` colours it."""
    blocks = [_comparison(item, report, most, everything, sort) for item in report.comparisons]
    if report.warn_only:
        blocks.append("--warn-only: the exit code is 0 whatever the gate says\n")
    return "\n".join(blocks)


def _comparison(comparison: Comparison, report: Report, most: int | None, everything: bool, sort: str) -> str:
    lines = [f"{comparison.gate}  {text.sentence(comparison)}   ({text.scope(comparison)})"]
    if len(report.comparisons) > 1:
        lines.insert(0, f"{comparison.cand} against {comparison.base}")
    differences = text.environment(comparison)
    if differences:
        lines.append("env   " + " · ".join(differences))
    shown = [result for result in comparison.results if everything or result.verdict not in text.QUIET]
    rows = [astuple(text.line(result)) for result in text.ordered(shown, sort)[:most]]
    hidden = len(comparison.results) - len(shown)
    if rows:
        lines += _table([HEADER, *rows])
    if len(shown) > len(rows):
        lines.append(f"      {len(shown) - len(rows)} more rows not shown (--max-rows)")
    if hidden:
        lines.append(f"      {hidden} equivalent or non-inferior rows not shown (--all)")
    summary = text.suite(comparison)
    lines += [f"suite {line}" for line in summary] + [f"where {line}" for line in comparison.marginals]
    notes = text.footnotes(comparison, report)
    lines += [f"note  {note}" for note in notes[:NOTES]]
    if len(notes) > NOTES:
        lines.append(f"note  {len(notes) - NOTES} more notes in the JSON")
    if comparison.exit_code in (1, 3) and not report.settings.get("provisional"):
        lines.append(
            "next  bench compare … --confirm-list rerun.txt   then   xargs -L 1 bench run launches=10 < rerun.txt"
        )
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER) - 1)]
    return [" " + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def show(plain: str, file: TextIO | None = None, color: bool = True) -> None:
    """Print, coloured when `file` is a terminal, NO_COLOR is unset and `color` is asked for."""
    stream = file or sys.stdout
    if not color or "NO_COLOR" in os.environ or not stream.isatty():
        stream.write(plain)
        return
    from rich.text import Text

    from ..console import Console

    console = Console(file=stream, highlight=False, soft_wrap=True)
    for line in plain.splitlines():
        styled = Text(line)
        word = next((word for word in _GATE if line.startswith(word)), None)
        if word:
            styled.stylize(_GATE[word], 0, len(word))
        else:
            for verdict, style in _STYLES.items():
                at = line.rfind(f"  {verdict}")
                if at >= 0:
                    styled.stylize(style, at, len(line))
        console.print(styled)
