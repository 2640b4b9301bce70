"""The known answers of the specification, to the digits printed there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from bench.compare import kernels
from bench.compare.checks import hodges_lehmann, mann_whitney
from bench.compare.command import run
from bench.compare.compare import compare
from bench.compare.decide import Sample, decide, paired, sample, unpaired
from bench.compare.kernels import launches_needed, minimum_effect, resolvable
from bench.compare.read import read_side
from bench.compare.settings import Settings
from tests.compare.conftest import rows

BASE = [100, 101, 99, 100.5, 99.5]
CAND = [107, 108, 106.5, 107.5, 106]


def one_cell(values) -> Sample:
    return sample(np.zeros(len(values), np.int64), np.log(np.array(values, float)), 1)


def test_welch_on_logs():
    estimate, method = unpaired(one_cell(BASE), one_cell(CAND))
    assert method == "Welch"
    assert estimate.d[0] == pytest.approx(0.0676618, abs=5e-8)
    assert estimate.se[0] == pytest.approx(0.00483936, abs=5e-9)
    assert estimate.df[0] == pytest.approx(7.96365, abs=5e-6)
    decision = decide(estimate, np.array([math.log(1.03)]), 1, 0.05, np.array([0.01]))
    assert decision.verdict[0] == "regressed"
    assert np.exp([decision.lower[0], decision.upper[0]]) == pytest.approx([1.06041, 1.07968], abs=5e-6)
    assert decision.p_worse[0] == pytest.approx(2.51e-5, abs=5e-8)


def test_paired_blocks():
    differences = np.log(np.array(CAND) / np.array(BASE))
    estimate, _ = paired(sample(np.zeros(5, np.int64), differences, 1), least=0.0)
    assert estimate.se[0] == pytest.approx(0.00155700, abs=5e-9)
    assert estimate.df[0] == 4


def test_exact_mann_whitney():
    p = mann_whitney(np.array([BASE, BASE]), np.array([CAND, BASE]))
    assert p[0] == pytest.approx(0.0079365, abs=5e-8)
    assert p[1] == 1.0


@pytest.mark.parametrize(("n", "p"), [(3, 0.10), (4, 0.0286), (5, 0.0079), (6, 0.0022), (7, 5.8e-4), (8, 1.6e-4)])
def test_smallest_mann_whitney_p(n, p):
    found = mann_whitney(np.arange(n, dtype=float)[None], n + np.arange(n, dtype=float)[None])
    assert found[0] == pytest.approx(p, rel=0.03)


def test_hodges_lehmann_is_the_median_of_all_differences():
    a, b = np.array([[1.0, 2.0, 4.0]]), np.array([[2.0, 4.0, 8.0]])
    differences = sorted(y - x for x in (1, 2, 4) for y in (2, 4, 8))
    assert hodges_lehmann(a, b)[0] == differences[4] == 2


def test_benjamini_hochberg():
    assert multipletests([0.01, 0.04, 0.03, 0.5], method="fdr_bh")[1] == pytest.approx(
        [0.04, 0.053333, 0.053333, 0.5], abs=1e-6
    )


@pytest.mark.parametrize(
    ("lost", "gained", "exact", "interval"),
    [
        (80, 75, 0.748110, (-0.0049843, 0.0030285)),
        (60, 100, 0.0019537, (0.0037569, 0.0118852)),
        (130, 60, 4.2e-7, (-0.0180846, -0.0092546)),
        (0, 0, 1.0, (-0.000525, 0.000525)),
    ],
)
def test_mcnemar_and_tango(lost, gained, exact, interval):
    z = float(kernels.t_quantile(0.95, math.inf))
    assert kernels.mcnemar(lost, gained)[0] == pytest.approx(exact, rel=0.01, abs=2e-6 if exact > 1e-3 else 0)
    assert kernels.tango(lost, gained, 5153, z) == pytest.approx(interval, abs=5e-7)


def test_mcnemar_mid_p():
    assert kernels.mcnemar(80, 75)[1] == pytest.approx(0.689054, abs=5e-7)
    assert kernels.mcnemar(5, 5) == (1.0, 1.0)


def test_tango_at_the_edges_is_finite_and_contains_the_estimate():
    for lost, gained, n in ((44, 0, 44), (0, 44, 44), (1, 0, 44), (22, 22, 44)):
        low, high = kernels.tango(lost, gained, n, 1.96)
        assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert kernels.tango(0, 44, 44, 1.96)[0] == pytest.approx(0.839403, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "p", "ranks"),
    [
        (5, 0.5, None), (6, 0.5, (1, 6)), (10, 0.5, (2, 9)), (20, 0.5, (6, 15)),
        (28, 0.9, None), (29, 0.9, (21, 29)), (58, 0.95, None), (59, 0.95, (50, 59)),
        (298, 0.99, None), (299, 0.99, (289, 299)),
    ],
)  # fmt: skip
def test_order_statistic_interval(n, p, ranks):
    assert kernels.order_interval(n, p) == ranks


def test_prior_variance():
    d0, s02 = kernels.prior_variance(np.array([1, 2, 0.5, 3, 1.2, 0.8]) * 1e-4, 4.0)
    assert math.isinf(d0)
    assert s02 == pytest.approx(1.56308e-4, abs=5e-10)
    d0, s02 = kernels.prior_variance(np.array([1e-6, 1e-2, 1e-4, 1e-5, 1e-3, 5e-2]), 4.0)
    assert d0 == pytest.approx(0.512873, abs=5e-7)
    assert s02 == pytest.approx(2.34014e-5, abs=5e-11)


def test_launches_for_80_percent_power():
    """`compare.md` 2.15: K by launch noise and true change, margin 3 %."""
    table = resolvable()
    for noise, change, k in (
        (0.005, 0.05, 3), (0.005, 0.07, 2), (0.01, 0.05, 5), (0.01, 0.07, 3), (0.01, 0.10, 2),
        (0.02, 0.05, 15), (0.02, 0.07, 5), (0.02, 0.10, 3),
    ):  # fmt: skip
        gap = np.array(math.log(1 + change) - math.log(1.03))
        assert launches_needed(gap, np.array(noise), table) == k


def test_launches_to_prove_unchanged():
    """The table of 2.15 holds for 90 % per bound, 80 % for both."""
    table = resolvable(power=0.8, tails=2)
    found = [launches_needed(np.array(math.log(1.03)), np.array(sd), table) for sd in (0.005, 0.01, 0.02, 0.03)]
    assert found == [2, 3, 9, 19]
    assert math.isinf(launches_needed(np.array(0.0), np.array(0.01), table))


@pytest.mark.parametrize(
    ("sd", "expected"),
    [(0.005, (1.55, 1.0, 0.76, 0.66, 0.46)), (0.01, (3.1, 2.05, 1.5, 1.33, 0.91)), (0.03, (9.7, 6.3, 4.6, 4.05, 2.76))],
)
def test_minimum_detectable_effect(sd, expected):
    k = np.array([3.0, 5, 8, 10, 20])
    assert 100 * minimum_effect(sd * np.sqrt(2 / k), 2 * k - 2) == pytest.approx(expected, rel=0.02)


def test_the_whole_way_from_a_file(save, capsys):
    base = save(rows([{"ttft_s": value / 1e3} for value in BASE]), "base")
    cand = save(rows([{"ttft_s": value / 1e3} for value in CAND], run="run-b"), "cand")
    (result,) = compare(read_side([base]), read_side([cand]), Settings(delta={"": 0.03})).results
    assert (result.verdict, result.tier, result.base_ok, result.cand_ok) == ("regressed", "T1", 5, 5)
    assert [result.lower, result.upper] == pytest.approx([1.06041, 1.07968], abs=5e-6)
    assert result.p_worse == pytest.approx(2.51e-5, abs=5e-8)
    assert result.mwu_p == pytest.approx(0.0079365, abs=5e-8)
    assert run([base, cand, "--delta", "3%"]) == 1
    assert "7.0 % slower  [6.0, 8.0]  T1    regressed: margin 3 %" in capsys.readouterr().out
