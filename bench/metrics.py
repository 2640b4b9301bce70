"""Metrics: pure functions of a `Record`, each with its name, unit and direction. Adding one is adding one entry here.

Symbols: B batch size, W beams, S input tokens, N output tokens, L layers; t0 the call of generate with token ids on the
device, t_i the end of step i, of the slowest rank where there are several. Each figure is the median over the measured
iterations of one launch, unless its name says otherwise. Unknown is NaN, never 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median

from .record import Evaluation, Iteration, Record
from .schema import ACCURACY, Better, Column, Kind

METRICS: dict[str, Column] = {}
_FUNCTIONS: dict[str, Callable[[Record], float]] = {}

Metric = Callable[[Record], float]


def metric(
    kind: Kind, unit: str = "", better: Better | None = None, primary: bool = False
) -> Callable[[Metric], Metric]:
    """Register a function as the column of its name; its docstring is the column's documentation."""

    def register(function: Metric) -> Metric:
        name = function.__name__
        METRICS[name] = Column(name, "metric", (function.__doc__ or "").strip(), kind, unit, better, primary)
        _FUNCTIONS[name] = function
        return function

    return register


def values(outcome: Record | Evaluation) -> dict[str, float]:
    """Every metric that an outcome's workload has, in the order of results.csv."""
    if isinstance(outcome, Record):
        return {name: function(outcome) for name, function in _FUNCTIONS.items()}
    return _accuracy(outcome)


def column(name: str) -> Column:
    """The column of a metric of either workload."""
    return METRICS.get(name) or next(item for item in ACCURACY if item.name == name)


def _accuracy(evaluation: Evaluation) -> dict[str, float]:
    """The columns of `schema.ACCURACY`, and those that both workloads have."""
    acc = evaluation.score("acc", "exact_match")
    perplexity = evaluation.score("perplexity", "word_perplexity")
    return {
        "acc": acc.value,
        "acc_stderr": acc.stderr,
        "perplexity": perplexity.value,
        "perplexity_stderr": perplexity.stderr,
        "n": float(evaluation.n),
        "docs_per_s": _ratio(evaluation.n, evaluation.seconds),
        "load_s": evaluation.load_s,
        "peak_memory_bytes": evaluation.peak_memory_bytes,
        "peak_reserved_bytes": evaluation.peak_reserved_bytes,
        "total_memory_bytes": evaluation.total_memory_bytes,
    }


# -- one iteration -----------------------------------------------------------------------------------------------------


def ttft(iteration: Iteration) -> float:
    """Time to first token, s: t_1 - t_0. Prefill and the choice of the first token; tokenising is not in it."""
    return iteration.steps_s[0]


def itl(iteration: Iteration) -> list[float]:
    """Inter-token latencies, s: t_i - t_(i-1) for i = 2..N. A step yields B tokens and is not divided by B."""
    steps = iteration.steps_s
    return [late - early for early, late in itertools.pairwise(steps)]


def tpot(iteration: Iteration) -> float:
    """Time per output token, s: (E2E - TTFT) / (N - 1). NaN for one token."""
    count = len(iteration.steps_s)
    return (iteration.e2e_s - ttft(iteration)) / (count - 1) if count > 1 else math.nan


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear interpolation between order statistics (numpy's default method). NaN for no samples."""
    if not samples:
        return math.nan
    ordered = sorted(samples)
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def _median(samples: Iterable[float]) -> float:
    known = [sample for sample in samples if not math.isnan(sample)]
    return median(known) if known else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _axis(record: Record, name: str) -> int:
    value = record.axes[name]
    assert isinstance(value, int)
    return value


# -- latency -----------------------------------------------------------------------------------------------------------


@metric("duration", "s", "lower", primary=True)
def ttft_s(record: Record) -> float:
    """Time to first token: t_1 - t_0."""
    return _median(ttft(item) for item in record.iterations)


@metric("duration", "s", "lower", primary=True)
def tpot_s(record: Record) -> float:
    """Time per output token after the first: (E2E - TTFT) / (N - 1)."""
    return _median(tpot(item) for item in record.iterations)


@metric("duration", "s", "lower")
def e2e_s(record: Record) -> float:
    """End-to-end latency: from t_0 until generate has returned and the device is idle."""
    return _median(item.e2e_s for item in record.iterations)


def _itl_percentile(record: Record, percent: float) -> float:
    return percentile([gap for item in record.iterations for gap in itl(item)], percent)


@metric("duration", "s", "lower")
def itl_p50_s(record: Record) -> float:
    """50th percentile of the inter-token latencies of all iterations, pooled."""
    return _itl_percentile(record, 50)


@metric("duration", "s", "lower")
def itl_p90_s(record: Record) -> float:
    """90th percentile of the inter-token latencies of all iterations, pooled."""
    return _itl_percentile(record, 90)


@metric("duration", "s", "lower")
def itl_p99_s(record: Record) -> float:
    """99th percentile of the inter-token latencies of all iterations, pooled."""
    return _itl_percentile(record, 99)


@metric("proportion")
def e2e_cv(record: Record) -> float:
    """Spread of the iterations: sample standard deviation of E2E over its mean. NaN for one iteration."""
    samples = [item.e2e_s for item in record.iterations]
    if len(samples) < 2:
        return math.nan
    mean = fmean(samples)
    return _ratio(math.sqrt(sum((x - mean) ** 2 for x in samples) / (len(samples) - 1)), mean)


# -- throughput --------------------------------------------------------------------------------------------------------


@metric("rate", "token/s", "higher")
def prefill_tokens_per_s(record: Record) -> float:
    """Prefill throughput: B * S / TTFT."""
    return _ratio(_axis(record, "batch_size") * _axis(record, "input_tokens"), ttft_s(record))


@metric("rate", "token/s", "higher")
def decode_tokens_per_s(record: Record) -> float:
    """Decode throughput of all sequences: B / TPOT. Beams are not counted as tokens."""
    return _ratio(_axis(record, "batch_size"), tpot_s(record))


@metric("rate", "token/s", "higher")
def output_tokens_per_s(record: Record) -> float:
    """Output throughput, prefill included: B * N / E2E."""
    return _ratio(_axis(record, "batch_size") * _axis(record, "output_tokens"), e2e_s(record))


# -- memory, start-up, instrument --------------------------------------------------------------------------------------


@metric("bytes", "byte", "lower")
def peak_memory_bytes(record: Record) -> float:
    """Peak during the measured iterations: allocated on an accelerator, resident set on CPU; maximum over ranks."""
    return record.peak_memory_bytes


@metric("bytes", "byte", "lower")
def peak_reserved_bytes(record: Record) -> float:
    """Peak that the accelerator's allocator held; unknown on CPU."""
    return record.peak_reserved_bytes


@metric("bytes", "byte", "lower")
def total_memory_bytes(record: Record) -> float:
    """Sum over ranks of their peaks during the measured iterations; unknown for one process."""
    return record.total_memory_bytes


@metric("duration", "s", "lower")
def load_s(record: Record) -> float:
    """Loading the model until it is ready on the device, imports excluded; once per job."""
    return record.load_s


@metric("duration", "s", "lower")
def first_call_s(record: Record) -> float:
    """E2E of the very first call of this cell, the first warm-up: compilation and first allocations included."""
    return (record.warmups or record.iterations)[0].e2e_s


@metric("duration", "s", "lower")
def compile_s(record: Record) -> float:
    """What compiling engines lose in warm-up: E2E above the measured median, summed over warm-ups. NaN for others."""
    if not record.compiled or not record.warmups:
        return math.nan
    steady = e2e_s(record)
    return sum(max(0.0, item.e2e_s - steady) for item in record.warmups)


@metric("duration", "s")
def tuning_s(record: Record) -> float:
    """The part of `compile_s` in which block sizes of bench's own kernels were timed; 0 where they were known."""
    return record.tuning_s


@metric("count")
def compiled_graphs(record: Record) -> float:
    """Graphs that torch.compile made for this cell; 0 where it could use those of the cell before."""
    return record.compiled_graphs


@metric("duration", "s")
def hook_s(record: Record) -> float:
    """Calibrated cost of one call of the step hook; part of each step, not subtracted."""
    return record.hook_s


@metric("duration", "s")
def residual_s(record: Record) -> float:
    """E2E - (TTFT + sum of ITL): what generate did after its last step. Large means time that no step explains."""
    return _median(item.e2e_s - item.steps_s[-1] for item in record.iterations)


def _skews(record: Record) -> list[float]:
    return [skew for item in record.iterations for skew in item.skew_s]


@metric("duration", "s", "lower")
def skew_p50_s(record: Record) -> float:
    """Median over the steps of all iterations of max - min over ranks of the step's end. Unknown for one process."""
    return percentile(_skews(record), 50)


@metric("duration", "s", "lower")
def skew_max_s(record: Record) -> float:
    """The largest max - min over ranks of a step's end: above a step's length, the ranks do not keep in step."""
    return max(_skews(record), default=math.nan)


# -- utilisation -------------------------------------------------------------------------------------------------------


def weight_bytes_read(record: Record) -> float:
    """Bytes of weights that one decoding step reads: all, but of experts those that some sequence is sent to.

    With B * W sequences and k of E experts chosen for each, 1 - (1 - k/E)^(B W) of them are expected. Source:
    metrics.md 3.3.
    """
    cost = record.cost
    return cost.weight_bytes - cost.expert_bytes * (1 - cost.chosen_experts) ** _sequences(record)


def decode_bytes(record: Record) -> float:
    """Bytes that one decoding step must read: weights + B * W * (KV bytes at the mean context S + N/2 + states).

    Layers with a window read no more than it, and those with chunks what has come of the chunk. States, which linear
    attention has, are read and written.
    """
    prompt, own = _cache_bytes(record)
    return weight_bytes_read(record) + _sequences(record) * (prompt + own)


def least_decode_bytes(record: Record) -> float:
    """Bytes that no way of decoding can avoid per step: as `decode_bytes`, with the prompt's KV once for all its beams.

    Weights + B * KV(S) + B * W * (KV(N/2) + states). Equal to `decode_bytes` without beams.
    """
    prompt, own = _cache_bytes(record)
    return weight_bytes_read(record) + _axis(record, "batch_size") * prompt + _sequences(record) * own


def _sequences(record: Record) -> int:
    return _axis(record, "batch_size") * _axis(record, "num_beams")


def _cache_bytes(record: Record) -> tuple[float, float]:
    """What a step moves for one sequence, on average: of the prompt's cache, and of its own with its states."""
    cost, inputs, outputs = record.cost, _axis(record, "input_tokens"), _axis(record, "output_tokens")
    full = cost.kv_bytes_per_token - sum(size for size, _ in cost.windows + cost.chunks)
    own, both = full * outputs / 2, full * (inputs + outputs / 2)
    for size, window in cost.windows:
        own += size * _seen(0, outputs, window)
        both += size * _seen(inputs, outputs, window)
    for size, chunk in cost.chunks:
        first = min(chunk - inputs % chunk, outputs)  # until a new chunk begins, which is all its row's own
        own += size * (first * first / 2 + _of_chunks(outputs - first, chunk)) / outputs
        both += size * (_of_chunks(inputs + outputs, chunk) - _of_chunks(inputs, chunk)) / outputs
    return both - own, own + 2 * cost.state_bytes


def _seen(before: float, more: float, window: float) -> float:
    """Mean of min(before + t, window) over t from 0 to `more`."""
    growing = min(max(window - before, 0.0), more)
    return ((min(before, window) + growing / 2) * growing + window * (more - growing)) / more


def _of_chunks(positions: float, chunk: float) -> float:
    """Integral of t modulo `chunk` over t from 0 to `positions`."""
    whole, rest = divmod(positions, chunk)
    return (whole * chunk * chunk + rest * rest) / 2


def prefill_flops(record: Record) -> float:
    """FLOPs of prefill: B * (2 * P * S + 2 * P_head + 4 * L * heads * head_dim * S^2 / 2), 1/2 for causal attention.

    P is the active parameters without lm_head, which generate applies to the last position only. Beams share a prompt,
    so useful work does not grow with W even where a library prefills every beam.
    """
    tokens = _axis(record, "input_tokens")
    cost = record.cost
    body = cost.active_parameters - cost.head_parameters
    attention = 4 * cost.attention_width * tokens * tokens / 2
    return _axis(record, "batch_size") * (2 * body * tokens + 2 * cost.head_parameters + attention)


def _mbu(record: Record, bandwidth: float) -> float:
    return _ratio(decode_bytes(record), tpot_s(record) * _axis(record, "world_size") * bandwidth)


def _mfu(record: Record, flops: float) -> float:
    return _ratio(prefill_flops(record), ttft_s(record) * _axis(record, "world_size") * flops)


@metric("duration", "s")
def tpot_floor_s(record: Record) -> float:
    """Bandwidth floor of TPOT: `least_decode_bytes` / (devices * measured bandwidth). Roofline model."""
    return _ratio(least_decode_bytes(record), _axis(record, "world_size") * record.peaks.bandwidth_measured)


@metric("proportion")
def tpot_over_floor(record: Record) -> float:
    """TPOT / `tpot_floor_s`: 1.6 says that decoding takes 1.6 times as long as reading what it must read."""
    return _ratio(tpot_s(record), tpot_floor_s(record))


@metric("proportion", "", "higher")
def mbu(record: Record) -> float:
    """Memory bandwidth utilisation of decoding, of the measured peak: bytes per step / (TPOT * devices * bandwidth)."""
    return _mbu(record, record.peaks.bandwidth_measured)


@metric("proportion", "", "higher")
def mbu_datasheet(record: Record) -> float:
    """Memory bandwidth utilisation of decoding, of the datasheet's peak."""
    return _mbu(record, record.peaks.bandwidth_datasheet)


@metric("proportion", "", "higher")
def mfu(record: Record) -> float:
    """Model FLOPs utilisation of prefill, of the measured peak: FLOPs of prefill / (TTFT * devices * FLOP/s)."""
    return _mfu(record, record.peaks.flops_measured)


@metric("proportion", "", "higher")
def mfu_datasheet(record: Record) -> float:
    """Model FLOPs utilisation of prefill, of the datasheet's dense peak."""
    return _mfu(record, record.peaks.flops_datasheet)
