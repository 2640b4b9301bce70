"""The outcome of one cell in one launch: a `Record` or an `Evaluation`, or a `Failure`. Never nothing.

Seconds and bytes throughout. Statistics are derived when read (`metrics.py`), so a better formula needs no new run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .cell import Scalar
from .schema import SCHEMA

FAILURE_KINDS = ("oom", "timeout", "killed", "unsupported", "wrong_length", "nonfinite", "load", "error")


@dataclass(frozen=True)
class Iteration:
    """One call of generate, on one clock that starts when the call does."""

    steps_s: tuple[float, ...]
    """End of each decoding step since the start, s; one per output token. The first is the TTFT."""
    e2e_s: float
    """Return of generate with the device synchronised, s."""
    output_hash: str = ""
    """Hash of the generated tokens."""
    skew_s: tuple[float, ...] = ()
    """For each step, how much later the last rank ended it than the first, s. Empty for one process."""


@dataclass(frozen=True)
class ModelCost:
    """What one token costs, for MBU and MFU. Unknown is NaN."""

    weight_bytes: float = math.nan
    """Stored bytes of the weights: without an untied input embedding, with lm_head and all experts."""
    kv_bytes_per_token: float = math.nan
    """Bytes that one position of one sequence adds to the KV cache."""
    active_parameters: float = math.nan
    """Parameters used per token: without the input embedding table, with lm_head."""
    head_parameters: float = math.nan
    """Parameters of lm_head, which prefill applies to the last position only."""
    attention_width: float = math.nan
    """num_layers * num_heads * head_dim: 4 times this is the FLOPs of attending to one position."""
    expert_bytes: float = 0.0
    """Of `weight_bytes`, those of experts among which a router chooses."""
    chosen_experts: float = 1.0
    """Share of a layer's experts that it chooses for a token."""
    windows: tuple[tuple[float, float], ...] = ()
    """Of `kv_bytes_per_token`, those of layers that read a window of the latest positions only, or as many chosen ones,
    and how many: a pair for each size."""
    chunks: tuple[tuple[float, float], ...] = ()
    """Those of layers that read the positions of the same chunk only, and how many a chunk has."""
    state_bytes: float = 0.0
    """Bytes of one sequence's states of linear attention and convolutions, which a step reads and writes."""


@dataclass(frozen=True)
class Weights:
    """How the weights are stored, and who converted them."""

    provider: str = ""
    """Library that converted them; blank for plain formats."""
    version: str = ""
    """Its version."""
    kernels: str = ""
    """`real` when each step reads the packed weights, `emulated` when it computes with floats; blank for plain ones."""
    packed_bytes: float = math.nan
    """Bytes of all weights as they are stored, scales and embedding included. Unknown is NaN."""
    reloaded: bool = False
    """Whether they come from an earlier run's `quantized/`."""
    warnings: tuple[str, ...] = ()
    """What a reader should know of how they were converted."""


@dataclass(frozen=True)
class Peaks:
    """What the device can do. `*_measured` by a probe on this machine, `*_datasheet` by its maker. Unknown is NaN."""

    bandwidth_measured: float = math.nan
    """byte/s of a large copy, bytes read plus bytes written."""
    flops_measured: float = math.nan
    """FLOP/s of a large matrix product in the cell's dtype."""
    bandwidth_datasheet: float = math.nan
    flops_datasheet: float = math.nan
    source: str = ""
    """Where the datasheet figures come from."""


@dataclass(frozen=True)
class Record:
    """A measured cell."""

    cell: str
    """`Cell.id`."""
    launch: int
    axes: dict[str, Scalar]
    """`Cell.axes()`."""
    run: str
    log: str
    """Log file, relative to the results folder."""
    started: str
    """UTC, ISO 8601."""
    iterations: tuple[Iteration, ...]
    warmups: tuple[Iteration, ...]
    """The warm-up iterations, in order: what a first call costs can be read here. Never part of a statistic."""
    load_s: float
    """From the start of loading until the model is ready on the device, imports excluded, s."""
    hook_s: float
    """Calibrated cost of one call of the step hook, s. It is part of every step and not subtracted."""
    peak_memory_bytes: float
    """Peak during the measured iterations: allocated bytes on an accelerator, resident set on CPU."""
    peak_reserved_bytes: float
    """The same for what the allocator holds; NaN on CPU."""
    other_cores: float
    """Processors that other processes kept busy while this cell was measured."""
    compiled: bool
    """Whether the engine compiles, so that the warm-ups contain compilation."""
    cost: ModelCost
    peaks: Peaks
    seed: int
    approximation: str | None
    fingerprint: dict[str, Scalar]
    warnings: tuple[str, ...] = ()
    total_memory_bytes: float = math.nan
    """Sum over ranks of their peaks; NaN for one process."""
    compiled_graphs: float = math.nan
    """Graphs that torch.compile made while this cell was prepared and measured; NaN for engines that do not compile."""
    tuning_s: float = math.nan
    """Time spent on choosing kernels' block sizes while this cell was prepared and measured, s."""
    weights: Weights = Weights()
    schema: int = SCHEMA

    kind = "record"
    status = "ok"
    error = ""


@dataclass(frozen=True)
class Score:
    """One figure of an accuracy task."""

    name: str
    """lm-eval's name of the metric, with its filter where that is not `none`: `acc`, `exact_match,strict-match`."""
    value: float
    stderr: float
    """Standard error of the value; NaN when it cannot be derived from the documents."""
    n: int
    """Documents."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluated cell: how well the model did on a task. The documents are in the file `samples`."""

    cell: str
    """`Cell.id`."""
    launch: int
    axes: dict[str, Scalar]
    """`Cell.axes()`."""
    run: str
    log: str
    started: str
    """UTC, ISO 8601."""
    scores: tuple[Score, ...]
    n: int
    """Documents evaluated."""
    seconds: float
    """Answering them: tokenising, the model, scoring; without reading the data."""
    samples: str
    """File with one line per document, relative to the results folder."""
    task_version: str
    num_fewshot: int
    data: str
    """Where the documents come from: the name of a file, or of a data set on the hub, or `built in`."""
    data_sha256: str
    """Checksum over the documents that were evaluated, as they were read."""
    dataset_revision: str
    """What the hub calls the version of the data; blank for a file."""
    load_s: float
    peak_memory_bytes: float
    peak_reserved_bytes: float
    total_memory_bytes: float
    """Sum over ranks of their peaks; NaN for one process."""
    seed: int
    approximation: str | None
    fingerprint: dict[str, Scalar]
    warnings: tuple[str, ...] = ()
    weights: Weights = Weights()
    parts: tuple[str, ...] = ()
    """Of a group or tag: `Cell.id` of each of its tasks, and of the groups in it, which have outcomes of their own."""
    schema: int = SCHEMA

    kind = "evaluation"
    status = "ok"
    error = ""

    def score(self, *names: str) -> Score:
        """The score of the first metric of these that the task has, under its first filter; NaN when it has none."""
        found = (item for name in names for item in self.scores if item.name.partition(",")[0] == name)
        return next(found, Score(names[0], math.nan, math.nan, self.n))


@dataclass(frozen=True)
class Failure:
    """A cell that could not be measured, and why."""

    cell: str
    launch: int
    axes: dict[str, Scalar]
    run: str
    log: str
    started: str
    status: str
    """One of `FAILURE_KINDS`."""
    error: str
    """One line: what happened and what to do."""
    log_tail: tuple[str, ...] = ()
    """The last lines of the log, 40 at most."""
    fingerprint: dict[str, Scalar] = field(default_factory=dict)
    schema: int = SCHEMA

    kind = "failure"


Outcome = Record | Evaluation | Failure


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The journal line of an outcome: plain JSON types, NaN as null."""
    data = {"kind": outcome.kind, **dataclasses.asdict(outcome)}
    plain = _without_nan(data)
    assert isinstance(plain, dict)
    return plain


def from_json(data: Mapping[str, Any]) -> Outcome:
    """The outcome of a journal line. Fields that this version does not know are ignored."""
    if data["kind"] == Failure.kind:
        return Failure(**_known(Failure, {**data, "log_tail": tuple(data["log_tail"])}))
    fields = dict(data)
    fields["warnings"] = tuple(data["warnings"])
    stored = data.get("weights") or {}  # absent before 0.1 knew low-bit formats
    fields["weights"] = Weights(
        **{
            **_known(Weights, stored),
            "packed_bytes": _number(stored.get("packed_bytes")),
            "warnings": tuple(stored.get("warnings", ())),
        }
    )
    if data["kind"] == Evaluation.kind:
        fields["parts"] = tuple(data.get("parts", ()))
        fields["scores"] = tuple(
            Score(item["name"], _number(item["value"]), _number(item["stderr"]), item["n"]) for item in data["scores"]
        )
        for name in ("seconds", "load_s", "peak_memory_bytes", "peak_reserved_bytes", "total_memory_bytes"):
            fields[name] = _number(data[name])
        return Evaluation(**_known(Evaluation, fields))
    for name in ("iterations", "warmups"):
        fields[name] = tuple(
            Iteration(
                tuple(_number(s) for s in item["steps_s"]),
                _number(item["e2e_s"]),
                item["output_hash"],
                tuple(_number(s) for s in item.get("skew_s", ())),
            )
            for item in data[name]
        )
    unknown = (
        "load_s",
        "hook_s",
        "peak_memory_bytes",
        "peak_reserved_bytes",
        "total_memory_bytes",
        "other_cores",
        "compiled_graphs",
        "tuning_s",
    )
    for name in unknown:
        fields[name] = _number(data.get(name))
    cost = {key: _pairs(value) if isinstance(value, list) else _number(value) for key, value in data["cost"].items()}
    fields["cost"] = ModelCost(**_known(ModelCost, cost))
    figures = {key: _number(value) for key, value in data["peaks"].items() if key != "source"}
    fields["peaks"] = Peaks(source=data["peaks"]["source"], **figures)
    return Record(**_known(Record, fields))


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(cls)}
    return {key: value for key, value in data.items() if key in names}


def _pairs(values: list[list[float | None]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(_number(value) for value in pair) for pair in values)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
