"""Block sizes of Triton kernels: chosen by time, or the first of a list."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..devices import Device, devices

LAUNCHES = 10
FLUSHED = 2**27
"""Bytes written between launches, so that no cache still holds the weights."""
enabled = True
"""Whether configurations are timed. Without, a kernel takes the first that fits: the engine's setting `tune`."""
_spent: list[float] = []


def autotuned(configs: list[Any], key: list[str], fits: Callable[..., list[Any]] | None = None) -> Any:
    """`triton.autotune`: the fastest of `configs` for each `key`, kept on disk. `fits` is its `early_config_prune`."""
    import triton

    def tried(configs: list[Any], named: dict[str, Any], **fixed: Any) -> list[Any]:
        fitting = fits(configs, named, **fixed) if fits else configs
        return fitting if enabled else fitting[:1]

    return triton.autotune(
        configs, key, prune_configs_by={"early_config_prune": tried}, do_bench=milliseconds, cache_results=True
    )


def spent() -> float:
    """Seconds that this process has timed configurations for, compiling them included."""
    return sum(_spent)


def milliseconds(kernel: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    """What Triton wants of its `do_bench`: the time of a launch and of what empties the caches, for each quantile.

    The launches are captured, as they are in the engine: from the host, a launch may take longer than these kernels do,
    and then all configurations look the same. Where the device has no graphs, Triton measures.
    """
    if not enabled:
        return [0.0] * len(quantiles)
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
