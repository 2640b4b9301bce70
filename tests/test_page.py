"""report.html: complete without a network, and nothing in it comes from a file unescaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from bench.page import html
from bench.record import Failure, Iteration, ModelCost, Peaks, Record

AXES = {
    "model": "tiny", "weights": "random", "engine": "eager", "precision": "bf16", "decoding": "greedy", "num_beams": 1,
    "batch_size": 1, "input_tokens": 100, "output_tokens": 3, "device": "fake", "launcher": "local", "tp": "none",
    "world_size": 1, "stack": "current", "task": "generate", "env": "",
}  # fmt: skip


def record(cell: str = "a", **changes: object) -> Record:
    item = Iteration((0.1, 0.11, 0.12), 0.12, "h")
    fields = {
        "cell": cell, "launch": 1, "axes": AXES, "run": "r", "log": "jobs/001/log", "started": "", "iterations": (item,) * 4,
        "warmups": (Iteration((0.5, 0.51, 0.52), 0.52, "h"),), "load_s": 1.0, "hook_s": 1e-6, "peak_memory_bytes": 2.0**30,
        "peak_reserved_bytes": 2.0**31, "other_cores": 0.0, "compiled": False, "cost": ModelCost(), "peaks": Peaks(),
        "seed": 0, "approximation": None, "fingerprint": {"device_name": "fake device"}, "warnings": (),
    }  # fmt: skip
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


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


def test_figures_and_samples_are_there() -> None:
    seen = read(html([record(), record("b", axes={**AXES, "num_beams": 4})]))
    text = " ".join(seen.words)
    assert "tiny on fake device" in text and "2 measured" in text
    assert text.count("100.0 ms") >= 2 and text.count("10.00 ms") >= 2  # TTFT 0.1 s, TPOT (0.12 - 0.1) / 2
    assert seen.tags.count("svg") == 4 and seen.tags.count("polyline") == 2
    assert seen.tags.count("circle") == 2 * 5  # every call, the warm-up too
    assert seen.references == []


def test_steps_are_drawn_to_scale() -> None:
    steps = Iteration((0.1, 0.11, 0.13), 0.13, "h")
    page = html([record(iterations=(steps,))])
    (points,) = re.findall(r'points="([^"]+)"', page)
    (_, low), (_, high) = (map(float, point.split(",")) for point in points.split())
    assert (102 - high) / (102 - low) == pytest.approx(2.0, rel=0.01)  # 20 ms over 10 ms, measured from the axis at y = 102


def test_one_token_has_no_curve() -> None:
    assert "polyline" not in html([record(iterations=(Iteration((0.1,), 0.1, "h"),))])


def test_whatever_comes_from_outside_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    failure = Failure("c", 1, {**AXES, "model": evil, "num_beams": 4}, "r", evil, "", "error", evil, (evil,))
    seen = read(html([record(warnings=(evil,), fingerprint={"device_name": evil}), failure]))
    assert "script" not in seen.tags
    assert " ".join(seen.words).count(evil) >= 5


def test_a_folder_gets_its_page(tmp_path: Path) -> None:
    from bench.folder import Folder
    from bench.report import write

    write(Folder(tmp_path), [record()])
    assert (tmp_path / "report.html").read_text() == html([record()])
    assert (tmp_path / "report.md").read_text().startswith("# Results")
