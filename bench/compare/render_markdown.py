"""Markdown for a pull-request comment or a step summary, never longer than GitHub takes."""

from __future__ import annotations

from dataclasses import astuple

from . import text
from .model import Comparison, Report, Result

COMMENT_BYTES = 64 * 1024
SUMMARY_BYTES = 1024 * 1024
"""GitHub's limits: a comment of 65536 characters, a step summary of 1 MiB."""

_ENTITIES = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_[]<>|#~@&"} | {0: "&#58;"}

HEADER = ("cell", "metric", "base", "candidate", "change", "interval", "tier", "verdict")


def render(report: Report, limit: int = COMMENT_BYTES, sort: str = "severity") -> str:
    """At most `limit` bytes; every table that is cut says how many rows it does not show."""
    share = (limit - 200) // max(len(report.comparisons), 1)
    parts = [_comparison(item, report, share, sort) for item in report.comparisons]
    if report.warn_only:
        parts.append("`--warn-only`: the exit code is 0 whatever the gate says.\n")
    return "\n".join(parts)


def _comparison(comparison: Comparison, report: Report, limit: int, sort: str) -> str:
    head = [f"## {comparison.gate}: {text.sentence(comparison)}", ""]
    head += [f"{escape(comparison.cand)} against {escape(comparison.base)} · {text.scope(comparison)}", ""]
    head += _few([f"- {escape(line)}" for line in text.environment(comparison)], 20)
    head += [f"- {line}" for line in text.suite(comparison)]
    head += [f"- {escape(line)}" for line in comparison.marginals[:5]]
    tail = _few([f"<sub>{escape(note)}</sub><br>" for note in text.footnotes(comparison, report)], 12)
    results = text.ordered(comparison.results, sort)
    loud = [_row(result) for result in results if result.verdict not in text.QUIET]
    quiet = [_row(result) for result in results if result.verdict in text.QUIET]
    frame = len("\n".join([*head, *tail]).encode()) + 1000
    return _fill(head, loud, quiet, tail, limit - frame)


def _fill(head: list[str], loud: list[str], quiet: list[str], tail: list[str], room: int) -> str:
    """As many rows as there is room for, those that need a reader first."""
    taken = [0, 0]
    for which, rows in enumerate((loud, quiet)):
        for row in rows:
            room -= len(row.encode()) + 1
            if room < 0:
                break
            taken[which] += 1
    lines = [*head, ""]
    if loud:
        lines += [*_header(), *loud[: taken[0]], ""]
    if taken[1]:
        title = f"<summary>{taken[1]} equivalent or non-inferior</summary>"
        lines += ["<details>", title, "", *_header(), *quiet[: taken[1]], "", "</details>", ""]
    hidden = len(loud) + len(quiet) - sum(taken)
    lines += [*tail, "", f"{hidden} rows not shown."]
    return "\n".join(lines) + "\n"


def _header() -> list[str]:
    return ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]


def _row(result: Result) -> str:
    line = text.line(result)
    cells = [field if field in (line.change, line.interval) else escape(field) for field in astuple(line)]
    if result.fails:
        cells[-1] = f"**{cells[-1]}**"
    return "| " + " | ".join(cells) + " |"


def _few(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"- {len(lines) - most} more"]


def escape(words: str) -> str:
    """Text from a file as text: no table cell, link, tag or mention of its own, on one line, at most 300 characters."""
    words = " ".join(words.split())
    words = words if len(words) <= 300 else words[:299] + "…"
    return words.replace("://", "\0//").translate(_ENTITIES)
