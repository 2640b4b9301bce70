"""How long a kernel takes, for Triton's choice among configurations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from ..devices import Device, devices

LAUNCHES = 10
FLUSHED = 2**27
"""Bytes written between launches, so that no cache still holds the weights."""
_spent: list[float] = []


def spent() -> float:
    """Seconds that this process has timed configurations for, compiling them included."""
    return sum(_spent)


def milliseconds(kernel: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    """What Triton wants of its `do_bench`: the time of a launch and of what empties the caches, for each quantile.

    The launches are captured, as they are in the engine: from the host, a launch may take longer than these kernels do,
    and then all configurations look the same. Where the device has no graphs, Triton measures.
    """
    start = time.perf_counter()
    try:
        return _milliseconds(kernel, quantiles)
    finally:
        _spent.append(time.perf_counter() - start)


def _milliseconds(kernel: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    kernel()  # raises what Triton expects of a configuration that does not fit
    current = torch.accelerator.current_accelerator()
    other = torch.empty(FLUSHED, dtype=torch.int8, device=current)

    def work() -> None:
        for _ in range(LAUNCHES):
            other.zero_()
            kernel()

    device = devices.get(current.type)() if current is not None else Device()
    try:
        replay = device.capture(work)
    except RuntimeError:
        replay = None
    if replay is None:
        import triton

        times: list[float] = triton.testing.do_bench(kernel, quantiles=quantiles)
        return times
    seconds = statistics.median(device.once(replay) for _ in range(5))
    return [1000 * seconds / LAUNCHES] * len(quantiles)
