"""From requests to jobs: resolve `auto`, say what cannot run and how much memory the rest will need. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from . import accuracy
from .cell import Cell, Choice, Job
from .config import Request
from .devices.base import devices
from .engines.base import engines
from .errors import ConfigError
from .hardware import ACCELERATORS, Hardware, hardware
from .launchers.base import Launcher, launchers
from .models.shape import Shape
from .models.spec import Model
from .precisions.base import DTYPE_BYTES, Precision, precision_of
from .tensor_parallel import base as tensor_parallel

GIB = 2**30


@dataclass(frozen=True)
class Planned:
    """A cell with what is known before it runs."""

    cell: Cell
    weight_bytes: float | None
    """Predicted, of all ranks together; None when the architecture is not known before loading."""
    kv_bytes: float | None
    rank_bytes: float | None
    """Of both together on the device of each rank: all is split but the input embedding, which each may hold whole."""
    device_bytes: float | None
    """Memory of one device."""
    unsupported: str | None
    """Why it will not be tried, in one line."""

    @property
    def total_bytes(self) -> float | None:
        """Weights and KV cache; activations and the runtime come on top."""
        if self.weight_bytes is None or self.kv_bytes is None:
            return None
        return self.weight_bytes + self.kv_bytes


@dataclass(frozen=True)
class Plan:
    """Everything one command will measure."""

    planned: tuple[Planned, ...]
    launches: int
    results: str | None
    name: str | None
    retry_failed: bool
    timeout_s: float
    load_timeout_s: float

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order in which they were asked for."""
        return tuple(item.cell for item in self.planned)

    def jobs(self, wanted: Iterable[tuple[Cell, int]]) -> list[Job]:
        """The (cell, launch) pairs grouped by loaded model, launch 1 of every group first, then launch 2, ..."""
        groups: dict[tuple[int, tuple[object, ...]], list[Cell]] = {}
        for cell, launch in wanted:
            groups.setdefault((launch, cell.load_key), []).append(cell)
        ordered = sorted(groups.items(), key=lambda item: item[0][0])
        return [Job(tuple(cells), launch) for (launch, _), cells in ordered]


def plan(requests: Sequence[Request]) -> Plan:
    """The plan of all sweep points together; cells that several points ask for are measured once.

    Raises ConfigError when the points disagree on something that holds for the whole run.
    """
    planned: dict[str, Planned] = {}
    for point in requests:
        for asked in point.cells:
            item = _planned(asked, hardware_of(asked.python), point.check_memory)
            planned.setdefault(item.cell.id, item)
    return Plan(
        planned=tuple(planned.values()),
        launches=_same(requests, "launches"),
        results=_same(requests, "results"),
        name=_same(requests, "name"),
        retry_failed=_same(requests, "retry_failed"),
        timeout_s=_same(requests, "timeout_s"),
        load_timeout_s=_same(requests, "load_timeout_s"),
    )


@cache
def hardware_of(python: str | None) -> Hardware:
    """`hardware`, asked once per interpreter."""
    return hardware(python)


def _same(requests: Sequence[Request], name: str) -> Any:
    values = list(dict.fromkeys(getattr(item, name) for item in requests))
    if len(values) > 1:
        raise ConfigError(f"{name} cannot be swept ({', '.join(map(str, values))}): it holds for the whole run")
    return values[0]


def _planned(asked: Cell, machine: Hardware, check_memory: bool) -> Planned:
    kind = asked.device.name
    if kind == "auto":
        kind = machine.best()
        asked = dataclasses.replace(asked, device=Choice(kind))
    if asked.precision.name == "auto":
        asked = dataclasses.replace(asked, precision=Choice("fp16" if kind in ("xpu", "cuda") else "bf16"))
    precision = precision_of(asked)
    weight_bytes, kv_bytes = _predict(asked, precision)
    device_bytes = machine.memory(kind)
    reason = _unsupported(asked, machine, precision)
    needed = _per_rank(asked, precision, weight_bytes, kv_bytes)
    if reason is None and check_memory and needed is not None and device_bytes is not None and needed > device_bytes:
        reason = (
            f"needs {needed / GIB:.1f} GiB per device for weights and KV cache, the device has "
            f"{device_bytes / GIB:.1f} GiB; check_memory=false tries it all the same"
        )
    return Planned(asked, weight_bytes, kv_bytes, needed, device_bytes, reason)


@cache
def _shape(model: Model) -> Shape | None:
    return Shape.of(model)


def _predict(cell: Cell, precision: Precision) -> tuple[float | None, float | None]:
    """Bytes of weights and of the KV cache at its fullest: B * W sequences of S + N positions."""
    shape = _shape(cell.model)
    if shape is None:
        return None, None
    work = cell.workload
    positions = work.batch_size * work.num_beams * (work.input_tokens + work.output_tokens)
    return (
        shape.weight_bytes(precision.bytes_per_parameter, DTYPE_BYTES[precision.dtype]),
        positions * shape.kv_bytes_per_token(DTYPE_BYTES[precision.dtype]),
    )


def _per_rank(cell: Cell, precision: Precision, weight_bytes: float | None, kv_bytes: float | None) -> float | None:
    shape = _shape(cell.model)
    if shape is None or weight_bytes is None or kv_bytes is None:
        return None
    copied = shape.embedding_parameters * DTYPE_BYTES[precision.dtype] if cell.world_size > 1 else 0
    return copied + (weight_bytes - copied + kv_bytes) / cell.world_size


def _unsupported(cell: Cell, machine: Hardware, precision: Precision) -> str | None:
    if cell.device.name in machine.unavailable:
        return f"device={cell.device.name}: {machine.unavailable[cell.device.name]}"
    shape = _shape(cell.model)
    work = cell.workload
    if shape is not None and not shape.fits(work.input_tokens + work.output_tokens):
        return f"{work.input_tokens}+{work.output_tokens} tokens exceed the model's {shape.max_positions} positions"
    devices.get(cell.device.name)
    engine = engines.get(cell.engine.name)(**cell.engine.kwargs)
    launcher = launchers.get(cell.launcher.name)(**cell.launcher.kwargs)
    split = tensor_parallel.unsupported(cell) or _too_few_devices(cell, machine, launcher)
    return (
        precision.unsupported(cell)
        or engine.unsupported(cell)
        or launcher.unsupported(cell)
        or split
        or accuracy.unsupported(cell)
    )


def _too_few_devices(cell: Cell, machine: Hardware, launcher: Launcher) -> str | None:
    """Ranks of this machine that would find no accelerator of their own."""
    count = machine.devices[cell.device.name].get("device_count")
    ranks = launcher.ranks_here(cell)
    if cell.device.name not in ACCELERATORS or ranks is None or not isinstance(count, int) or ranks <= count:
        return None
    return f"{ranks} ranks on this machine need {ranks} devices of device={cell.device.name}, it has {count}"
