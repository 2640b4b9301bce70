"""Workflow commands: what fails becomes an annotation of the run."""

from __future__ import annotations

from . import text
from .model import STATUS, Report

MOST = 10
"""GitHub shows ten annotations of a kind per step; more would only lengthen the log."""


def render(report: Report) -> str:
    """One line per failing result, the worst ten, and one for the whole."""
    lines = []
    for comparison in report.comparisons:
        failing = [result for result in text.ordered(comparison.results) if result.fails]
        for result in failing[: MOST - 1]:
            title = f"{result.verdict}: {result.label}"
            figures = (
                ""
                if result.metric == STATUS
                else f"{text.metric(result.metric)} {text.change(result)} {text.interval(result)} "
            )
            level = "error" if not report.warn_only else "warning"
            lines.append(f"::{level} title={_property(title)}::{_data(figures + text.verdict(result))}")
        level = "notice" if comparison.exit_code == 0 or report.warn_only else "error"
        summary = f"{text.sentence(comparison)} ({text.scope(comparison)})"
        lines.append(f"::{level} title={_property('bench compare ' + comparison.gate)}::{_data(summary)}")
    return "\n".join(lines) + "\n"


def _data(words: str) -> str:
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(words: str) -> str:
    return _data(words).replace(":", "%3A").replace(",", "%2C")
