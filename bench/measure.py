"""Measure one cell. With the devices, the only code that reads a clock."""

from __future__ import annotations

import gc
import hashlib
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .cell import Cell, Generate
from .devices.base import Device, Mark
from .engines.base import Engine, Loaded
from .errors import WrongLength
from .record import Iteration


@dataclass(frozen=True)
class Samples:
    """What measuring a cell gives."""

    warmups: tuple[Iteration, ...]
    iterations: tuple[Iteration, ...]
    peak_memory_bytes: float
    peak_reserved_bytes: float
    hook_s: float
    busy_cores: float
    """Processors of this machine that were busy during the measured part, on average."""
    own_cores: float
    """Those of them that this process kept busy, or all ranks on this machine together."""
    total_memory_bytes: float = math.nan
    """Sum of the ranks' peaks; NaN for one process."""
    host: str = ""

    @property
    def other_cores(self) -> float:
        """Processors that the rest of the machine kept busy during the measured part, on average."""
        return max(self.busy_cores - self.own_cores, 0.0)  # in this order NaN stays NaN


class Stopwatch:
    """Seconds since it was made, on a monotonic clock."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self._start


def measure(
    engine: Engine,
    loaded: Loaded,
    device: Device,
    inputs: Any,
    cell: Cell,
    on_phase: Callable[[str], None],
    together: Callable[[], None] = lambda: None,
) -> Samples:
    """Warm up, then measure, with the collector off and the peak of memory taken over the measured part.

    The first warm-up also checks that the scores are finite; without warm-ups an extra call at the end does.
    `together` is called before each call of generate and returns when every rank is ready to start.
    Raises WrongLength, NonFinite, or whatever the engine raises.
    """
    work = cell.workload
    assert isinstance(work, Generate)

    def once(check_finite: bool = False) -> Iteration:
        engine.seed(cell.seed)
        together()
        return iteration(engine, loaded, device, inputs, work, check_finite)

    on_phase("warm-up")
    warmups = [once(check_finite=number == 0) for number in range(cell.warmup)]
    on_phase("measuring")
    with quiet_collector():
        device.reset_peak_memory()
        load = _Load()
        iterations = [once() for _ in range(cell.iterations)]
        busy, own = load.cores()
        used, reserved = device.peak_memory()
        used = max(used, device.memory_in_use() + engine.unseen_memory(loaded))
    if not warmups:
        once(check_finite=True)
    return Samples(
        tuple(warmups), tuple(iterations), used, reserved, hook_cost(device), busy, own, host=platform.node()
    )


def iteration(
    engine: Engine, loaded: Loaded, device: Device, inputs: Any, work: Generate, check_finite: bool = False
) -> Iteration:
    """One timed call: the marks before it, at each step and after it, on the device's clock. Raises WrongLength."""
    marks: list[Mark] = []
    mark = device.mark
    append = marks.append

    def on_step() -> None:
        append(mark())

    device.synchronize()
    append(mark())
    output = engine.generate(loaded, inputs, work, on_step, check_finite)
    append(mark())
    device.synchronize()
    *steps, end = device.elapsed(marks)
    tokens = engine.tokens(output)
    _verify(tokens, len(steps), work)
    digest = hashlib.sha256(repr([row[work.input_tokens :] for row in tokens]).encode()).hexdigest()[:16]
    return Iteration(tuple(steps), end, digest)


def _verify(tokens: list[list[int]], steps: int, work: Generate) -> None:
    if len(tokens) != work.batch_size:
        raise WrongLength(f"asked for {work.batch_size} sequences, got {len(tokens)}")
    for row in tokens:
        count = len(row) - work.input_tokens
        if count != work.output_tokens:
            raise WrongLength(f"asked for {work.output_tokens} tokens, got {count}: is EOS ignored?")
    if steps != work.output_tokens:
        raise WrongLength(f"asked for {work.output_tokens} steps, the hook saw {steps}")


def hook_cost(device: Device, calls: int = 200) -> float:
    """Seconds that one call of the step hook takes on this device, median of 5 rounds."""
    rounds = []
    for _ in range(5):
        device.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            device.mark()
        rounds.append((time.perf_counter() - start) / calls)
    device.synchronize()
    return median(rounds)


class _Load:
    """How busy the machine is: all processors' busy time, hypervisor's theft included, and our own share of it."""

    def __init__(self) -> None:
        self._start = self._read()

    def cores(self) -> tuple[float, float]:
        """Busy processors and our part of them, on average since it was made; NaN where the system does not say."""
        seconds, busy, own = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return (busy / seconds, own / seconds) if seconds else (math.nan, math.nan)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return time.perf_counter(), math.nan, math.nan
        user, nice, system, _, _, irq, softirq, steal = map(int, fields)
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()


def suspicions(samples: Samples, device: Device) -> list[str]:
    """What a reader should know before trusting the numbers, each with a next step."""
    found = []
    iterations = samples.iterations
    disturbed = samples.other_cores > (0.2 if device.torch_type == "cpu" else (os.cpu_count() or 1) / 2)
    if disturbed:
        found.append("other processes were busy while this was measured (column other_cores): measure again alone")
    if len({item.output_hash for item in iterations}) > 1:
        found.append("the iterations produced different tokens: some kernel is not deterministic")
    if len(iterations) >= 4 and not disturbed:
        rest = [item.e2e_s for item in iterations[1:]]
        if iterations[0].e2e_s > max(1.2 * median(rest), max(rest)):
            found.append("the first measured iteration was clearly slower than the rest: raise warmup")
        middle = median(item.e2e_s for item in iterations)
        if median(abs(item.e2e_s - middle) for item in iterations) > 0.05 * middle:
            found.append("the iterations differ by more than 5 % (column e2e_cv): raise iterations, or fix the clocks")
    gaps = [late - early for item in iterations for early, late in itertools.pairwise(item.steps_s)]
    if gaps and samples.hook_s > 0.01 * median(gaps):
        found.append("the step hook takes more than 1 % of a step (column hook_s)")
    return found


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Collect once before, and not while measuring: a collection pause would land in some step."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
