"""One HTML file that needs no network: the verdict, the table, the plots and how they were made."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from . import plots, text
from .model import STATUS, Comparison, Report, Result

FOREST_ROWS = 60
STRIPS = 18

_HERE = Path(__file__).parent


def render(report: Report) -> str:
    """The page. Everything that comes from a file is escaped; there is no reference to another file."""
    first = report.comparisons[0]
    body = "".join(_comparison(comparison, report) for comparison in report.comparisons)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(first.gate)}: {escape(first.cand)} against {escape(first.base)}</title>"
        f"<style>\n{(_HERE / 'report.css').read_text()}</style></head>\n<body><main>\n{body}\n{_method(report)}\n</main>"
        f"<script>\n{(_HERE / 'report.js').read_text()}</script></body></html>\n"
    )


def _comparison(comparison: Comparison, report: Report) -> str:
    results = text.ordered(comparison.results)
    parts = [
        _header(comparison, report),
        _environment(comparison),
        _table(results),
        _forests(results),
        _scatters(results),
        _heat(results),
        _strips(results),
        _flips(results),
        _notes(comparison, report),
    ]
    return "\n".join(part for part in parts if part)


def _header(comparison: Comparison, report: Report) -> str:
    chips = "".join(
        f'<li><b class="{verdict}">{comparison.counts[verdict]}</b>{verdict.replace("-", " ")}</li>'
        for verdict in text.SEVERITY
        if verdict in comparison.counts
    )
    lines = [*text.suite(comparison), *comparison.marginals]
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    warn = "<p>--warn-only: the exit code is 0 whatever the gate says.</p>" if report.warn_only else ""
    return (
        f'<header class="verdict {comparison.gate.split()[0]}"><span class="gate">{escape(comparison.gate)}</span>'
        f"<h1>{escape(_headline(comparison))}</h1>"
        f'<p class="soft"><code>{escape(comparison.cand)}</code> against <code>{escape(comparison.base)}</code> · '
        f'{escape(text.scope(comparison))}</p>{warn}<ul class="counts">{chips}</ul><ul class="plain">{listed}</ul></header>'
    )


def _headline(comparison: Comparison) -> str:
    counts = comparison.counts
    bad = [
        ("regressed", "regressed"),
        ("accuracy-regressed", "lost accuracy"),
        ("failed-new", "newly failed"),
        ("missing", "missing"),
    ]
    words = [f"{counts[verdict]} {name}" for verdict, name in bad if counts.get(verdict)]
    if words:
        return ", ".join(words)
    if not any(result.metric != STATUS and result.ratio is not None for result in comparison.results):
        return "Nothing could be compared" if comparison.exit_code else "No regression found"
    return "Not decided" if comparison.exit_code else "No regression found"


def _environment(comparison: Comparison) -> str:
    if not comparison.environment:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(item.column)}</code></td><td>{escape(', '.join(item.base))}</td>"
        f"<td>{escape(', '.join(item.cand))}</td><td>{'hard' if item.hard else 'soft'}</td>"
        f'<td>{"declared" if item.declared else "<b>not declared</b>"}</td><td class="n">{item.cells}</td></tr>'
        for item in comparison.environment
    )
    return (
        "<section><h2>Environment</h2>"
        '<p class="soft small">What differs besides the numbers. Declare the change under test with --expect-diff.</p>'
        '<table><thead><tr><th>column</th><th>base</th><th>candidate</th><th>kind</th><th></th><th class="n">cells</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></section>"
    )


def _table(results: list[Result]) -> str:
    metrics = _options([(name, text.metric(name)) for name in dict.fromkeys(result.metric for result in results)])
    present = {result.verdict for result in results}
    verdicts = _options([(name, name) for name in text.SEVERITY if name in present])
    heads = ("cell", "metric", "base", "candidate", "change", "interval", "launches", "verdict")
    head = "".join(
        f'<th data-sort class="{"n" if name in ("base", "candidate", "change") else ""}">{name}</th>' for name in heads
    )
    return (
        '<section data-results><h2>Cells</h2><div class="controls">'
        '<input type="search" placeholder="filter: llama int4 bs8" aria-label="filter">'
        f'<label>metric <select name="metric"><option value="">all</option>{metrics}</select></label>'
        f'<label>verdict <select name="verdict"><option value="">all</option>{verdicts}</select></label><output></output></div>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(map(_row, results))}</tbody></table></div></section>'
    )


def _row(result: Result) -> str:
    line = text.line(result)
    launches = f"{result.base_ok}/{result.cand_ok}"
    name, _, why = line.verdict.partition(": ")
    detail = f'<div class="why">{escape(why)}</div>' if why else ""
    title = f' title="{escape("; ".join(result.notes))}"' if result.notes else ""
    return (
        f'<tr data-metric="{escape(result.metric)}" data-verdict="{escape(result.verdict)}"{title}>'
        f"<td>{escape(line.cell)}</td><td>{escape(line.metric)}</td>"
        f"{_figure(line.base, result.base)}{_figure(line.cand, result.cand)}"
        f"{_figure(line.change, plots.worse(result) if result.d is not None else None)}"
        f"<td>{escape(line.interval)}</td><td>{launches}</td>"
        f'<td><span class="v {escape(result.verdict)}">{escape(name)}</span>{detail}</td></tr>'
    )


def _figure(words: str, number: float | None) -> str:
    value = f' data-v="{number:.6g}"' if number is not None else ' data-v="-1e9"'
    return f'<td class="n"{value}>{escape(words)}</td>'


def _options(pairs: list[tuple[str, str]]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(name)}</option>' for value, name in pairs)


def _by_metric(results: list[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.ratio is not None and result.tier != "T3" and result.base and result.cand:
            found.setdefault(result.metric, []).append(result)
    return found


def _forests(results: list[Result]) -> str:
    parts = []
    for metric, mine in _by_metric(results).items():
        shown = sorted(mine, key=lambda r: -abs(r.d or 0))[:FOREST_ROWS]
        shown.sort(key=lambda r: -plots.worse(r))
        rest = (
            f" The {len(shown)} largest changes; {len(mine) - len(shown)} more are in the table."
            if len(mine) > len(shown)
            else ""
        )
        parts.append(
            f"<h3>{escape(text.metric(metric))}</h3><figure>{plots.forest(shown, text.metric(metric))}"
            f"<figcaption>Right is worse. Grey band: margin. Line: {escape(shown[0].interval or 'no')} interval.{rest}</figcaption></figure>"
        )
    return f"<section><h2>Change by cell</h2>{''.join(parts)}</section>" if parts else ""


def _scatters(results: list[Result]) -> str:
    groups = _by_metric(results)
    figures = [
        f"<figure>{plots.scatter(mine, mine[0].kind, text.metric(metric))}"
        f"<figcaption>{escape(text.metric(metric))}: base against candidate, log axes. Dashed: margin.</figcaption></figure>"
        for metric, mine in groups.items()
    ]
    latency = [{result.label: result for result in groups.get(name, [])} for name in ("ttft_s", "tpot_s")]
    trade = plots.pareto(latency[0], latency[1])
    if trade:
        figures.append(
            f'<figure>{trade}<figcaption>TTFT against TPOT, lower left is better.<span class="key b"></span>base'
            '<span class="key c"></span>candidate</figcaption></figure>'
        )
    return f'<section><h2>Both builds</h2><div class="plots">{"".join(figures)}</div></section>' if figures else ""


def _heat(results: list[Result]) -> str:
    """Change over two axes; the page's script draws it from the data embedded here."""
    groups = _by_metric(results)
    everything = [result for mine in groups.values() for result in mine]
    keys = [
        name for name in (everything[0].key if everything else {}) if len({r.key.get(name) for r in everything}) > 1
    ]
    if len(keys) < 2:
        return ""
    cells = [[r.metric, round(plots.worse(r), 6), [r.key.get(name, "") for name in keys]] for r in everything]
    # "<" would let a value of the CSV close the script element.
    data = json.dumps({"keys": keys, "cells": cells}, ensure_ascii=False).replace("<", "\\u003c")
    axes = _options([(name, name) for name in keys])
    second = axes.replace("<option", "<option selected", 2).replace("<option selected", "<option", 1)
    metrics = _options([(name, text.metric(name)) for name in groups])
    return (
        '<section data-heat id="heat"><h2>Where it moved</h2>'
        '<p class="soft small">Change in per cent, positive is worse, geometric mean over the other axes.</p>'
        f'<div class="controls"><label>metric <select name="metric">{metrics}</select></label>'
        f'<label>across <select name="across">{axes}</select></label><label>down <select name="down">{second}</select></label></div>'
        f'<div class="heat"></div><script type="application/json">{data}</script></section>'
    )


def _strips(results: list[Result]) -> str:
    many = [
        r
        for r in results
        if r.metric != STATUS and r.ratio is not None and r.tier != "T3" and len(r.base_launches + r.cand_launches) > 2
    ]
    if not many:
        return ""
    figures = "".join(
        f'<figure><figcaption title="{escape(r.label)}"><span class="v {escape(r.verdict)}">{escape(text.metric(r.metric))}</span> '
        f"{escape(r.label)}</figcaption>{plots.strip(r)}</figure>"
        for r in many[:STRIPS]
    )
    rest = f" The first {STRIPS} of {len(many)}, worst first." if len(many) > STRIPS else ""
    return (
        "<section><h2>Launches in the order of time</h2>"
        f'<p class="soft small">Change from the base\'s median, %. Grey band: margin. Small dots: iterations.{rest}'
        '<span class="key b"></span>base<span class="key c"></span>candidate</p>'
        f'<div class="strips">{figures}</div></section>'
    )


def _flips(results: list[Result]) -> str:
    parts = []
    for result in results:
        details = result.accuracy or {}
        documents = details.get("documents") or []
        if not documents:
            continue
        rows = "".join(
            f'<tr><td class="v {"accuracy-regressed" if item["lost"] else "improved"}">{"lost" if item["lost"] else "gained"}</td>'
            f"<td>{escape(item['text'])}</td><td>{escape(item['target'])}</td><td>{escape(item['base'])}</td>"
            f"<td>{escape(item['cand'])}</td></tr>"
            for item in documents
        )
        more = (
            f"first {len(documents)} of {details['flips']}"
            if details["flips"] > len(documents)
            else f"all {details['flips']}"
        )
        parts.append(
            f"<h3>{escape(result.label)}</h3><p class='soft small'>{details['lost']} lost, {details['gained']} gained of "
            f"{details['n']} documents: flip rate {text.percent(details['flip_rate'], 2)} "
            f"[{100 * details['flip_lower']:.2f}, {100 * details['flip_upper']:.2f}], McNemar mid-p "
            f"{details['mcnemar_mid_p']:.3g}; {more} shown</p>"
            '<div class="scroll"><table><thead><tr><th></th><th>document</th><th>target</th><th>base</th><th>candidate</th></tr>'
            f"</thead><tbody>{rows}</tbody></table></div>"
        )
    return f"<section><h2>Flipped documents</h2>{''.join(parts)}</section>" if parts else ""


def _notes(comparison: Comparison, report: Report) -> str:
    notes = text.footnotes(comparison, report)
    if not notes:
        return ""
    return f"<section><h2>Notes</h2><ul class='plain small'>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul></section>"


def _method(report: Report) -> str:
    settings = report.settings
    methods = dict.fromkeys(r.method for c in report.comparisons for r in c.results if r.method)
    tiers = dict.fromkeys(r.tier for c in report.comparisons for r in c.results if r.tier)
    margins = dict.fromkeys(
        f"{text.metric(r.metric)} {100 * r.margin:.3g} % ({r.margin_source})"
        for c in report.comparisons
        for r in c.results
        if r.margin is not None and r.tier != "T3"
    )
    shown = [*list(margins)[:8], *([f"{len(margins) - 8} more"] if len(margins) > 8 else [])]
    return (
        "<footer><h2>Method</h2><p>A launch, one fresh process, is the unit of replication. Differences of mean logarithms of launch "
        f"medians; one-sided bounds of level α = {settings['alpha']}. Regressed: the whole interval is worse than the margin δ. "
        "Equivalent: the whole interval is inside ±δ. MDE: the change from none that would be seen with 80 % power. "
        f"Tiers: {escape(', '.join(tiers) or 'none')}. Methods: {escape('; '.join(methods) or 'none')}. "
        f"Margins: {escape('; '.join(shown) or 'none')}. Correction for the number of tests: {escape(str(settings['correction']))}. "
        f"Seed {settings['seed']}. {escape(report.tool)}, model version {report.version}.</p></footer>"
    )
