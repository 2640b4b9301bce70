"""From results to an exit code: corrections, waivers, what fails, and which code wins."""

from __future__ import annotations

from collections import Counter

from .codes import FAILED, NOTHING, OK, PRECEDENCE, UNDECIDED
from .model import STATUS, Comparison, Result
from .settings import Settings
from .thresholds import Thresholds, Waiver

ACCURACY_VERDICTS = ("accuracy-regressed", "accuracy-improved", "non-inferior")
WORDS = {OK: "PASS", FAILED: "FAIL", UNDECIDED: "INCONCLUSIVE", NOTHING: "NOT COMPARABLE"}

_FAILS_UNDER = {
    "regressed": "regression",
    "improved": "improvement",
    "accuracy-improved": "improvement",
    "accuracy-regressed": "accuracy",
    "failed-new": "failed",
    "missing": "missing",
}
_COMPARED = ("regressed", "improved", "equivalent", "inconclusive", "suspect", *ACCURACY_VERDICTS)


def worst(codes: list[int]) -> int:
    """The code that wins when several apply: 5 > 2 > 1 > 4 > 3 > 0."""
    return next((code for code in PRECEDENCE if code in codes), OK)


def correct(results: list[Result], settings: Settings) -> None:
    """Adjust p over all gating tests; with --correction the adjusted p decides as well as the bound."""
    from statsmodels.stats.multitest import multipletests

    tests = [
        result for result in results if result.gates and result.p_worse is not None and result.p_better is not None
    ]
    if not tests:
        return
    method = "holm" if settings.correction == "holm" else "fdr_bh"
    worse = multipletests([result.p_worse for result in tests], method=method)[1].tolist()
    better = multipletests([result.p_better for result in tests], method=method)[1].tolist()
    for result, q_worse, q_better in zip(tests, worse, better, strict=True):
        result.q_worse, result.q_better = q_worse, q_better
        if settings.correction == "none":
            continue
        q = {"regressed": q_worse, "improved": q_better}.get(result.verdict)
        if q is not None and q > settings.alpha:
            result.reason = f"{result.verdict} before the {settings.correction} correction (q = {q:.2g})"
            result.lean = "worse" if result.verdict == "regressed" else "better"
            result.verdict = "inconclusive"


def waive(results: list[Result], rules: Thresholds, settings: Settings) -> list[str]:
    """Mark what a waiver covers. Returns warnings about waivers that have expired or cover nothing."""
    warnings = []
    for waiver in rules.waivers:
        if waiver.expired(settings.today):
            warnings.append(
                f"{waiver.name} expired on {waiver.until} and no longer applies: {waiver.why or 'no reason given'}"
            )
            continue
        covered = [result for result in results if result.verdict in _FAILS_UNDER and _covers(waiver, result)]
        for result in covered:
            result.waived = waiver.why or waiver.name
        if not covered:
            warnings.append(f"{waiver.name} covers nothing: remove it ({waiver.why or 'no reason given'})")
    return warnings


def _covers(waiver: Waiver, result: Result) -> bool:
    if result.verdict in ("improved", "accuracy-improved") or not waiver.matches(result.metric, result.key):
        return False
    if waiver.most is None:
        return True
    if result.metric == "acc":
        return -(result.d or 0.0) <= waiver.most
    if result.ratio is None:
        return result.metric == STATUS
    worse = result.ratio if result.better == "lower" else 1 / result.ratio
    return worse - 1 <= waiver.most


def gate(comparison: Comparison, settings: Settings) -> None:
    """Set what each result fails under, the counts, the exit code and the word for it."""
    codes = [OK]
    for result in comparison.results:
        result.fails = _failing(result, settings)
        if result.fails == "regression" and settings.provisional:
            codes.append(UNDECIDED)
        elif result.fails:
            codes.append(FAILED)
        if result.verdict == "not-comparable" and result.gates:
            codes.append(NOTHING)
        if settings.strict and result.gates and not result.waived and undecided(result):
            codes.append(UNDECIDED)
    if not any(result.verdict in _COMPARED for result in comparison.results):
        codes.append(NOTHING)
        comparison.warnings.append("nothing could be compared")
    same = comparison.identical_outputs
    if settings.expect_identical and same is not None and same[0] < same[1]:
        codes.append(FAILED)
        comparison.warnings.append(
            f"{same[1] - same[0]} of {same[1]} cells generated other tokens (--expect-identical)"
        )
    comparison.counts = dict(Counter(result.verdict for result in comparison.results))
    comparison.exit_code = worst(codes)
    comparison.gate = WORDS[comparison.exit_code]


def undecided(result: Result) -> bool:
    """Whether --strict stops at this result; a verdict from sequential launches may be drift."""
    return result.verdict in ("inconclusive", "suspect") or (
        result.sequential and result.verdict in ("regressed", "improved", "equivalent")
    )


def _failing(result: Result, settings: Settings) -> str:
    word = _FAILS_UNDER.get(result.verdict, "")
    if result.verdict == "new" and result.cand_status != "ok":
        word = "new-failed"
    if not word or result.waived or not result.gates or word not in settings.fail_on:
        return ""
    if word == "missing" and settings.missing != "fail":
        return ""
    return word
