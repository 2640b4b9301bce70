"""JUnit XML: one test suite per metric, one test case per cell."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from . import text
from .model import STATUS, Comparison, Report, Result

FAILURES = {
    "regressed": "PerformanceRegression",
    "accuracy-regressed": "AccuracyRegression",
    "missing": "Missing",
    "improved": "Improvement",
    "accuracy-improved": "Improvement",
}
ERRORS = {"oom": "OOM", "timeout": "Timeout"}
"""`<error type>` by failure kind; every other kind is a Crash."""
SKIPPED = ("inconclusive", "suspect", "not-comparable", "skipped", "both-failed")


def render(report: Report) -> str:
    """What fails the gate is a failure or an error; what could not be decided is skipped."""
    root = ET.Element("testsuites", name="bench compare")
    totals = [0, 0, 0, 0]
    for comparison in report.comparisons:
        prefix = f"{comparison.cand}: " if len(report.comparisons) > 1 else ""
        for metric in dict.fromkeys(result.metric for result in comparison.results):
            mine = [result for result in comparison.results if result.metric == metric]
            counts = _suite(root, f"{prefix}{metric}", mine, comparison)
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
    for name, total in zip(("tests", "failures", "errors", "skipped"), totals, strict=True):
        root.set(name, str(total))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, name: str, results: list[Result], comparison: Comparison) -> list[int]:
    suite = ET.SubElement(root, "testsuite", name=clean(name))
    properties = ET.SubElement(suite, "properties")
    for key, value in (("base", comparison.base), ("candidate", comparison.cand), ("session", comparison.session)):
        ET.SubElement(properties, "property", name=key, value=clean(value))
    for line in text.environment(comparison):
        ET.SubElement(properties, "property", name="environment", value=clean(line))
    counts = [len(results), 0, 0, 0]
    for result in results:
        tag = _case(suite, name, result)
        if tag:
            counts[("failure", "error", "skipped").index(tag) + 1] += 1
    for attribute, count in zip(("tests", "failures", "errors", "skipped"), counts, strict=True):
        suite.set(attribute, str(count))
    suite.set("time", "0")
    return counts


def _case(suite: ET.Element, classname: str, result: Result) -> str:
    case = ET.SubElement(suite, "testcase", classname=clean(f"bench.{classname}"), name=clean(result.label), time="0")
    properties = ET.SubElement(case, "properties")
    figures = {
        "verdict": result.verdict,
        "tier": result.tier,
        "ratio": result.ratio,
        "difference": result.d if result.metric == "acc" else None,
        "lower": result.lower,
        "upper": result.upper,
        "margin": result.margin,
        "launches": text.launches(result),
    }
    for name, value in figures.items():
        if value not in (None, ""):
            ET.SubElement(properties, "property", name=name, value=clean(str(value)))
    words = (
        text.verdict(result)
        if result.metric == STATUS
        else f"{text.change(result)} {text.interval(result)} {text.verdict(result)}"
    )
    if result.fails and result.verdict in ("failed-new", "new"):
        kind = ERRORS.get(result.cand_status, "Crash")
        ET.SubElement(case, "error", type=kind, message=clean(words)).text = clean(_log(result))
        return "error"
    if result.fails:
        ET.SubElement(case, "failure", type=FAILURES[result.verdict], message=clean(words))
        return "failure"
    if result.waived or result.verdict in SKIPPED:
        ET.SubElement(case, "skipped", message=clean(words))
        return "skipped"
    return ""


def _log(result: Result) -> str:
    return f"{result.reason}\nlog: {result.log}" if result.log else result.reason


def clean(words: str) -> str:
    """Characters that XML 1.0 allows; ElementTree escapes the rest."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", words)
