"""Every metric by hand, for one small record, and what it is at the edges."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import replace
from typing import Any

import numpy
import pytest

from bench import metrics
from bench.record import Iteration, ModelCost, Peaks, Record

FIRST = Iteration((0.50, 0.60, 0.80, 0.90), 1.00)
SECOND = Iteration((0.40, 0.52, 0.62, 0.76), 0.80)
THIRD = Iteration((0.60, 0.70, 0.81, 0.95), 0.95)


def record(make: Any, **changes: Any) -> Record:
    """Batch 2, 4 beams, 10 input tokens and 4 output tokens on 2 devices; three different iterations."""
    cell = make.cell(batch=2, beams=4, inputs=10, outputs=4, world_size=2)
    fields: dict[str, Any] = {
        "iterations": (replace(FIRST, skew_s=(0.01, 0.02, 0.03, 0.04)), replace(SECOND, skew_s=(0.05,) * 3), THIRD),
        "warmups": (Iteration((3.0, 3.1, 3.2, 3.3), 3.35), Iteration((0.5, 0.6, 0.7, 0.8), 0.90)),
        "load_s": 7.5,
        "hook_s": 2e-6,
        "peak_memory_bytes": 3e9,
        "peak_reserved_bytes": 4e9,
        "total_memory_bytes": 5e9,
        "compiled": True,
        "compiled_graphs": 2.0,
        "tuning_s": 0.25,
        "cost": ModelCost(
            weight_bytes=1000.0,
            kv_bytes_per_token=5.0,
            active_parameters=400.0,
            head_parameters=100.0,
            attention_width=6.0,
        ),
        "peaks": Peaks(
            bandwidth_measured=1e4, flops_measured=2e5, bandwidth_datasheet=2e4, flops_datasheet=8e5, source="a brief"
        ),
    }
    return make.record(cell, **{**fields, **changes})


# TPOT of the three iterations: (1.00 - 0.50) / 3, (0.80 - 0.40) / 3, (0.95 - 0.60) / 3.
# Gaps, sorted: .10 .10 .10 .10 .11 .12 .14 .14 .20.
# Bytes of a step: 1000 + 2 * 4 * 5 * (10 + 4 / 2) = 1480.
# Bytes that none can avoid, the prompt once for its beams: 1000 + 2 * 10 * 5 + 2 * 4 * 4 / 2 * 5 = 1180.
# FLOPs of prefill: 2 * (2 * (400 - 100) * 10 + 2 * 100 + 4 * 6 * 10 * 10 / 2) = 14800.
TPOT = 0.40 / 3
EXPECTED = {
    "ttft_s": 0.50,
    "tpot_s": TPOT,
    "e2e_s": 0.95,
    "itl_p50_s": 0.11,
    "itl_p90_s": 0.14 + 0.2 * 0.06,
    "itl_p99_s": 0.14 + 0.92 * 0.06,
    "prefill_tokens_per_s": 2 * 10 / 0.50,
    "decode_tokens_per_s": 2 / TPOT,
    "output_tokens_per_s": 2 * 4 / 0.95,
    "peak_memory_bytes": 3e9,
    "peak_reserved_bytes": 4e9,
    "total_memory_bytes": 5e9,
    "skew_p50_s": 0.04,
    "skew_max_s": 0.05,
    "load_s": 7.5,
    "first_call_s": 3.35,
    "compile_s": 3.35 - 0.95,
    "compiled_graphs": 2.0,
    "tuning_s": 0.25,
    "hook_s": 2e-6,
    "residual_s": 0.04,
    "tpot_floor_s": 1180 / (2 * 1e4),
    "tpot_over_floor": TPOT / (1180 / (2 * 1e4)),
    "mbu": 1480 / (TPOT * 2 * 1e4),
    "mbu_datasheet": 1480 / (TPOT * 2 * 2e4),
    "mfu": 14800 / (0.50 * 2 * 2e5),
    "mfu_datasheet": 14800 / (0.50 * 2 * 8e5),
}


def test_every_metric_by_hand(make: Any):
    found = metrics.values(record(make))
    spread = found.pop("e2e_cv")
    assert spread == pytest.approx(numpy.std([1.00, 0.80, 0.95], ddof=1) / numpy.mean([1.00, 0.80, 0.95]))
    assert found == pytest.approx(EXPECTED, rel=1e-12)


def test_every_metric_says_what_it_is():
    assert set(metrics.METRICS) == {*EXPECTED, "e2e_cv"}
    for name, column in metrics.METRICS.items():
        assert column.role == "metric"
        assert len(column.doc) > 20, name
        units = {"duration": "s", "bytes": "byte", "rate": "token/s", "proportion": "", "count": ""}
        assert column.unit == units[column.kind], name
        assert name.endswith("_s") == (column.kind in ("duration", "rate")), name
        assert column.better in ("lower", "higher", None)
    assert [name for name, column in metrics.METRICS.items() if column.primary] >= ["ttft_s", "tpot_s"]


def test_one_output_token_has_no_gaps(make: Any):
    one = Iteration((0.5,), 0.5)
    found = metrics.values(make.record(make.cell(outputs=1), iterations=(one, one), warmups=()))
    unknown = {name for name, value in found.items() if math.isnan(value)}
    assert unknown >= {"tpot_s", "itl_p50_s", "itl_p90_s", "itl_p99_s", "decode_tokens_per_s", "mbu"}
    assert found["ttft_s"] == found["e2e_s"] == 0.5
    assert found["output_tokens_per_s"] == 2.0
    assert 0.0 not in [found[name] for name in ("tpot_s", "mbu", "decode_tokens_per_s")]


def test_unknown_costs_and_peaks_are_nan_never_zero(make: Any):
    found = metrics.values(record(make, cost=ModelCost(), peaks=Peaks(), compiled=False))
    for name in ("mbu", "mbu_datasheet", "mfu", "mfu_datasheet", "compile_s"):
        assert math.isnan(found[name]), name
    assert found["tpot_s"] == pytest.approx(TPOT)


@pytest.mark.parametrize("item", [FIRST, SECOND, THIRD])
def test_latency_adds_up(item: Iteration):
    count = len(item.steps_s)
    assert item.e2e_s == pytest.approx(metrics.ttft(item) + (count - 1) * metrics.tpot(item))
    assert sum(metrics.itl(item)) == pytest.approx(item.steps_s[-1] - metrics.ttft(item))
    assert len(metrics.itl(item)) == count - 1


def test_compilation_is_what_the_warmups_lose(make: Any):
    slow = Iteration((9.0, 9.1, 9.2, 9.3), 10.0)
    fast = Iteration((0.1, 0.2, 0.3, 0.4), 0.5)  # faster than the median: not a negative loss
    compiled = record(make, warmups=(slow, fast, slow))
    assert metrics.values(compiled)["compile_s"] == pytest.approx(2 * (10.0 - 0.95))
    assert math.isnan(metrics.values(record(make, warmups=()))["compile_s"])
    assert metrics.values(record(make, warmups=()))["first_call_s"] == 1.0


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_those_of_numpy(count: int):
    samples = [random.Random(count).lognormvariate(0, 1) for _ in range(count)]
    for percent in (0, 10, 50, 90, 99, 100):
        assert metrics.percentile(samples, percent) == pytest.approx(numpy.percentile(samples, percent))


def test_percentile_edges():
    assert math.isnan(metrics.percentile([], 50))
    # int(n * 0.9) would be the maximum of ten
    assert metrics.percentile(list(range(10)), 90) == pytest.approx(8.1)


def test_iterations_with_equal_times_have_no_spread(make: Any):
    assert metrics.values(make.record())["e2e_cv"] == pytest.approx(0, abs=1e-12)
    single = dataclasses.replace(make.record(), iterations=make.record().iterations[:1])
    assert math.isnan(metrics.values(single)["e2e_cv"])
