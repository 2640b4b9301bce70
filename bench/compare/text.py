"""Results in words and rounded figures, the same in every output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..units import counted
from .columns import SHORT
from .model import STATUS, Comparison, Difference, Report, Result

SEVERITY = (
    "failed-new",
    "missing",
    "accuracy-regressed",
    "regressed",
    "not-comparable",
    "suspect",
    "inconclusive",
    "improved",
    "accuracy-improved",
    "new",
    "fixed",
    "both-failed",
    "skipped",
    "non-inferior",
    "equivalent",
)
"""Verdicts, worst first."""
QUIET = ("equivalent", "non-inferior")
"""Verdicts that need no reader."""

_WORSE = {"duration": ("slower", "faster"), "rate": ("slower", "faster"), "bytes": ("more", "less")}


@dataclass(frozen=True)
class Line:
    """A result as a row of any table."""

    cell: str
    metric: str
    base: str
    cand: str
    change: str
    interval: str
    tier: str
    verdict: str


def line(result: Result) -> Line:
    """The row of a result."""
    if result.metric == STATUS:
        base, cand = result.base_status or "absent", result.cand_status or "absent"
        return Line(result.label, "–", base, cand, "–", "–", "–", verdict(result))
    accuracy = result.metric == "acc"
    return Line(
        result.label,
        metric(result.metric),
        value(result.base, result.kind, result.metric),
        value(result.cand, result.kind, result.metric),
        points(result.d) if accuracy and result.d is not None else change(result),
        _points_interval(result) if accuracy else interval(result),
        result.tier or "–",
        verdict(result),
    )


def metric(name: str) -> str:
    """TTFT for ttft_s; other names without their unit."""
    short = next((word for word, full in SHORT.items() if full == name and name.startswith(word)), name)
    return short.upper() if short in ("ttft", "tpot", "e2e", "mbu", "mfu") else short.replace("_", " ")


def value(number: float | None, kind: str, name: str = "") -> str:
    """A figure with its unit, at most four digits."""
    if number is None:
        return "–"
    if kind == "duration":
        return (
            _digits(number, "s")
            if number >= 1
            else _digits(number * 1e3, "ms")
            if number >= 1e-3
            else _digits(number * 1e6, "µs")
        )
    if kind == "bytes":
        return _digits(number / 2**30, "GiB") if number >= 2**30 else _digits(number / 2**20, "MiB")
    if kind == "rate":
        return _digits(number, "doc/s" if name.startswith("docs") else "tok/s")
    if kind == "proportion":
        return f"{100 * number:.2f} %"
    return _digits(number, "")


def _digits(number: float, unit: str) -> str:
    rounded = float(f"{abs(number):.4g}")  # 9.99999 is 10.00
    places = 3 - math.floor(math.log10(rounded)) if rounded else 3
    return f"{number:.{min(max(places, 0), 4)}f} {unit}".strip()


def percent(share: float, places: int = 1) -> str:
    """0.07 is "7.0 %"."""
    return f"{100 * share:.{places}f} %"


def points(difference: float) -> str:
    """A difference of shares: "-0.97 pp"."""
    return f"{100 * difference:+.2f} pp"


def change(result: Result) -> str:
    """The change in words: "7.0 % slower"."""
    if result.ratio is None:
        return "–"
    if f"{100 * abs(result.ratio - 1):.1f}" == "0.0":
        return "0.0 %"
    return f"{percent(abs(result.ratio - 1))} {_word(result)}"


def _word(result: Result) -> str:
    assert result.ratio is not None
    higher = result.ratio > 1
    words = _WORSE.get(result.kind, ("higher", "lower") if result.better == "lower" else ("lower", "higher"))
    worse = higher == (result.better == "lower")
    return words[0] if worse else words[1]


def interval(result: Result) -> str:
    """Bounds of the change in per cent, in the direction that its word names."""
    if result.lower is None or result.upper is None or result.ratio is None:
        return "–"
    low, high = (result.lower - 1, result.upper - 1) if result.ratio >= 1 else (1 - result.upper, 1 - result.lower)
    return f"[{_tenths(low)}, {_tenths(high)}]"


def _tenths(share: float) -> str:
    words = f"{100 * share:.1f}"
    return "0.0" if words == "-0.0" else words


def launches(result: Result) -> str:
    """Successful launches of base and candidate: "5 and 5", or "5 and 3 of 5"."""
    sides = ((result.base_ok, result.base_n), (result.cand_ok, result.cand_n))
    return " and ".join(str(ok) if ok == n else f"{ok} of {n}" for ok, n in sides)


def _points_interval(result: Result) -> str:
    if result.lower is None or result.upper is None:
        return "–"
    return f"[{100 * result.lower:+.2f}, {100 * result.upper:+.2f}]"


def verdict(result: Result) -> str:
    """The verdict with what a reader needs beside it."""
    text = result.verdict + ("†" if result.sequential else "")
    more = []
    if result.verdict in ("regressed", "improved"):
        more.append(f"margin {percent(result.margin or 0, 1 if (result.margin or 0) * 100 % 1 else 0)}")
        q = result.q_worse if result.verdict == "regressed" else result.q_better
        if q is not None:
            more.append(f"q={q:.1g}" if q >= 1e-4 else "q<0.0001")
    if result.verdict in ("accuracy-regressed", "accuracy-improved") and result.margin is not None:
        more.append(
            f"margin {100 * result.margin:.2f} pp" if result.metric == "acc" else f"margin {percent(result.margin)}"
        )
    if result.verdict == "inconclusive" and result.mde is not None and result.metric != "acc":
        more.append(f"MDE {percent(result.mde)}")
        if result.needs_k is not None:
            more.append(f"needs K={result.needs_k:.0f}" if math.isfinite(result.needs_k) else "needs K>100")
    if result.lean:
        more.insert(0, f"leans {_leaning(result)}")
    if result.cand_ok < result.cand_n and result.metric != STATUS:
        more.append(f"{result.cand_ok}/{result.cand_n} launches")
    if result.reason:
        more.append(result.reason)
    if result.waived:
        more.append(f"waived: {result.waived}")
    if result.accuracy and "flips" in result.accuracy and result.accuracy["flips"]:
        more.append(f"{result.accuracy['flips']} of {result.accuracy['n']} documents flipped")
    if result.accuracy and "loglikelihood" in result.accuracy:
        more.append(_loglikelihood(result.accuracy["loglikelihood"]))
    return f"{text}: {'; '.join(more)}" if more else text


def _loglikelihood(change: dict[str, Any]) -> str:
    """The change of a document's log-likelihood, in nats."""
    if not change["changed"]:
        return f"no log-likelihood of {change['n']} documents changed"
    p = f"p={change['p']:.1g}" if change["p"] >= 1e-16 else "p<1e-16"
    places = min(max(2, 1 - math.floor(math.log10(abs(change["mean"]) or 1))), 6)
    mean, low, high = (f"{change[name]:+.{places}f}" for name in ("mean", "lower", "upper"))
    return f"log-likelihood {mean} [{low}, {high}] per document, {p}"


def details(result: Result) -> str:
    """Second opinions and notes, for a tooltip."""
    figures = {
        "Hodges-Lehmann ratio": result.hl_ratio,
        "Mann-Whitney p": result.mwu_p,
        "q worse": result.q_worse,
        "q better": result.q_better,
        "spread ratio": result.spread_ratio,
        "shift removed": result.shift_removed,
    }
    words = [f"{name} {figure:.4g}" for name, figure in figures.items() if figure is not None]
    return "; ".join([result.method, *words, *result.notes])


def _leaning(result: Result) -> str:
    words = _WORSE.get(result.kind, ("worse", "better"))
    return words[0] if result.lean == "worse" else words[1]


def ordered(results: list[Result], sort: str = "severity") -> list[Result]:
    """Worst first: what fails, then by verdict, then by size of the change; or by name."""
    if sort == "name":
        return sorted(results, key=lambda result: (result.label, result.metric))
    rank = {name: i for i, name in enumerate(SEVERITY)}
    return sorted(results, key=lambda r: (not r.fails, rank[r.verdict], -abs(r.d or 0.0), r.label, r.metric))


def sentence(comparison: Comparison) -> str:
    """What came out, in one line without the gate's word."""
    counts = comparison.counts
    words = {
        "regressed": counts.get("regressed", 0),
        "accuracy-regressed": counts.get("accuracy-regressed", 0),
        "failed": counts.get("failed-new", 0),
        "improved": counts.get("improved", 0) + counts.get("accuracy-improved", 0),
        "equivalent": counts.get("equivalent", 0),
        "non-inferior": counts.get("non-inferior", 0),
        "inconclusive": counts.get("inconclusive", 0),
        "suspect": counts.get("suspect", 0),
        "not comparable": counts.get("not-comparable", 0),
        "missing": counts.get("missing", 0),
    }
    always = ("regressed", "improved", "equivalent", "inconclusive", "missing")
    return ", ".join(f"{count} {name}" for name, count in words.items() if count or name in always)


def scope(comparison: Comparison) -> str:
    """How much was compared, and how it was measured."""
    metrics = len(comparison.metrics)
    parts = [f"{counted(comparison.cells, 'cell')} × {counted(metrics, 'metric')}", comparison.launches]
    parts.append("" if comparison.session == "unknown" else comparison.session)
    return ", ".join(part for part in parts if part)


def environment(comparison: Comparison) -> list[str]:
    """Each difference of the environment in words."""
    words = []
    for item in comparison.environment:
        state = "declared" if item.declared else "NOT declared"
        state = f"HARD, {state}" if item.hard else state
        base, cand = apart(item)
        words.append(f"{item.column} {_few(base)} → {_few(cand)} ({state})")
    return words


def apart(item: Difference) -> tuple[list[str], list[str]]:
    """Both sides' values; of columns that list `name=value`, without what all of them have."""
    if item.column not in ("variables", "adapters"):
        return item.base, item.cand
    common = set.intersection(*(set(value.split()) for value in (*item.base, *item.cand)))
    base, cand = (
        [" ".join(word for word in value.split() if word not in common) or "none" for value in values]
        for values in (item.base, item.cand)
    )
    return base, cand


def _few(values: list[str]) -> str:
    shown = [value if len(value) <= 40 else value[:39] + "…" for value in values[:3]]
    return ", ".join(shown) + (f" and {len(values) - 3} more" if len(values) > 3 else "")


def suite(comparison: Comparison) -> list[str]:
    """One line per metric, and what moved all cells together."""
    lines = []
    for item in comparison.suites:
        bounds = f" [{item.lower:.3f}, {item.upper:.3f}]" if item.lower is not None and item.upper is not None else ""
        lines.append(f"{metric(item.metric)} {item.ratio:.3f}{bounds} over {item.cells} of {item.of} cells")
    for item in comparison.suites:
        if item.shift is not None:
            lines.append(
                f"all cells moved by about {100 * (item.shift - 1):+.1f} % in {metric(item.metric)}: "
                f"machine state or a common cause"
            )
    return lines


def footnotes(comparison: Comparison, report: Report) -> list[str]:
    """What a reader must know before trusting the table."""
    notes = []
    tiers = {result.tier for result in comparison.results}
    if any(result.sequential for result in comparison.results):
        notes.append("† sequential: all launches of one side ran first, so drift is not separable from change")
    if "T0" in tiers:
        single = (
            "the margin is a plain threshold, no statistics"
            if report.settings.get("allow_single")
            else "suspect at most"
        )
        notes.append(f"T0: one launch per side: {single}")
    if comparison.identical_outputs is not None:
        notes.append("output tokens identical in {} of {} cells".format(*comparison.identical_outputs))
    if report.self_check:
        flagged, tests = report.self_check["flagged"], report.self_check["tests"]
        notes.append(f"A/A on this machine: {flagged} of {tests} flagged")
    for result in comparison.results:
        notes += [f"{result.label} {metric(result.metric)}: {note}" for note in result.notes]
    return notes + [f"warning: {warning}" for warning in comparison.warnings]
