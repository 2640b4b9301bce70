"""report.html: one file that needs no network. The table, and for every cell a look at its raw samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from statistics import median

from . import metrics
from .record import Failure, Outcome, Record
from .report import View, by_cell, meanings, views
from .units import milliseconds

STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #687385; --line: #d9dee6; --paper: #fff; --mark: #0b63ce;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --soft: #98a2b3; --line: #343b47; --paper: #14171c;
  --mark: #6aa9ff; --bad: #ff8a80; } }
body { margin: 0; background: var(--paper); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { margin: .3rem 0; } .soft, dt { color: var(--soft); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } .n { text-align: right; } td.why { white-space: normal; min-width: 16rem; }
.common { display: flex; flex-wrap: wrap; gap: 0 1.6rem; } .common div { display: flex; gap: .45rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: .5rem 0; } dd { margin: 0; }
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figcaption { font-size: .85rem; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; } .axis { stroke: var(--line); }
.steps { fill: none; stroke: var(--mark); stroke-width: 1.3; } .dot { fill: var(--mark); }
.warm { fill: none; stroke: var(--soft); } pre { overflow-x: auto; font-size: .8rem; color: var(--soft); }
"""

WIDTH, HEIGHT = 350, 110


def html(outcomes: Sequence[Outcome]) -> str:
    """The page. Whatever comes from a file or a library is escaped."""
    shown = views(outcomes)
    failures = {(item.error, item.log): item for item in outcomes if isinstance(item, Failure)}
    ok = sum(not isinstance(item, Failure) for item in outcomes)
    counts = f"{ok} measured" + (f", {len(outcomes) - ok} failed" if ok < len(outcomes) else "")
    parts = [f"<h1>{escape(_title(shown[0]))}</h1><p class='soft'>{counts}</p>"]
    for each in shown:
        parts += [
            _common(each.common),
            f"<div class='scroll'>{_table(each)}</div>",
            *(f"<p class='soft'>[{number}] {escape(note)}</p>" for number, note in enumerate(each.notes, 1)),
        ]
    latencies = [item for item in outcomes if item.axes["task"] == "generate"]
    parts += [
        *([_plots(latencies, shown[0])] if latencies else []),
        *(_failure(item) for item in failures.values()),
        "<h2>What the figures mean</h2>",
        _definitions([(heading, metrics.column(name).doc) for name, heading in meanings(shown)]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(shown[0]))}</title><style>{STYLE}</style></head>\n"
        "<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _title(shown: View) -> str:
    common = dict(shown.common)
    return f"{common.get('model', 'Several models')} on {common.get('on', common.get('device', 'several devices'))}"


def _common(pairs: Sequence[tuple[str, str]]) -> str:
    inside = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f"<dl class='common'>{inside}</dl>"


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def _table(shown: View) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in shown.axes)
    heads += "".join(f"<th class='n'>{escape(heading)}</th>" for heading in shown.headings) + "<th></th>"
    rows = []
    for row in shown.rows:
        cells = "".join(f"<td>{escape(text)}</td>" for text in row.axes)
        figures = row.figures or ("",) * len(shown.headings)
        cells += "".join(f"<td class='n'>{escape(text)}</td>" for text in figures)
        notes = " ".join(f"[{number}]" for number in row.notes)
        wide, reason = (" class='why'", f"<span class='bad'>{escape(row.failure)}</span> ") if row.failure else ("", "")
        rows.append(f"<tr>{cells}<td{wide}>{reason}{notes}</td></tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _plots(outcomes: Sequence[Outcome], shown: View) -> str:
    figures = []
    for group, row in zip(by_cell(outcomes).values(), shown.rows, strict=True):
        records = [item for item in group if isinstance(item, Record)]
        if records:
            label = ", ".join(f"{name} {value}" for name, value in zip(shown.axes, row.axes, strict=True)) or "the cell"
            figures.append(
                f"<figure><figcaption>{escape(label)}</figcaption>{_steps(records)}{_iterations(records)}</figure>"
            )
    if not figures:
        return ""
    return (
        "<h2>Samples</h2><p class='soft'>Above: time of each step, median over the iterations; the first token apart. "
        "Below: E2E of every call in time order, warm-ups hollow. A slope, a stair or a lone peak is worth a look.</p>"
        f"<div class='cells'>{''.join(figures)}</div>"
    )


def _steps(records: Sequence[Record]) -> str:
    """Inter-token latency over the position of the token."""
    gaps = [metrics.itl(item) for record in records for item in record.iterations]
    curve = [median(step) for step in zip(*gaps, strict=True)]
    first = median(metrics.ttft(item) for record in records for item in record.iterations)
    top = max([*curve, 1e-9]) * 1.15
    points = " ".join(f"{_x(number, len(curve)):.1f},{_y(value, top):.1f}" for number, value in enumerate(curve))
    line = f'<polyline class="steps" points="{points}"/>' if len(curve) > 1 else ""
    note = f'<text x="{WIDTH - 4}" y="12" text-anchor="end">first token {escape(milliseconds(first))}</text>'
    return _svg("Time of each step", top, line + note)


def _iterations(records: Sequence[Record]) -> str:
    """E2E of all calls, launch after launch."""
    calls = [
        (item.e2e_s, kind)
        for record in records
        for item, kind in itertools.chain(
            ((item, "warm") for item in record.warmups), ((item, "dot") for item in record.iterations)
        )
    ]
    top = max(value for value, kind in calls if kind == "dot") * 1.3
    dots = "".join(
        f'<circle class="{kind}" cx="{_x(number, len(calls)):.1f}" cy="{_y(min(value, top), top):.1f}" r="3">'
        f"<title>{escape(milliseconds(value))}</title></circle>"
        for number, (value, kind) in enumerate(calls)
    )
    return _svg("E2E of each call", top, dots)


def _svg(name: str, top: float, body: str) -> str:
    axes = (
        f'<line class="axis" x1="60" y1="{HEIGHT - 8}" x2="{WIDTH}" y2="{HEIGHT - 8}"/>'
        f'<text x="56" y="{HEIGHT - 5}" text-anchor="end">0</text>'
        f'<text x="56" y="{_y(top / 1.15, top) + 3:.1f}" text-anchor="end">{escape(milliseconds(top / 1.15))}</text>'
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{axes}{body}</svg>'


def _x(number: int, count: int) -> float:
    return 64 + (WIDTH - 72) * (number / (count - 1) if count > 1 else 0.5)


def _y(value: float, top: float) -> float:
    return HEIGHT - 8 - (HEIGHT - 16) * value / top


def _failure(failure: Failure) -> str:
    tail = f"<pre>{escape(chr(10).join(failure.log_tail))}</pre>" if failure.log_tail else ""
    where = f"<p class='soft'>{escape(failure.log)}</p>" if failure.log else ""
    return f"<h2 class='bad'>{escape(failure.status)}</h2><p>{escape(failure.error)}</p>{where}{tail}"
