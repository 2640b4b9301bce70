"""Accuracy: paired by document, unpaired, perplexity, and refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bench.compare.cli import main
from bench.compare.compare import compare
from bench.compare.read import read_side
from bench.compare.settings import Settings
from bench.errors import ConfigError, ResultsError

N = 5153


def evaluation(tmp_path, name, right, likelihoods=None, samples=True, n=None, **changes):
    """A folder with lm-eval's results and samples: document i is right if right[i]."""
    folder = tmp_path / name
    folder.mkdir()
    acc = sum(right) / len(right)
    scores = {"acc,none": acc, "acc_stderr,none": math.sqrt(acc * (1 - acc) / (len(right) - 1))}
    if likelihoods is not None:
        scores |= {"perplexity,none": math.exp(-np.mean(likelihoods)), "perplexity_stderr,none": 0.05}
    results = {
        "results": {"lambada_openai": scores},
        "versions": {"lambada_openai": 1.0},
        "n-samples": {"lambada_openai": {"original": len(right), "effective": n or len(right)}},
        "config": {"model_args": "pretrained=org/model,dtype=float16", "device": "xpu"},
        "model_name": "org/model",
        "git_hash": name,
    }
    (folder / "results_2025.json").write_text(json.dumps({**results, **changes}))
    if samples:
        lines = [
            {
                "doc_id": i, "doc_hash": f"h{i}", "prompt_hash": f"p{i}", "target_hash": f"t{i}", "filter": "none",
                "doc": {"text": f"document {i}"}, "target": "word", "filtered_resps": [f"{name}-{i}"], "acc": float(ok),
                **({"perplexity": float(likelihoods[i])} if likelihoods is not None else {}),
            }
            for i, ok in enumerate(right)
        ]  # fmt: skip
        (folder / "samples_lambada_openai_2025.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def flipped(lost, gained, n=N, share=0.7):
    """Base and candidate answers with the given discordant counts."""
    base = [i < share * n for i in range(n)]
    cand = list(base)
    for i in range(lost):
        cand[i] = False
    for i in range(gained):
        cand[n - 1 - i] = True
    return base, cand


def outcome(a, b, **options):
    return compare(read_side([a]), read_side([b]), Settings(**options))


def acc(comparison):
    (result,) = [r for r in comparison.results if r.metric == "acc"]
    return result


@pytest.mark.parametrize(
    ("lost", "gained", "margin", "verdict", "bounds", "code"),
    [
        (80, 75, "1pp", "non-inferior", (-0.0049843, 0.0030285), 0),
        (80, 75, ".5pp", "non-inferior", (-0.0049843, 0.0030285), 0),
        (60, 100, ".5pp", "non-inferior", (0.0037569, 0.0118852), 0),
        (60, 100, ".3pp", "accuracy-improved", (0.0037569, 0.0118852), 0),
        (130, 60, "1pp", "inconclusive", (-0.0180846, -0.0092546), 0),
        (130, 60, ".5pp", "accuracy-regressed", (-0.0180846, -0.0092546), 1),
    ],
)
def test_non_inferiority_of_paired_documents(tmp_path, lost, gained, margin, verdict, bounds, code):
    base, cand = flipped(lost, gained)
    comparison = outcome(evaluation(tmp_path, "a", base), evaluation(tmp_path, "b", cand), acc_margin=margin)
    result = acc(comparison)
    assert (result.verdict, result.tier, comparison.exit_code) == (verdict, "T3", code)
    assert (result.lower, result.upper) == pytest.approx(bounds, abs=5e-7)
    assert result.d == pytest.approx((gained - lost) / N)
    details = result.accuracy
    assert (details["lost"], details["gained"], details["n"], details["unmatched"]) == (lost, gained, N, 0)
    assert details["flip_lower"] < details["flip_rate"] == (lost + gained) / N < details["flip_upper"]
    assert len(details["documents"]) == 20
    assert details["documents"][0] == {
        "doc": "h0", "text": "document 0", "target": "word", "lost": True,
        "base": "a-0", "cand": "b-0",
    }  # fmt: skip


def test_the_default_margin_is_one_per_cent_of_the_base(tmp_path):
    base, cand = flipped(5, 5)
    result = acc(outcome(evaluation(tmp_path, "a", base), evaluation(tmp_path, "b", cand)))
    assert result.margin == pytest.approx(0.01 * sum(base) / N)
    with pytest.raises(ConfigError, match="is no accuracy margin"):
        outcome(evaluation(tmp_path, "c", base), evaluation(tmp_path, "d", cand), acc_margin="1")


def test_identical_outputs_can_be_demanded(tmp_path):
    base, cand = flipped(1, 0)
    a, b = evaluation(tmp_path, "a", base), evaluation(tmp_path, "b", cand)
    assert outcome(a, b).exit_code == 0
    comparison = outcome(a, b, expect_identical=True)
    assert (acc(comparison).verdict, comparison.exit_code) == ("accuracy-regressed", 1)


def test_documents_without_a_partner(tmp_path):
    base, cand = flipped(0, 0, n=2000)
    a = evaluation(tmp_path, "a", base)
    few = acc(outcome(a, evaluation(tmp_path, "b", cand[:1985])))
    assert (few.verdict, few.accuracy["n"], few.accuracy["unmatched"]) == ("non-inferior", 1985, 15)
    comparison = outcome(a, evaluation(tmp_path, "c", cand[:1900]))
    assert acc(comparison).verdict == "not-comparable"
    assert comparison.exit_code == 4
    assert acc(comparison).reason == "100 of 2000 documents have no partner with the same prompt and target"


def test_few_documents_do_not_gate(tmp_path):
    base, cand = flipped(20, 0, n=100)
    a, b = evaluation(tmp_path, "a", base), evaluation(tmp_path, "b", cand)
    comparison = outcome(a, b)
    result = acc(comparison)
    assert (result.verdict, result.gates, comparison.exit_code) == ("inconclusive", False, 0)
    assert (
        result.reason == "100 documents are too few to gate (standard error 4.6 pp); use 1000 or more, or --acc-min-n"
    )
    assert outcome(a, b, acc_min_n=50).exit_code == 1


def test_unpaired_newcombe_interval(tmp_path):
    """Newcombe (1998), method 10, worked example: 56/70 - 48/80 = 0.2000 [0.0524, 0.3339] at 95 %."""
    a = evaluation(tmp_path, "a", [i < 48 for i in range(80)], samples=False)
    b = evaluation(tmp_path, "b", [i < 56 for i in range(70)], samples=False)
    result = acc(outcome(a, b, alpha=0.025, acc_min_n=10))
    assert (result.lower, result.upper) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert result.method == "unpaired, Newcombe interval"


def test_unpaired_says_what_it_could_have_seen(tmp_path):
    base, cand = flipped(0, 0)
    a, b = (evaluation(tmp_path, name, side, samples=False) for name, side in (("a", base), ("b", cand)))
    result = acc(outcome(a, b))
    assert result.notes == ["unpaired: MDE 2.5 pp at n = 5153; log samples to pair by document"]
    assert (result.base, result.cand) == pytest.approx((0.7, 0.7), abs=2e-4)


def test_perplexity_by_document(tmp_path):
    random = np.random.default_rng(0)
    base, cand = flipped(0, 0, n=2000)
    likelihood = -np.abs(random.normal(1.2, 0.4, 2000))
    a = evaluation(tmp_path, "a", base, likelihood)
    difference = random.normal(0.02, 0.05, 2000)
    (result,) = [
        r
        for r in outcome(a, evaluation(tmp_path, "b", cand, likelihood - difference)).results
        if r.metric == "perplexity"
    ]
    half = 1.6456 * difference.std(ddof=1) / 2000**0.5
    assert result.ratio == pytest.approx(math.exp(difference.mean()))
    assert (result.lower, result.upper) == pytest.approx(
        [math.exp(difference.mean() + s * half) for s in (-1, 1)], rel=1e-5
    )
    assert result.verdict == "accuracy-regressed"
    (same,) = [r for r in outcome(a, evaluation(tmp_path, "c", cand, likelihood)).results if r.metric == "perplexity"]
    assert (same.verdict, same.ratio) == ("non-inferior", 1.0)


def test_perplexity_without_documents_uses_the_standard_errors(tmp_path):
    base, _ = flipped(0, 0)
    sides = [evaluation(tmp_path, name, base, [-ll] * N, samples=False) for name, ll in (("a", 1.0), ("b", 1.2))]
    (result,) = [r for r in outcome(*sides).results if r.metric == "perplexity"]
    assert result.ratio == pytest.approx(math.exp(0.2))
    assert result.se == pytest.approx(math.hypot(0.05 / math.e, 0.05 / math.exp(1.2)))
    assert result.verdict == "accuracy-regressed"


def test_another_task_version_is_not_comparable(tmp_path):
    base, cand = flipped(0, 0, n=1200)
    a = evaluation(tmp_path, "a", base)
    b = evaluation(tmp_path, "b", cand, versions={"lambada_openai": 2.0})
    comparison = outcome(a, b)
    assert {r.verdict for r in comparison.results} == {"not-comparable"}
    assert comparison.exit_code == 4


def test_accuracy_that_is_gone_is_not_comparable(tmp_path, save):
    from tests.compare.conftest import rows

    base = save(rows([{"acc": 0.7, "n": 5153, "ttft_s": 0.1}]), "base")
    cand = save(rows([{"ttft_s": 0.1}], run="b"), "cand")
    comparison = outcome(base, cand)
    assert (acc(comparison).verdict, acc(comparison).reason) == ("not-comparable", "the candidate has no value")
    assert comparison.exit_code == 4


def test_damaged_samples_name_the_line(tmp_path, capsys):
    base, cand = flipped(0, 0, n=20)
    a, b = evaluation(tmp_path, "a", base), evaluation(tmp_path, "b", cand)
    path = tmp_path / "b/samples_lambada_openai_2025.jsonl"
    path.write_text(path.read_text().replace('"doc_hash": "h3"', '"x": 1'))
    with pytest.raises(ResultsError, match="jsonl:4: no lm-eval sample"):
        outcome(a, b)
    assert main([a, b]) == 2


def test_accuracy_is_printed_in_points(tmp_path, capsys):
    base, cand = flipped(130, 60)
    assert main([evaluation(tmp_path, "a", base), evaluation(tmp_path, "b", cand), "--acc-margin", ".5pp"]) == 1
    out = capsys.readouterr().out
    assert "-1.36 pp" in out and "[-1.81, -0.93]" in out
    assert "accuracy-regressed: margin 0.50 pp; 190 of 5153 documents flipped" in out
