"""The accuracy decision: non-inferiority of paired proportions, document by document where there are documents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .amounts import accuracy_margin
from .documents import Document, read_documents
from .kernels import mcnemar, t_quantile, t_survival, tango
from .match import Match
from .model import Result
from .rows import Rows
from .settings import Settings

SHOWN_FLIPS = 20
UNMATCHED = 0.01
"""Share of documents without a partner above which two files are not of one task."""
PERPLEXITY_MARGIN = 0.005


def accuracy(match: Match, settings: Settings) -> list[Result]:
    """Results of every cell in which both sides have an accuracy or a perplexity."""
    results = []
    for metric in ("acc", "perplexity"):
        sides = [_first(rows, metric) for rows in (match.base, match.cand)]
        still_there = match.cand.count(match.cand.ok, match.cells) > 0
        for cell in sorted(cell for cell in sides[0] if cell in sides[1] or still_there[cell]):
            result = Result(
                label=match.labels[cell],
                key={name: values[cell] for name, values in match.keys.items()},
                metric=metric,
                verdict="inconclusive",
                tier="T3",
                gates=True,
                kind="proportion" if metric == "acc" else "count",
                better="higher" if metric == "acc" else "lower",
                base_ok=1,
                base_n=1,
                cand_ok=1,
                cand_n=1,
            )
            if match.hard[cell] or cell not in sides[1]:
                result.verdict = "not-comparable"
                result.reason = match.hard[cell] or "the candidate has no value"
            else:
                decide = _accuracy if metric == "acc" else _perplexity
                decide(result, sides[0][cell], sides[1][cell], settings)
            results.append(result)
    return results


def _first(rows: Rows, metric: str) -> dict[int, dict[str, Any]]:
    """The first successful launch of each cell that has the metric: greedy accuracy does not vary between launches."""
    if metric not in rows.frame:
        return {}
    found: dict[int, dict[str, Any]] = {}
    wanted = rows.ok & pd.to_numeric(rows.frame[metric], errors="coerce").notna().to_numpy(bool)
    for row in np.flatnonzero(wanted).tolist():
        found.setdefault(int(rows.cell[row]), {str(k): v for k, v in rows.frame.iloc[row].items()})
    return found


def _paired(base: dict[str, Any], cand: dict[str, Any], result: Result) -> list[tuple[str, Document, Document]] | None:
    """Documents of both sides, or None without samples. Marks the result when too many have no partner."""
    if not (base.get("samples") and cand.get("samples")):
        return None
    a, b = read_documents(base["samples"]), read_documents(cand["samples"])
    pairs = [(name[1], a[name], b[name]) for name in a if name in b and a[name].identity == b[name].identity]
    unmatched = max(len(a), len(b)) - len(pairs)
    result.accuracy = {"n": len(pairs), "unmatched": unmatched}
    if unmatched > UNMATCHED * max(len(a), len(b)):
        result.verdict = "not-comparable"
        result.reason = (
            f"{unmatched} of {max(len(a), len(b))} documents have no partner with the same prompt and target"
        )
    return pairs


def _accuracy(result: Result, base: dict[str, Any], cand: dict[str, Any], settings: Settings) -> None:
    pairs = _paired(base, cand, result)
    if result.verdict == "not-comparable":
        return
    if pairs is not None and all(a.right is not None and b.right is not None for _, a, b in pairs):
        _flips(result, pairs, settings)
    else:
        _unpaired(result, base, cand, settings)
    details = result.accuracy
    assert details is not None
    if settings.expect_identical and details.get("flips"):
        result.verdict, result.reason = "accuracy-regressed", f"{details['flips']} flips where none was expected"
    elif details["n"] < settings.acc_min_n:
        error = math.sqrt(max((result.base or 0) * (1 - (result.base or 0)), 0) / max(details["n"], 1))
        result.verdict, result.gates = "inconclusive", False
        result.reason = (
            f"{details['n']} documents are too few to gate (standard error {100 * error:.1f} pp); "
            f"use {settings.acc_min_n} or more, or --acc-min-n"
        )


def _flips(result: Result, pairs: list[tuple[str, Document, Document]], settings: Settings) -> None:
    from statsmodels.stats.proportion import proportion_confint

    n = len(pairs)
    flipped = [(name, a, b) for name, a, b in pairs if a.right != b.right]
    lost = sum(bool(a.right) for _, a, _ in flipped)
    gained = len(flipped) - lost
    result.base = sum(bool(a.right) for _, a, _ in pairs) / n
    result.cand = sum(bool(b.right) for _, _, b in pairs) / n
    z = float(t_quantile(1 - settings.alpha, math.inf))
    lower, upper = tango(lost, gained, n, z)
    exact, mid = mcnemar(lost, gained)
    flip_low, flip_high = proportion_confint(len(flipped), n, alpha=0.05, method="wilson")
    assert result.accuracy is not None
    result.accuracy |= {
        "lost": lost,
        "gained": gained,
        "flips": len(flipped),
        "flip_rate": len(flipped) / n,
        "flip_lower": float(flip_low),
        "flip_upper": float(flip_high),
        "mcnemar_exact": exact,
        "mcnemar_mid_p": mid,
        "documents": [
            {"doc": name, "text": a.text, "target": a.target, "base": a.answer, "cand": b.answer, "lost": a.right}
            for name, a, b in flipped[:SHOWN_FLIPS]
        ],
    }
    _non_inferiority(result, (gained - lost) / n, lower, upper, settings)
    result.method, result.interval = "paired by document, Tango score interval", f"{1 - 2 * settings.alpha:.0%}"


def _unpaired(result: Result, base: dict[str, Any], cand: dict[str, Any], settings: Settings) -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep

    result.base, result.cand = float(base["acc"]), float(cand["acc"])
    sizes = [_count(row) for row in (base, cand)]
    n = min(sizes)
    result.accuracy = {**(result.accuracy or {}), "n": n}
    result.method = "unpaired, Newcombe interval"
    if n == 0:
        result.reason, result.gates = "the number of documents is unknown: add the column n, or samples", False
        result.d = result.cand - result.base
        return
    right = [round(value * size) for value, size in zip((result.cand, result.base), reversed(sizes), strict=True)]
    lower, upper = confint_proportions_2indep(
        right[0], sizes[1], right[1], sizes[0], method="newcomb", compare="diff", alpha=2 * settings.alpha
    )
    _non_inferiority(result, result.cand - result.base, float(lower), float(upper), settings)
    result.interval = f"{1 - 2 * settings.alpha:.0%}"
    error = math.sqrt(result.base * (1 - result.base) * 2 / n)
    result.mde = (float(t_quantile(0.975, math.inf)) + float(t_quantile(0.8, math.inf))) * error
    result.notes.append(f"unpaired: MDE {100 * result.mde:.1f} pp at n = {n}; log samples to pair by document")


def _count(row: dict[str, Any]) -> int:
    """Documents of a row: the column n, else what acc and its standard error imply."""
    number = pd.to_numeric(pd.Series([row.get("n", ""), row.get("acc_stderr", ""), row["acc"]]), errors="coerce")
    n, error, acc = (float(value) for value in number)
    if math.isfinite(n):
        return int(n)
    return round(acc * (1 - acc) / error**2) + 1 if math.isfinite(error) and error > 0 else 0


def _non_inferiority(result: Result, d: float, lower: float, upper: float, settings: Settings) -> None:
    margin = accuracy_margin(settings.acc_margin, result.base or 0.0)
    result.d, result.lower, result.upper = d, lower, upper
    result.margin, result.margin_source = margin, settings.acc_margin
    if upper < -margin:
        result.verdict = "accuracy-regressed"
    elif lower > margin:
        result.verdict = "accuracy-improved"
    elif lower > -margin:
        result.verdict = "non-inferior"
    else:
        result.verdict = "inconclusive"
        result.lean = "worse" if upper < 0 else ""


def _perplexity(result: Result, base: dict[str, Any], cand: dict[str, Any], settings: Settings) -> None:
    """Ratio of perplexities: exp of the mean difference of log-likelihoods, by document where there are documents."""
    result.base, result.cand = float(base["perplexity"]), float(cand["perplexity"])
    result.d, result.ratio = math.log(result.cand / result.base), result.cand / result.base
    pairs = _paired(base, cand, result)
    if result.verdict == "not-comparable":
        return
    differences = np.array([a.loglikelihood - b.loglikelihood for _, a, b in pairs or []])
    if len(differences) > 1 and np.isfinite(differences).all():
        se, df = float(np.std(differences, ddof=1)) / math.sqrt(len(differences)), float(len(differences) - 1)
        result.d, result.method = float(differences.mean()), "paired by document, t interval of log-likelihoods"
        result.ratio = math.exp(result.d)
        n = len(differences)
        assert result.accuracy is not None
        result.accuracy["loglikelihood"] = _change(differences, se, df, settings)
    else:
        errors = pd.to_numeric(pd.Series([s.get("perplexity_stderr", "") for s in (base, cand)]), errors="coerce")
        relative = [float(error) / value for error, value in zip(errors, (result.base, result.cand), strict=True)]
        if not all(math.isfinite(item) and item > 0 for item in relative):
            result.reason, result.gates = "neither samples nor standard errors: no interval", False
            return
        se, df, n = math.hypot(*relative), math.inf, min(_whole(s.get("n", "")) for s in (base, cand))
        result.method = "unpaired, from the standard errors"
    half = float(t_quantile(1 - settings.alpha, df)) * se
    result.se, result.df, result.interval = se, df, f"{1 - 2 * settings.alpha:.0%}"
    result.lower, result.upper = math.exp(result.d - half), math.exp(result.d + half)
    result.margin = settings.delta.get("perplexity", PERPLEXITY_MARGIN)
    result.margin_source = "--delta" if "perplexity" in settings.delta else "default"
    edge = math.log1p(result.margin)
    if result.d - half > edge:
        result.verdict = "accuracy-regressed"
    elif result.d + half < -edge:
        result.verdict = "accuracy-improved"
    elif result.d + half < edge:
        result.verdict = "non-inferior"
    else:
        result.lean = "worse" if result.d - half > 0 else ""
    if n < settings.acc_min_n:
        result.verdict, result.gates = "inconclusive", False
        result.reason = f"{n or 'an unknown number of'} documents are too few to gate; see --acc-min-n"


def _change(worse: NDArray[np.float64], se: float, df: float, settings: Settings) -> dict[str, Any]:
    """How the documents' log-likelihoods changed, candidate minus base, in nats: a drop is negative.

    `worse` is base minus candidate. `p` is the two-sided one of the paired t test of no change on average: it sees
    what is far too small to flip answers. `sd` tells how much single documents move when their average does not.
    """
    mean = -float(worse.mean())
    half = float(t_quantile(1 - settings.alpha, df)) * se
    changed = int(np.count_nonzero(worse))
    p = 2 * float(t_survival(np.array(abs(mean) / se), np.array(df))) if se > 0 else float(changed == 0)
    return {
        "mean": mean,
        "lower": mean - half,
        "upper": mean + half,
        "p": p,
        "sd": se * math.sqrt(len(worse)),
        "changed": changed,
        "n": len(worse),
    }


def _whole(text: Any) -> int:
    try:
        return int(float(text))
    except ValueError:
        return 0
