"""Every output of one comparison that holds every kind of verdict, against golden files; limits and escapes."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lxml import etree

from bench.compare import render_csv, render_github, render_html, render_junit, render_markdown, render_terminal, text
from bench.compare.compare import compare
from bench.compare.model import Difference, Report, Result, plain, to_json
from bench.compare.read import read_side
from bench.compare.settings import Settings
from tests.compare.conftest import noisy, rows

GOLDEN = Path(__file__).parent / "golden"
NASTY = '</script><script>alert(1)</script> | =cmd|x @user "q" http://evil.example \x00\x1b[31m'


def everything() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Six cells: unchanged, 8 % slower, 20 % faster, out of memory, gone, undecided; one is new."""
    base = noisy(6, 5, 11, sd=0.004)
    cand = noisy(6, 5, 12, sd=0.004, run="run-b", torch="2.9.0").assign(error="", log="")
    cand.loc[cand.batch_size == 2, "tpot_s"] *= 1.08
    cand.loc[cand.batch_size == 3, "tpot_s"] *= 0.80
    cand.loc[cand.batch_size == 4, ["status", "error", "log"]] = ["oom", "asked 2 GiB, had 1 GiB", "jobs/4/log"]
    cand.loc[cand.batch_size == 4, ["ttft_s", "tpot_s"]] = None
    wide = np.exp(0.1 * np.array([-1, 0.5, 0.8, -0.6, 0.3]))
    cand.loc[cand.batch_size == 6, "ttft_s"] *= wide
    cand = cand[cand.batch_size != 5]
    return base, pd.concat([cand, rows([{"ttft_s": 1.0, "tpot_s": 0.1}], run="run-b", batch_size=99)])


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, cand = everything()
    base.to_csv("base.csv", index=False)
    cand.to_csv("cand.csv", index=False)
    return make(compare(read_side(["base.csv"]), read_side(["cand.csv"]), Settings()))


def make(comparison, **settings) -> Report:
    return Report([comparison], {**plain(vars(Settings())), **settings}, "bench 0.0", comparison.exit_code)


RENDER = {
    "terminal.txt": lambda report: render_terminal.render(report, everything=True),
    "comment.md": render_markdown.render,
    "junit.xml": render_junit.render,
    "annotations.txt": render_github.render,
    "flat.csv": render_csv.render,
}


@pytest.mark.parametrize("name", RENDER)
def test_golden(report, name):
    got = RENDER[name](report)
    if name in ("flat.csv", "junit.xml"):  # the last digits of a figure are those of the libraries
        got = re.sub(r"\d\.\d{7,}(e-\d+)?", lambda m: f"{float(m[0]):.6g}", got)
    path = GOLDEN / name
    if not path.exists() or path.read_text() != got:
        (GOLDEN / f"{name}.got").write_text(got)
        pytest.fail(f"{name} differs from its golden file; the new text is in golden/{name}.got")


def test_junit_is_valid_and_agrees_with_the_json(report):
    schema = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit.xsd")))
    tree = etree.fromstring(render_junit.render(report).encode())
    schema.assertValid(tree)
    results = json.loads(to_json(report))["comparisons"][0]["results"]
    assert int(tree.get("tests")) == len(tree.findall(".//testcase")) == len(results)
    failing = [r for r in results if r["fails"]]
    assert int(tree.get("failures")) + int(tree.get("errors")) == len(failing) > 0
    assert [e.get("type") for e in tree.iter("error")] == ["OOM"]
    assert sorted(e.get("type") for e in tree.iter("failure")) == ["Missing", "PerformanceRegression"]


def test_every_printed_figure_is_in_the_json(report):
    """Rounding the JSON's figures gives the table's."""
    for data in json.loads(to_json(report))["comparisons"][0]["results"]:
        result = Result(**data)
        if result.ratio is None:
            continue
        line = text.line(result)
        assert line.base == text.value(data["base"], data["kind"])
        change = 100 * abs(data["ratio"] - 1)
        assert line.change.startswith(f"{change:.1f} %")
        assert data["ratio"] == pytest.approx(data["cand"] / data["base"])
        assert np.exp(data["d"]) == pytest.approx(data["ratio"])
        logs = [np.log(data[side]) for side in ("base_launches", "cand_launches")]
        assert np.mean(logs[1]) - np.mean(logs[0]) == pytest.approx(data["d"])


def test_json_has_no_nan_and_reads_back(report):
    report.comparisons[0].results[0].mde = float("nan")
    data = json.loads(to_json(report), parse_constant=lambda word: pytest.fail(word))
    assert (data["version"], data["exit_code"], data["tool"]) == (1, 1, "bench 0.0")


def big(cells: int) -> Report:
    base, cand = noisy(cells, 3, 1, sd=0.004), noisy(cells, 3, 2, sd=0.004, factor=1.1, run="b")
    return base, cand


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for name, frame in zip(("base", "cand"), big(500), strict=True):
        frame.assign(started="2026-01-01T00:00:00Z").to_csv(folder / f"{name}.csv", index=False)
    return make(compare(read_side([f"{folder}/base.csv"]), read_side([f"{folder}/cand.csv"]), Settings()))


@pytest.mark.parametrize("limit", [8_000, render_markdown.COMMENT_BYTES, render_markdown.SUMMARY_BYTES])
def test_markdown_stays_below_the_limit_and_counts_what_it_leaves_out(large, limit):
    words = render_markdown.render(large, limit)
    assert len(words.encode()) <= limit
    shown = sum(line.startswith("| llama3-8b") for line in words.splitlines())
    hidden = int(re.search(r"^(\d+) rows not shown\.$", words, re.MULTILINE)[1])
    assert shown + hidden == 1000
    assert (hidden == 0) == (limit == render_markdown.SUMMARY_BYTES)


def test_terminal_counts_what_it_leaves_out(large):
    words = render_terminal.render(large, most=10)
    assert "990 more rows not shown (--max-rows)" in words


def test_annotations_are_ten_at_most(large):
    assert render_github.render(large).count("::error") == 10


def test_html_of_500_cells_is_one_small_offline_file(large):
    page = render_html.render(large)
    assert len(page.encode()) < 2_000_000
    assert not re.search(r"""(src|href|url|import|action|xmlns)\s*[=(]""", page.replace("aria-label", ""))
    assert "http" not in page
    assert page.count("<svg") == page.count("</svg>") >= 5
    assert page.count("<tr data-metric") == 1000


@pytest.fixture
def nasty(tmp_path):
    frames = [
        noisy(3, 3, seed, model=NASTY.replace("\x00", ""), device="=1+1", precision=f"<{seed}>") for seed in (1, 2)
    ]
    base = pd.concat(frames)
    cand = base.assign(run="b", error="", driver=NASTY.replace("\x00", ""))
    cand["tpot_s"] *= 1.3
    cand.loc[cand.batch_size == 1, ["status", "error", "ttft_s", "tpot_s"]] = [
        "@oom",
        NASTY.replace("\x00", ""),
        None,
        None,
    ]
    paths = [tmp_path / "=base<b>.csv", tmp_path / "cand.csv"]
    for path, frame in zip(paths, (base, cand), strict=True):
        frame.to_csv(path, index=False)
    return make(compare(read_side([str(paths[0])]), read_side([str(paths[1])]), Settings()))


def test_html_escapes_what_comes_from_files(nasty):
    page = render_html.render(nasty)
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</script>" not in page and "<b>.csv" not in page
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert data["keys"] and all(cell[0] in ("ttft_s", "tpot_s") for cell in data["cells"])


def test_markdown_escapes_what_comes_from_files(nasty):
    words = render_markdown.render(nasty)
    assert "<script" not in words and "@user" not in words and "http://" not in words
    table = [line for line in words.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table} == {9}


def test_csv_does_not_run_formulas(nasty):
    table = list(csv.DictReader(io.StringIO(render_csv.render(nasty))))
    assert {row["device"] for row in table} == {"'=1+1"}
    assert any(row["cand_status"] == "'@oom" for row in table)
    assert not any(value[:1] in ("=", "@", "+") for row in table for value in row.values())
    assert all(float(row["lower"]) < float(row["ratio"]) < float(row["upper"]) for row in table if row["lower"])


def test_junit_survives_control_characters(nasty):
    etree.fromstring(render_junit.render(nasty).encode())
    assert render_junit.clean("a\x00b\x1b") == "a�b�"


def test_annotations_stay_on_their_line(nasty):
    lines = render_github.render(nasty).splitlines()
    assert all(line.startswith("::error title=") for line in lines)
    assert len(lines) == 2 + 4 + 1  # two cells failed, four are slower, and the summary


@pytest.mark.parametrize(
    ("number", "kind", "expected"),
    [
        (0.0214, "duration", "21.40 ms"), (0.0099999999, "duration", "10.00 ms"), (0.118, "duration", "118.0 ms"),
        (2.5, "duration", "2.500 s"),
        (1234.5, "duration", "1234 s"), (0.0000123, "duration", "12.30 µs"), (3 * 2**30, "bytes", "3.000 GiB"),
        (5.5 * 2**20, "bytes", "5.500 MiB"), (0.731, "proportion", "73.10 %"), (46.73, "rate", "46.73 tok/s"),
        (None, "duration", "–"),
    ],
)  # fmt: skip
def test_figures_have_four_digits(number, kind, expected):
    assert text.value(number, kind) == expected


@pytest.mark.parametrize(
    ("ratio", "lower", "upper", "kind", "better", "change", "interval"),
    [
        (1.07, 1.06, 1.08, "duration", "lower", "7.0 % slower", "[6.0, 8.0]"),
        (0.93, 0.92, 0.94, "duration", "lower", "7.0 % faster", "[6.0, 8.0]"),
        (1.025, 0.992, 1.059, "duration", "lower", "2.5 % slower", "[-0.8, 5.9]"),
        (0.93, 0.92, 0.94, "rate", "higher", "7.0 % slower", "[6.0, 8.0]"),
        (1.02, 1.01, 1.03, "bytes", "lower", "2.0 % more", "[1.0, 3.0]"),
        (0.9, 0.8, 1.1, "proportion", "higher", "10.0 % lower", "[-10.0, 20.0]"),
        (1.0001, 0.999, 1.001, "duration", "lower", "0.0 %", "[-0.1, 0.1]"),
    ],
)
def test_changes_are_words(ratio, lower, upper, kind, better, change, interval):
    result = Result("", {}, "x", "equivalent", kind=kind, better=better, ratio=ratio, lower=lower, upper=upper)
    assert (text.change(result), text.interval(result)) == (change, interval)


def test_colour_only_for_a_person(report, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    plain_text = render_terminal.render(report)
    for stream, color, environment, coloured in (
        (Terminal(), True, {}, True), (Terminal(), False, {}, False), (Terminal(), True, {"NO_COLOR": ""}, False),
        (io.StringIO(), True, {}, False),
    ):  # fmt: skip
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        render_terminal.show(plain_text, stream, color)
        assert ("\x1b[" in stream.getvalue()) == coloured
        assert re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()) == plain_text


def test_line_of_a_status_names_both_sides(report):
    (result,) = [r for r in report.comparisons[0].results if r.verdict == "failed-new"]
    assert astuple(text.line(result)) == (
        "llama3-8b bf16 bs4", "–", "ok", "oom", "–", "–", "–", "failed-new: asked 2 GiB, had 1 GiB",
    )  # fmt: skip


def test_the_page_shows_of_variables_those_that_differ(report):
    (comparison,) = report.comparisons
    comparison.environment = [Difference("variables", ["A=1 B=2"], ["A=1 B=3"], False, False, 1)]
    assert "<td>B=2</td><td>B=3</td>" in render_html.render(report)
