"""Inline SVG of a comparison: forest, scatter, strips, Pareto. No network, no script, colours from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from . import text
from .model import Result


def worse(result: Result) -> float:
    """Log ratio with the sign turned so that larger is worse."""
    assert result.d is not None
    return result.d if result.better == "lower" else -result.d


def bounds(result: Result) -> tuple[float, float] | None:
    """Bounds on the scale of `worse`."""
    if result.lower is None or result.upper is None:
        return None
    low, high = math.log(result.lower), math.log(result.upper)
    return (low, high) if result.better == "lower" else (-high, -low)


def forest(results: Sequence[Result], name: str) -> str:
    """One row per result: the interval of the change over the band of the margin; right is worse."""
    rows = [result for result in results if result.d is not None]
    left, width, row, top = 390, 1130, 22, 30
    reach = max([abs(edge) for r in rows for edge in (bounds(r) or (worse(r), worse(r)))] + [1.3 * _margin(rows[0])])
    reach = min(reach, math.log(1.6)) * 1.05
    middle, scale = left + (width - left) / 2, (width - left) / 2 / reach

    def x(value: float) -> float:
        return middle + scale * max(-reach, min(reach, value))

    parts = []
    bottom = top + row * len(rows)
    for tick in _ticks(reach):
        at = x(math.log1p(tick))
        parts.append(_line(at, top - 4, at, bottom, "axis" if tick == 0 else "grid"))
        parts.append(_text(at, top - 10, f"{100 * tick:+.3g} %" if tick else "0", "soft tiny", "middle"))
    for i, result in enumerate(rows):
        y = top + row * i + row / 2
        edge = _margin(result)
        parts.append(
            f'<rect class="band" x="{x(-edge):.1f}" y="{y - 8:.1f}" width="{x(edge) - x(-edge):.1f}" height="16"/>'
        )
        parts.append(_text(left - 14, y + 4, _clip(result.label, 52), "", "end"))
        span, verdict = bounds(result), escape(result.verdict)
        title = f"<title>{escape(_words(result))}</title>"
        body = ""
        if span:
            body += _line(x(span[0]), y, x(span[1]), y, f"ci {verdict}")
        dot = "" if span else " hollow"
        body += f'<circle class="{verdict}{dot}" cx="{x(worse(result)):.1f}" cy="{y:.1f}" r="4.2"/>'
        parts.append(f"<g>{title}{body}</g>")
    parts.append(_line(x(0), top - 4, x(0), bottom, "axis"))
    return _svg(width, bottom + 6, parts, f"Forest plot of {name}")


def scatter(results: Sequence[Result], kind: str, name: str) -> str:
    """Base against candidate on log axes: the diagonal is no change, the dashed lines are the margin."""
    rows = [result for result in results if result.base and result.cand]
    size, pad = 400, 62
    values = [v for r in rows for v in (r.base, r.cand) if v]
    low, high = math.log(min(values)) - 0.15, math.log(max(values)) + 0.15
    scale = (size - pad - 10) / (high - low)

    def x(value: float) -> float:
        return pad + scale * (math.log(value) - low)

    def y(value: float) -> float:
        return size - pad - scale * (math.log(value) - low) + 10

    parts = []
    for tick in _decades(math.exp(low), math.exp(high)):
        parts.append(_line(x(tick), 10, x(tick), size - pad + 10, "grid"))
        parts.append(_line(pad, y(tick), size - 10, y(tick), "grid"))
        label = _short(tick, kind)
        parts.append(_text(x(tick), size - pad + 28, label, "soft tiny", "middle"))
        parts.append(_text(pad - 8, y(tick) + 4, label, "soft tiny", "end"))
    start, end = math.exp(low), math.exp(high)
    parts.append(_line(x(start), y(start), x(end), y(end), "axis"))
    edge = math.exp(_margin(rows[0]))
    for factor in (edge, 1 / edge):
        a, b = (start, end / factor) if factor > 1 else (start / factor, end)
        parts.append(_line(x(a), y(a * factor), x(b), y(b * factor), "edge"))
    for result in rows:
        assert result.base and result.cand
        title = f"<title>{escape(_words(result))}</title>"
        parts.append(
            f'<circle class="dot {escape(result.verdict)}" cx="{x(result.base):.1f}" cy="{y(result.cand):.1f}" r="4">'
            f"{title}</circle>"
        )
    parts.append(_text((pad + size) / 2, size - 6, "base", "soft", "middle"))
    parts.append(_upward(size, "candidate"))
    return _svg(size, size, parts, f"Base against candidate, {name}")


def strip(result: Result) -> str:
    """Launches of both sides in the order of time, as change from the base's median; small dots are iterations."""
    base = sorted(result.base_launches)
    centre = base[len(base) // 2] if base else result.cand_launches[0]
    width, height, pad = 280, 110, 34
    sides = (("b", result.base_launches, "base"), ("c", result.cand_launches, "cand"))
    longest = max(len(result.base_launches), len(result.cand_launches))
    step = (width - pad - 8) / max(longest, 1)
    inner = {name: ((result.samples or {}).get(name) or {}).get("iterations") or [] for _, _, name in sides}
    # One outlying iteration must not flatten the launches: the axis is set by launches, iterations are clipped to it.
    reach = max([abs(math.log(v / centre)) for _, vs, _ in sides for v in vs] + [1.2 * _margin(result), 0.005]) * 1.1

    def y(value: float) -> float:
        return height / 2 - (height / 2 - 8) * max(-1.0, min(1.0, math.log(value / centre) / reach))

    parts = []
    edge = math.exp(_margin(result))
    top, bottom = y(centre * edge), y(centre / edge)
    parts.append(f'<rect class="band" x="{pad}" y="{top:.1f}" width="{width - pad}" height="{bottom - top:.1f}"/>')
    parts.append(_line(pad, height / 2, width, height / 2, "axis"))
    for share in (reach * 0.8, 0.0, -reach * 0.8):
        label = f"{100 * math.expm1(share):+.1f}" if share else "0 %"
        parts.append(_text(pad - 6, y(centre * math.exp(share)) + 4, label, "soft tiny", "end"))
    for shift, (style, values, name) in zip((-0.14, 0.14), sides, strict=True):
        places = [pad + step * (i + 0.5 + shift) for i in range(len(values))]
        for place, iterations in zip(places, inner[name], strict=False):
            for i, value in enumerate(iterations):
                at = place + step * 0.24 * ((i + 0.5) / len(iterations) - 0.5)
                parts.append(f'<circle class="it {style}" cx="{at:.1f}" cy="{y(value):.1f}" r="1.6"/>')
        points = " ".join(f"{place:.1f},{y(value):.1f}" for place, value in zip(places, values, strict=True))
        parts.append(f'<polyline class="path {style}" points="{points}"/>')
        for place, value in zip(places, values, strict=True):
            label = escape(f"{text.value(value, result.kind, result.metric)}")
            parts.append(
                f'<circle class="{style}" cx="{place:.1f}" cy="{y(value):.1f}" r="3.2"><title>{label}</title></circle>'
            )
    return _svg(width, height, parts, f"Launches of {result.label}")


def pareto(ttft: dict[str, Result], tpot: dict[str, Result]) -> str:
    """TTFT against TPOT of every cell, a line from the base to the candidate; lower left is better."""
    cells = [
        (name, [(ttft[name].base, tpot[name].base), (ttft[name].cand, tpot[name].cand)])
        for name in ttft
        if name in tpot and all(v for r in (ttft[name], tpot[name]) for v in (r.base, r.cand))
    ]
    if not cells:
        return ""
    size, pad = 400, 62
    spans = []
    for axis in (0, 1):
        values = [math.log(point[axis] or 1) for _, pair in cells for point in pair]
        middle, half = (min(values) + max(values)) / 2, max((max(values) - min(values)) / 2, 0.2) * 1.08
        spans.append((middle - half, middle + half))
    scale = [(size - pad - 10) / (high - low) for low, high in spans]

    def x(value: float | None) -> float:
        return pad + scale[0] * (math.log(value or 1) - spans[0][0])

    def y(value: float | None) -> float:
        return size - pad + 10 - scale[1] * (math.log(value or 1) - spans[1][0])

    parts = []
    for tick in _decades(*map(math.exp, spans[0])):
        parts.append(_line(x(tick), 10, x(tick), size - pad + 10, "grid"))
        parts.append(_text(x(tick), size - pad + 28, _short(tick, "duration"), "soft tiny", "middle"))
    for tick in _decades(*map(math.exp, spans[1])):
        parts.append(_line(pad, y(tick), size - 10, y(tick), "grid"))
        parts.append(_text(pad - 8, y(tick) + 4, _short(tick, "duration"), "soft tiny", "end"))
    for name, (a, b) in cells:
        title = f"<title>{escape(name)}</title>"
        parts.append(
            f"<g>{title}{_line(x(a[0]), y(a[1]), x(b[0]), y(b[1]), 'path c')}"
            f'<circle class="b dot" cx="{x(a[0]):.1f}" cy="{y(a[1]):.1f}" r="3.4"/>'
            f'<circle class="c dot" cx="{x(b[0]):.1f}" cy="{y(b[1]):.1f}" r="3.4"/></g>'
        )
    parts.append(_text((pad + size) / 2, size - 6, "TTFT", "soft", "middle"))
    parts.append(_upward(size, "TPOT"))
    return _svg(size, size, parts, "TTFT against TPOT")


def _margin(result: Result) -> float:
    return math.log1p(result.margin or 0.03)


def _words(result: Result) -> str:
    line = text.line(result)
    return f"{result.label}: {line.base} → {line.cand}, {line.change} {line.interval}, {line.verdict}"


def _ticks(reach: float) -> list[float]:
    """Round changes on both sides of zero, about three on each."""
    step = next((s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if math.expm1(reach) / s < 4.5), 0.5)
    count = int(math.expm1(reach) / step)
    return [step * i for i in range(-count, count + 1) if abs(math.log1p(step * i)) <= reach]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values; powers of ten only when that would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1, 2, 5), (1,)):
        ticks = [lead * 10.0**power for power in powers for lead in leads if low <= lead * 10.0**power <= high]
        if len(ticks) <= 5:
            return ticks
    return ticks[:: -(-len(ticks) // 5)]


def _short(value: float, kind: str) -> str:
    """A round figure without trailing zeros."""
    number, _, unit = text.value(value, kind).partition(" ")
    return f"{float(number):g} {unit}".strip()


def _clip(words: str, most: int) -> str:
    return words if len(words) <= most else "…" + words[-most + 1 :]


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _upward(size: float, words: str) -> str:
    place = f"translate(8 {size / 2 - 20:.0f}) rotate(-90)"
    return f'<text class="soft" text-anchor="middle" transform="{place}">{escape(words)}</text>'


def _svg(width: float, height: float, parts: list[str], name: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'
