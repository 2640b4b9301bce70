"""What must hold for every table: symmetry, units, order, scale, deletion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.compare.compare import compare
from bench.compare.model import Comparison
from bench.compare.read import FILE, LINE, Side
from bench.compare.settings import Settings
from tests.compare.conftest import noisy, rows

MIRROR = {"regressed": "improved", "improved": "regressed", "missing": "new", "new": "missing", "failed-new": "fixed"}

tables = st.builds(
    noisy,
    cells=st.sampled_from([1, 3, 25]),
    launches=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    sd=st.sampled_from([0.002, 0.01, 0.03]),
    factor=st.sampled_from([1.0, 0.93, 1.04, 1.10]),
    run=st.just("run-b"),
)
fewer = settings(max_examples=25, deadline=None)


def side(frame: pd.DataFrame) -> Side:
    text = (
        frame.astype(object)
        .where(frame.notna(), "")
        .map(lambda v: repr(v) if isinstance(v, float) else str(v))
        .astype(str)
    )
    return Side("table", text.assign(**{FILE: "table.csv", LINE: range(2, len(text) + 2)}), ())


def verdicts(comparison: Comparison) -> dict[tuple[str, str], tuple[str, str]]:
    return {(tuple(r.key.items()), r.metric): (r.verdict, r.lean) for r in comparison.results}


def run(base: pd.DataFrame, cand: pd.DataFrame, **options) -> Comparison:
    return compare(side(base), side(cand), replace(Settings(), **options))


@given(base=tables, cand=tables)
@fewer
def test_swapping_the_sides_mirrors_every_verdict(base, cand):
    there, back = verdicts(run(base, cand)), verdicts(run(cand, base))
    mirrored = {
        key: (MIRROR.get(verdict, verdict), {"worse": "better", "better": "worse"}.get(lean, ""))
        for key, (verdict, lean) in there.items()
    }
    assert back == mirrored


@given(base=tables, cand=tables)
@fewer
def test_units_change_nothing(base, cand):
    milliseconds = cand.assign(ttft_ms=cand.ttft_s * 1e3, tpot_ms=cand.tpot_s * 1e3).drop(columns=["ttft_s", "tpot_s"])
    from bench.compare.read import _base_units

    converted = side(milliseconds)
    converted = replace(converted, frame=_base_units(converted.frame, Path("table.csv")))
    assert verdicts(compare(side(base), converted, Settings())) == verdicts(run(base, cand))


@given(base=tables, cand=tables, seed=st.integers(0, 100))
@fewer
def test_order_of_rows_and_columns_changes_nothing(base, cand, seed):
    random = np.random.default_rng(seed)
    shuffled = cand.sample(frac=1, random_state=seed)[list(random.permutation(cand.columns))]
    first, second = run(base, cand), run(base, shuffled)
    assert verdicts(first) == verdicts(second)
    assert sorted(r.d for r in first.results if r.d is not None) == pytest.approx(
        sorted(r.d for r in second.results if r.d is not None), abs=1e-12
    )


@given(
    frame=st.builds(
        noisy, cells=st.sampled_from([2, 25]), launches=st.integers(3, 6), seed=st.integers(0, 9999), sd=st.just(0.003)
    )
)
@fewer
def test_a_table_is_equivalent_to_itself(frame):
    comparison = run(frame, frame)
    assert set(comparison.counts) == {"equivalent"}
    assert comparison.exit_code == 0


@given(frame=st.builds(noisy, cells=st.sampled_from([2, 25]), launches=st.just(1), seed=st.integers(0, 9999)))
@fewer
def test_one_launch_is_no_suspect_against_itself(frame):
    comparison = run(frame, frame)
    assert set(comparison.counts) == {"inconclusive"}
    assert comparison.exit_code == 0


@given(
    frame=st.builds(
        noisy, cells=st.sampled_from([2, 25]), launches=st.integers(3, 6), seed=st.integers(0, 9999), sd=st.just(0.005)
    )
)
@fewer
def test_ten_per_cent_slower_flags_every_cell(frame):
    slower = frame.assign(ttft_s=frame.ttft_s * 1.10, tpot_s=frame.tpot_s * 1.10, run="run-b")
    comparison = run(frame, slower)
    assert comparison.counts == {"regressed": len(comparison.results)}
    assert comparison.exit_code == 1


@given(base=tables, factor=st.sampled_from([0.5, 1.5, 3.0]))
@fewer
def test_one_launch_never_claims_more_than_suspect(base, factor):
    one = base[base.launch == 1]
    comparison = run(one, one.assign(ttft_s=one.ttft_s * factor, run="run-b"))
    assert {r.tier for r in comparison.results} == {"T0"}
    assert set(comparison.counts) <= {"suspect", "inconclusive"}
    assert comparison.exit_code == 0


@given(base=tables, row=st.integers(0, 1000))
@fewer
def test_deleting_a_cell_makes_it_missing(base, row):
    gone = base.batch_size.unique()[row % base.batch_size.nunique()]
    rest = base[base.batch_size != gone]
    if len(rest):
        comparison = run(base, rest)
        missing = [r for r in comparison.results if r.verdict == "missing"]
        assert [r.key["batch_size"] for r in missing] == [str(gone)]
        assert comparison.exit_code == 1


@given(base=tables)
@fewer
def test_oom_is_a_new_failure(base):
    failed = base.copy()
    failed.loc[failed.batch_size == 1, ["status", "ttft_s", "tpot_s"]] = ["oom", None, None]
    comparison = run(base, failed)
    (result,) = [r for r in comparison.results if r.verdict == "failed-new"]
    assert (result.cand_status, result.key["batch_size"]) == ("oom", "1")
    assert comparison.exit_code == 1


@given(base=st.builds(noisy, cells=st.just(2), launches=st.integers(3, 5), seed=st.integers(0, 999), sd=st.just(0.004)))
@fewer
def test_throughput_flips_the_direction(base):
    base = base.assign(output_tokens_per_s=1000 / base.tpot_s)
    slower = base.assign(output_tokens_per_s=base.output_tokens_per_s / 1.10, run="run-b")
    comparison = run(base, slower, metrics=("output_tokens_per_s",))
    assert comparison.counts == {"regressed": 2}
    assert run(slower, base, metrics=("output_tokens_per_s",)).counts == {"improved": 2}


def test_a_pair_of_launches_needs_twenty_cells():
    base, cand = noisy(19, 2, 1, sd=0.002), noisy(19, 2, 2, sd=0.002, factor=1.5, run="run-b")
    assert run(base, cand).counts == {"suspect": 38}
    base, cand = noisy(20, 2, 1, sd=0.002), noisy(20, 2, 2, sd=0.002, factor=1.5, run="run-b")
    assert run(base, cand).counts == {"regressed": 40}


def test_equal_launches_are_not_certain():
    """Rounded figures without spread keep the variance floor of 0.1 %."""
    base, cand = (rows([{"tpot_s": value}] * 3, run=str(value)) for value in (0.02, 0.0201))
    (result,) = run(base, cand).results
    assert result.verdict == "equivalent"
    assert result.se == pytest.approx(0.001 * (2 / 3) ** 0.5)
