"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bench.compare import ab, margins, thresholds
from bench.compare.arguments import FORMATS, parser
from bench.compare.columns import REGISTRY

DOCS = Path(__file__).parents[2] / "docs"


def test_every_flag_in_the_documents_exists():
    known = {option for action in parser()._actions for option in action.option_strings}
    known |= {option for action in ab._parser()._actions for option in action.option_strings}
    known |= {"--mde", "--noise-floor", "--log_samples"}
    for path in (DOCS / "compare.md", DOCS / "ci/compare.yml"):
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text())) <= known, path


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", (DOCS / "compare.md").read_text()):
        assert (DOCS / link).exists(), link


def test_the_workflow_and_its_thresholds_are_read():
    steps = yaml.safe_load((DOCS / "ci/compare.yml").read_text())["jobs"]["compare"]["steps"]
    command = next(step["run"] for step in steps if step.get("name") == "Compare")
    assert all(kind in FORMATS for kind in re.findall(r"--out (\w+)=", command))
    (rule,) = thresholds.read(str(DOCS / "ci/thresholds.yaml"), ["input_tokens"]).rules
    assert (rule.metric, rule.delta, rule.absolute) == ("ttft_s", 0.10, 0.0003)


def test_the_table_of_margins():
    text = (DOCS / "compare.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+?) \| (\d+) % \|", text, re.MULTILINE))
    assert {name: int(value) for name, value in rows.items()} == {
        "TTFT": 5, "TPOT": 3, "E2E, ITL p50, decode and output throughput": 3, "ITL p90, prefill throughput": 5,
        "ITL p99": 10, "peak memory": 2, "load, compile, first call": 20,
    }  # fmt: skip
    expected = {"ttft_s": 5, "tpot_s": 3, "itl_p90_s": 5, "itl_p99_s": 10, "peak_memory_bytes": 2, "load_s": 20}
    assert {name: round(100 * margins.DEFAULT[name]) for name in expected} == expected
    assert set(margins.DEFAULT) <= set(REGISTRY)
