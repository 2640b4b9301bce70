"""A device whose clock moves when told: the whole pipeline, processes included, with numbers known beforehand.

It needs no torch. Faults are injected through the environment, so that the cell, and with it the resume token, stays
the same: ``BENCH_FAKE_FAULT=oom:4`` makes every cell with batch size 4 run out of memory; without a number the fault
hits every cell. Kinds: oom, short, nan, error, load, exit, kill, segv, hang.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..cell import Cell, Generate, Scalar
from ..engines.base import Engine, Loaded
from ..errors import LoadError, NonFinite
from ..record import ModelCost
from .base import Device, Mark, devices


@devices("fake")
@dataclass(frozen=True)
class FakeDevice(Device):
    """Prefill takes `prefill` seconds per input token, every later step `step` seconds, on a clock of its own."""

    prefill: float = 0.001
    step: float = 0.010
    pace: float = 0.0
    """Real seconds slept per fake second, for tests that need a run to last."""
    memory: int = 16 * 2**30
    """Bytes of memory it claims to have."""
    _time: list[float] = field(default_factory=lambda: [0.0], init=False, repr=False, compare=False)

    def advance(self, seconds: float) -> None:
        """Let the clock run on."""
        self._time[0] += seconds
        if self.pace:
            time.sleep(seconds * self.pace)

    def simulates(self, engine: Engine) -> Engine:
        """Whatever engine is asked for, this device plays it."""
        return FakeEngine(self)

    def mark(self) -> Mark:
        """The fake time, s."""
        return self._time[0]

    def elapsed(self, marks: Sequence[Mark]) -> list[float]:
        """Differences to the first mark, s."""
        return [mark - marks[0] for mark in marks[1:]]

    def peak_memory(self) -> tuple[float, float]:
        """Always 1 GiB used and 2 GiB held."""
        return (2.0**30, 2.0**31)

    def copy_bandwidth(self) -> float:
        """1 TB/s."""
        return 1e12

    def matmul_flops(self, dtype: str) -> float:
        """100 TFLOP/s, whatever the dtype."""
        return 1e14

    def info(self) -> dict[str, Scalar]:
        """A device of its own kind."""
        return {
            "device_name": "fake device",
            "device_count": 1,
            "device_memory_bytes": self.memory,
            "driver": "1.0",
        }


class FakeEngine(Engine):
    """Produces token ids 0, 1, 2, ... and moves the fake clock."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def unsupported(self, cell: Cell) -> str | None:
        """It plays everything."""
        return None

    def load(self, cell: Cell, device: Device) -> Loaded:
        """One fake second; the cost figures are round numbers."""
        if _fault(cell.workload.batch_size) == "load":
            raise LoadError("fake weights cannot be loaded: BENCH_FAKE_FAULT asks for it")
        self.device.advance(1.0)
        cost = ModelCost(
            weight_bytes=1e9, kv_bytes_per_token=1e5, active_parameters=5e8, head_parameters=1e7, attention_width=1e4
        )
        return Loaded(handle=None, cost=cost)

    def prompts(self, loaded: Loaded, cell: Cell) -> tuple[Any, list[str]]:
        """Plain lists of token ids."""
        return [list(range(cell.workload.input_tokens)) for _ in range(cell.workload.batch_size)], []

    def generate(
        self, loaded: Loaded, inputs: Any, work: Generate, on_step: Callable[[], None], check_finite: bool = False
    ) -> Any:
        """Move the clock through prefill and steps."""
        fault = _fault(work.batch_size)
        self.device.advance(self.device.prefill * work.input_tokens)
        on_step()
        _break(fault)
        count = work.output_tokens - 1 if fault == "short" else work.output_tokens
        for _ in range(count - 1):
            self.device.advance(self.device.step)
            on_step()
        if check_finite and fault == "nan":
            raise NonFinite("the scores hold NaN: BENCH_FAKE_FAULT asks for it")
        return [[*row, *range(count)] for row in inputs]

    def tokens(self, output: Any) -> list[list[int]]:
        """The lists themselves."""
        return list(output)


def _fault(batch_size: int) -> str:
    kind, _, where = os.environ.get("BENCH_FAKE_FAULT", "").partition(":")
    return kind if not where or int(where) == batch_size else ""


def _break(fault: str) -> None:
    if fault == "oom":
        raise MemoryError("fake device out of memory")
    if fault == "error":
        raise ValueError("a fault was asked for\nwith a second line")
    if fault == "exit":
        sys.exit(0)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        time.sleep(3600)
