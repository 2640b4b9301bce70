"""What the measuring code needs of a device: a clock, its memory, its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..cell import Scalar
from ..registry import Registry

if TYPE_CHECKING:
    from ..engines.base import Engine

Mark = Any
"""A moment on the device's own clock: a recorded event or a reading in seconds."""


class Device:
    """One kind of device. Settings are the fields of the subclass, a frozen dataclass.

    Methods are called in the worker only, except `label`; torch is imported inside them.
    """

    clock = "perf_counter"
    """What `mark` reads: `perf_counter`, or `event` for device events."""
    torch_type = "cpu"
    """The device type in torch's sense."""

    def unavailable(self) -> str | None:
        """Why this device cannot be used in this process and what to do, in one line; None when it can."""
        return None

    def simulates(self, engine: Engine) -> Engine:
        """The engine to use: a device that simulates itself answers with one of its own."""
        return engine

    def mark(self) -> Mark:
        """Mark this moment in the device's work without waiting for it."""
        raise NotImplementedError

    def elapsed(self, marks: Sequence[Mark]) -> list[float]:
        """Seconds from the first mark to each of the others. The device has to be synchronised before."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until the device is idle."""

    def reset_peak_memory(self) -> None:
        """Forget the peak, so that `peak_memory` covers what comes after."""

    def peak_memory(self) -> tuple[float, float]:
        """Peak since the last reset, bytes: (used, held by the allocator). Unknown is NaN."""
        return (float("nan"), float("nan"))

    def memory_in_use(self) -> float:
        """What is allocated now, bytes."""
        return 0.0

    def release_memory(self) -> None:
        """Give unused memory back, after a cell that ran out of it."""

    def processors(self) -> int:
        """Parts that run kernels independently of each other: multiprocessors, Xe cores."""
        return 1

    def capability(self) -> tuple[int, int]:
        """Compute capability of an NVIDIA GPU; (0, 0) for anything else."""
        return 0, 0

    def launches_early(self) -> bool:
        """Whether a kernel may start before the one in front of it has ended, and wait by itself."""
        return False

    def reads_fp8(self) -> bool:
        """Whether Triton has floats of 8 bits (e4m3) there."""
        return False

    def compiler_variables(self) -> dict[str, str]:
        """Environment variables that have to be set before anything is compiled."""
        return {}

    def has_graphs(self) -> bool:
        """Whether `capture` gives something."""
        return False

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """What `work` launches, as one launch to repeat; `work` is called, but nothing runs. None without graphs.

        Raises RuntimeError when `work` does what a graph cannot hold.
        """
        return None

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an exception says that this device's memory is used up."""
        return isinstance(error, MemoryError)

    def copy_bandwidth(self) -> float:
        """byte/s of a large copy on the device, bytes read plus bytes written; the best of a few."""
        import torch

        size = 2**27 if self.torch_type == "cpu" else 2**31
        source = torch.ones(size // 4, dtype=torch.float32, device=self.torch_type)
        target = torch.empty_like(source)
        return 2 * size / self._best(partial(target.copy_, source))

    def matmul_flops(self, dtype: str) -> float:
        """FLOP/s of a large square matrix product in a torch dtype; the best of a few."""
        import torch

        size = 256 if self.torch_type == "cpu" else 8192
        while True:
            left = torch.randn(size, size, device=self.torch_type).to(getattr(torch, dtype))
            right = torch.randn(size, size, device=self.torch_type).to(getattr(torch, dtype))
            multiply = partial(torch.matmul, left, right)
            if self.torch_type != "cpu" or size >= 4096 or self.once(multiply) > 0.02:
                return float(2 * size**3 / self._best(multiply))
            size *= 2

    def once(self, work: Callable[[], object]) -> float:
        """Seconds that `work` takes on the device."""
        self.synchronize()
        start = self.mark()
        work()
        end = self.mark()
        self.synchronize()
        return self.elapsed([start, end])[0]

    def _best(self, work: Callable[[], object]) -> float:
        """Shortest time of `work`, s: at least 5 times and for 0.2 s, so that clocks have risen."""
        times: list[float] = []
        while len(times) < 5 or sum(times) < 0.2:
            times.append(self.once(work))
        return min(times)

    def info(self) -> dict[str, Scalar]:
        """The fingerprint columns `device_name`, `device_count`, `device_memory_bytes`, `driver`."""
        return {}


devices: Registry[Device] = Registry("device", __package__)
