"""report.html: complete without a network, and nothing in it comes from a file unescaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench.folder import Folder
from bench.page import html
from bench.record import Iteration
from bench.report import write


class Reader(HTMLParser):
    """Collects text, tags and what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_figures_and_samples_are_there(make: Any) -> None:
    seen = read(html([make.record(count=4), make.record(make.cell(beams=4), count=4)]))
    text = " ".join(seen.words)
    assert "tiny on a device" in text and "2 measured" in text
    assert text.count("100.0 ms") >= 2 and text.count("10.00 ms") >= 2  # TTFT 0.1 s, TPOT 0.01 s
    assert seen.tags.count("svg") == 4 and seen.tags.count("polyline") == 2
    assert seen.tags.count("circle") == 2 * 5  # every call, the warm-up too
    assert seen.references == []


def test_steps_are_drawn_to_scale(make: Any) -> None:
    page = html([make.record(iterations=(Iteration((0.1, 0.11, 0.13), 0.13, "h"),))])
    (points,) = re.findall(r'points="([^"]+)"', page)
    (_, low), (_, high) = (map(float, point.split(",")) for point in points.split())
    assert (102 - high) / (102 - low) == pytest.approx(2.0, rel=0.01)  # 20 ms over 10 ms; the axis is at y = 102


def test_one_token_has_no_curve(make: Any) -> None:
    assert "polyline" not in html([make.record(make.cell(outputs=1))])


def test_only_reasons_take_the_room_of_reasons(make: Any) -> None:
    page = html([make.record(warnings=("noisy",)), make.failure(make.cell(beams=4), error="no memory")])
    (wide,) = re.findall(r"<td class='why'>(.*?)</td>", page)
    assert "no memory" in wide
    assert "<td>[1]</td>" in page


def test_whatever_comes_from_outside_is_escaped(make: Any) -> None:
    evil = "<script>alert(1)</script>"
    failure = make.failure(make.cell(beams=4), error=evil, log=evil, log_tail=(evil,))
    seen = read(html([make.record(warnings=(evil,), fingerprint={"device_name": evil}), failure]))
    assert "script" not in seen.tags
    assert " ".join(seen.words).count(evil) >= 5


def test_a_folder_gets_its_page(tmp_path: Path, make: Any) -> None:
    write(Folder(tmp_path), [make.record()])
    assert (tmp_path / "report.html").read_text() == html([make.record()])
    assert (tmp_path / "report.md").read_text().startswith("# Results")
