"""One HTML file that needs no network: the verdict, the table, the plots and how they were made."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from . import plots, text
from .model import STATUS, Comparison, Report, Result

FOREST_ROWS = 32
STRIPS = 18

_HERE = Path(__file__).parent
_BAD = {
    "regressed": "regressed",
    "accuracy-regressed": "lost accuracy",
    "failed-new": "newly failed",
    "missing": "missing",
}
_LEGEND = '<span class="who"><i class="b"></i>base</span><span class="who"><i class="c"></i>candidate</span>'


def render(report: Report) -> str:
    """The page. Everything that comes from a file is escaped; there is no reference to another file."""
    first = report.comparisons[0]
    body = "\n".join(_comparison(comparison, report) for comparison in report.comparisons)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(first.gate)}: {escape(first.cand)} against {escape(first.base)}</title>\n"
        f"<style>\n{(_HERE / 'report.css').read_text()}</style></head>\n"
        f"<body><main>\n{body}\n{_method(report)}\n</main>\n"
        f"<script>\n{(_HERE / 'report.js').read_text()}</script></body></html>\n"
    )


def _comparison(comparison: Comparison, report: Report) -> str:
    results = text.ordered(comparison.results)
    ratios = _by_metric(results)
    parts = (
        _header(comparison, report),
        _environment(comparison),
        _cells(results),
        _forests(ratios),
        _scatters(ratios),
        _heat(ratios),
        _strips(ratios, results),
        _flips(results),
        _notes(comparison, report),
    )
    return "\n".join(part for part in parts if part)


def _header(comparison: Comparison, report: Report) -> str:
    counts = comparison.counts
    chips = "".join(
        f'<li><b class="{verdict}">{counts[verdict]}</b>{verdict.replace("-", " ")}</li>'
        for verdict in text.SEVERITY
        if verdict in counts
    )
    lines = [*text.suite(comparison), *comparison.marginals]
    if report.warn_only:
        lines.insert(0, "--warn-only: the exit code is 0 whatever the gate says")
    return (
        f'<header class="verdict {comparison.gate.split()[0]}"><span class="gate">{escape(comparison.gate)}</span>'
        f"<h1>{escape(_headline(comparison))}</h1>"
        f'<p class="soft"><code>{escape(comparison.cand)}</code> against <code>{escape(comparison.base)}</code>'
        f' · {escape(text.scope(comparison))}</p><ul class="counts">{chips}</ul>{_list(lines)}</header>'
    )


def _headline(comparison: Comparison) -> str:
    words = [f"{comparison.counts[verdict]} {name}" for verdict, name in _BAD.items() if comparison.counts.get(verdict)]
    if words:
        return ", ".join(words)
    return {3: "Not decided", 4: "Not comparable"}.get(comparison.exit_code, "No regression found")


def _environment(comparison: Comparison) -> str:
    rows = []
    for item in comparison.environment:
        base, cand = (escape(", ".join(values)) for values in text.apart(item))
        rows.append(
            f"<tr><td><code>{escape(item.column)}</code></td><td>{base}</td><td>{cand}</td>"
            f"<td>{'hard' if item.hard else 'soft'}</td>"
            f'<td>{"declared" if item.declared else "<b>not declared</b>"}</td><td class="n">{item.cells}</td></tr>'
        )
    heads = ("column", "base", "candidate", "kind", "", "cells")
    note = "What differs besides the numbers. Declare the change under test with --expect-diff."
    return _section("Environment", _table(heads, rows), note) if rows else ""


def _cells(results: list[Result]) -> str:
    metrics = [(name, text.metric(name)) for name in dict.fromkeys(result.metric for result in results)]
    present = {result.verdict for result in results}
    verdicts = [(name, name) for name in text.SEVERITY if name in present]
    heads = ("cell", "metric", "base", "candidate", "change", "interval", "launches", "tier", "verdict")
    controls = (
        '<div class="controls"><input type="search" placeholder="filter: llama int4 bs8" aria-label="filter">'
        f"{_select('metric', [('', 'all'), *metrics])}{_select('verdict', [('', 'all'), *verdicts])}"
        "<output></output></div>"
    )
    table = _table(heads, [_row(result) for result in results], sort=True)
    return _section("Cells", f'{controls}<div class="scroll">{table}</div>', attributes=" data-results")


def _row(result: Result) -> str:
    line = text.line(result)
    name, _, why = line.verdict.partition(": ")
    detail = f'<div class="why">{escape(why)}</div>' if why else ""
    title = f' title="{escape(text.details(result))}"' if result.d is not None else ""
    change = plots.worse(result) if result.d is not None else None
    return (
        f'<tr data-metric="{escape(result.metric)}" data-verdict="{escape(result.verdict)}"{title}>'
        f"<td>{escape(line.cell)}</td><td>{escape(line.metric)}</td>"
        f"{_figure(line.base, result.base)}{_figure(line.cand, result.cand)}{_figure(line.change, change)}"
        f"<td>{escape(line.interval)}</td><td>{text.launches(result)}</td><td>{line.tier}</td>"
        f'<td><span class="v {escape(result.verdict)}">{escape(name)}</span>{detail}</td></tr>'
    )


def _figure(words: str, number: float | None) -> str:
    """A cell that shows words and sorts by the number."""
    return f'<td class="n" data-v="{-1e9 if number is None else number:.6g}">{escape(words)}</td>'


def _by_metric(results: list[Result]) -> dict[str, list[Result]]:
    """Results with a ratio of launches, in the order given."""
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.d is not None and result.tier != "T3":
            found.setdefault(result.metric, []).append(result)
    return found


def _forests(ratios: dict[str, list[Result]]) -> str:
    parts = []
    for metric, mine in ratios.items():
        shown = sorted(mine, key=lambda result: -abs(result.d or 0.0))[:FOREST_ROWS]
        shown.sort(key=lambda result: -plots.worse(result))
        caption = f"Right is worse. Grey band: margin. Line: {shown[0].interval or 'no'} interval."
        if len(mine) > len(shown):
            caption += f" The {len(shown)} largest changes; {len(mine) - len(shown)} more are in the table."
        name = text.metric(metric)
        parts.append(f"<h3>{escape(name)}</h3>{_plot(plots.forest(shown, name), escape(caption))}")
    return _section("Change by cell", "".join(parts)) if parts else ""


def _scatters(ratios: dict[str, list[Result]]) -> str:
    figures = []
    for metric, mine in ratios.items():
        name = text.metric(metric)
        caption = f"{name}: base against candidate, log axes. Dashed: margin."
        figures.append(_plot(plots.scatter(mine, mine[0].kind, name), escape(caption)))
    ttft, tpot = ({result.label: result for result in ratios.get(name, [])} for name in ("ttft_s", "tpot_s"))
    trade = plots.pareto(ttft, tpot)
    if trade:
        figures.append(_plot(trade, f"TTFT against TPOT, lower left is better.{_LEGEND}"))
    return _section("Both builds", f'<div class="plots">{"".join(figures)}</div>') if figures else ""


def _heat(ratios: dict[str, list[Result]]) -> str:
    """Change over two axes; the page's script draws it from the data embedded here."""
    everything = [result for mine in ratios.values() for result in mine]
    names = list(everything[0].key) if everything else []
    keys = [name for name in names if len({result.key.get(name) for result in everything}) > 1]
    if len(keys) < 2:
        return ""
    cells = [[r.metric, round(plots.worse(r), 6), [r.key.get(name, "") for name in keys]] for r in everything]
    # "<" would let a value of the CSV close the script element.
    data = json.dumps({"keys": keys, "cells": cells}, ensure_ascii=False).replace("<", "\\u003c")
    axes = [(name, name) for name in keys]
    controls = (
        f'<div class="controls">{_select("metric", [(name, text.metric(name)) for name in ratios])}'
        f"{_select('across', axes)}{_select('down', [axes[1], axes[0], *axes[2:]])}</div>"
    )
    body = f'{controls}<div class="heat"></div><script type="application/json">{data}</script>'
    note = "Change in per cent, positive is worse, geometric mean over the other axes."
    return _section("Where it moved", body, note, ' data-heat class="heatmap"')


def _strips(ratios: dict[str, list[Result]], results: list[Result]) -> str:
    with_ratio = {id(result) for mine in ratios.values() for result in mine}
    many = [r for r in results if id(r) in with_ratio and len(r.base_launches) + len(r.cand_launches) > 2]
    figures = "".join(
        f'<figure><figcaption title="{escape(r.label)}"><span class="v {escape(r.verdict)}">'
        f"{escape(text.metric(r.metric))}</span> {escape(r.label)}</figcaption>{plots.strip(r)}</figure>"
        for r in many[:STRIPS]
    )
    note = "Change from the base's median, %. Grey band: margin. Small dots: iterations."
    if len(many) > STRIPS:
        note += f" The first {STRIPS} of {len(many)}, worst first."
    body = f'<p class="small soft">{_LEGEND}</p><div class="strips">{figures}</div>'
    return _section("Launches in the order of time", body, note) if many else ""


def _flips(results: list[Result]) -> str:
    parts = []
    for result in results:
        details = result.accuracy or {}
        documents = details.get("documents") or []
        if not documents:
            continue
        shown = "all" if details["flips"] == len(documents) else f"the first {len(documents)} of {details['flips']}"
        summary = (
            f"{details['lost']} lost, {details['gained']} gained of {details['n']} documents; flip rate "
            f"{text.percent(details['flip_rate'], 2)} [{100 * details['flip_lower']:.2f}, "
            f"{100 * details['flip_upper']:.2f}]; McNemar mid-p {details['mcnemar_mid_p']:.3g}; {shown} shown"
        )
        rows = [
            f'<tr><td class="v {"accuracy-regressed" if item["lost"] else "improved"}">'
            f"{'lost' if item['lost'] else 'gained'}</td>"
            + "".join(f"<td>{escape(item[name])}</td>" for name in ("text", "target", "base", "cand"))
            + "</tr>"
            for item in documents
        ]
        table = _table(("", "document", "target", "base", "candidate"), rows)
        parts.append(
            f'<h3>{escape(result.label)}</h3><p class="soft small">{escape(summary)}</p>'
            f'<div class="scroll">{table}</div>'
        )
    return _section("Flipped documents", "".join(parts)) if parts else ""


def _notes(comparison: Comparison, report: Report) -> str:
    notes = text.footnotes(comparison, report)
    return _section("Notes", _list(notes)) if notes else ""


def _method(report: Report) -> str:
    """What a reader needs to compute every figure again."""
    settings = report.settings
    results = [result for comparison in report.comparisons for result in comparison.results if result.metric != STATUS]
    margins = dict.fromkeys(
        f"{text.metric(r.metric)} {100 * r.margin:.3g} % ({r.margin_source})"
        for r in results
        if r.margin is not None and r.tier != "T3"
    )
    shown = [*list(margins)[:8], *([f"{len(margins) - 8} more"] if len(margins) > 8 else [])]
    sentences = (
        "A launch, one fresh process, is the unit of replication.",
        f"Differences of mean logarithms of launch medians, with one-sided bounds of level α = {settings['alpha']}.",
        "Regressed: the whole interval is worse than the margin δ. Equivalent: the whole interval is inside ±δ.",
        "MDE: the change from none that would be seen with 80 % power.",
        f"Tiers: {', '.join(dict.fromkeys(r.tier for r in results if r.tier)) or 'none'}.",
        f"Methods: {'; '.join(dict.fromkeys(r.method for r in results if r.method)) or 'none'}.",
        f"Margins: {'; '.join(shown) or 'none'}.",
        f"Correction for the number of tests: {settings['correction']}. Seed {settings['seed']}.",
        f"{report.tool}, result model {report.version}.",
    )
    return f"<footer><h2>Method</h2><p>{escape(' '.join(sentences))}</p></footer>"


def _section(title: str, body: str, note: str = "", attributes: str = "") -> str:
    words = f'<p class="soft small">{escape(note)}</p>' if note else ""
    return f"<section{attributes}><h2>{escape(title)}</h2>{words}{body}</section>"


def _table(heads: tuple[str, ...], rows: list[str], sort: bool = False) -> str:
    right = ("base", "candidate", "change") if sort else ("cells",)
    cells = "".join(
        f"<th{' data-sort' if sort else ''}{' class=n' if name in right else ''}>{escape(name)}</th>" for name in heads
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _select(name: str, pairs: list[tuple[str, str]]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(words)}</option>' for value, words in pairs)
    return f'<label>{name} <select name="{name}">{options}</select></label>'


def _list(lines: list[str]) -> str:
    return f'<ul class="plain small">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def _plot(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
