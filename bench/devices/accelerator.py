"""Every accelerator behind the generic `torch.accelerator` API: what runs on one runs on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..cell import Scalar
from .base import Device, Mark


class Accelerator(Device):
    """An accelerator by its torch type. Subclasses add the type and how its driver is called."""

    clock = "event"
    graph = ""
    """What torch calls a captured graph in the device's module; some builds have none."""

    def unavailable(self) -> str | None:
        """Whether this torch build has the type, and a device of it is there."""
        import torch

        current = torch.accelerator.current_accelerator()
        if current is not None and current.type == self.torch_type and torch.accelerator.device_count() > 0:
            return self._untimed()
        found = current.type if current is not None and torch.accelerator.device_count() > 0 else "no accelerator"
        return (
            f"device={self.torch_type}: torch {torch.__version__} finds {found} here. "
            f"`bench doctor` says what is usable and what to install"
        )

    def _untimed(self) -> str | None:
        """Why events cannot tell the time here: builds of torch for XPU before SYCL 2025.0 have none that can."""
        try:
            self.once(lambda: None)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return (
                f"device={self.torch_type}: events of this torch cannot tell the time ({reason}): install a newer one"
            )
        return None

    @property
    def _module(self) -> Any:
        import torch

        return torch.get_device_module(self.torch_type)

    def mark(self) -> Mark:
        """An event recorded on the current stream: costs a few microseconds and waits for nothing."""
        import torch

        event = torch.Event(device=self.torch_type, enable_timing=True)
        event.record()
        return event

    def elapsed(self, marks: Sequence[Mark]) -> list[float]:
        """Differences of event times, s."""
        return [marks[0].elapsed_time(mark) / 1000.0 for mark in marks[1:]]

    def synchronize(self) -> None:
        """Wait for every stream of the current device."""
        import torch

        torch.accelerator.synchronize()

    def reset_peak_memory(self) -> None:
        """Reset the caching allocator's statistics."""
        self._module.reset_peak_memory_stats()

    def peak_memory(self) -> tuple[float, float]:
        """Allocated and reserved peaks of torch's caching allocator."""
        return (float(self._module.max_memory_allocated()), float(self._module.max_memory_reserved()))

    def memory_in_use(self) -> float:
        """Allocated by torch's caching allocator."""
        return float(self._module.memory_allocated())

    def release_memory(self) -> None:
        """Empty the caching allocator."""
        self._module.empty_cache()

    def processors(self) -> int:
        """Multiprocessors."""
        import torch

        properties = self._module.get_device_properties(torch.accelerator.current_device_index())
        return int(properties.multi_processor_count)

    def has_graphs(self) -> bool:
        """Whether this build of torch has them."""
        return hasattr(self._module, self.graph)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """By torch's graphs, on a stream of their own, as they want it."""
        import torch

        if not self.has_graphs():
            return None
        graph, outside = getattr(self._module, self.graph)(), torch.accelerator.current_stream()
        self.synchronize()
        torch.accelerator.set_stream(torch.Stream(device=self.torch_type))
        try:
            graph.capture_begin()
            try:
                work()
            finally:
                graph.capture_end()
        finally:
            torch.accelerator.set_stream(outside)
        replay: Callable[[], None] = graph.replay
        return replay

    def out_of_memory(self, error: BaseException) -> bool:
        """torch.OutOfMemoryError on every backend, and the driver's own words where a library allocates by itself."""
        import torch

        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        text = str(error)
        return isinstance(error, RuntimeError) and any(
            words in text for words in ("out of memory", "OUT_OF_DEVICE_MEMORY", "OUT_OF_RESOURCES", "ALLOC_FAILED")
        )

    def info(self) -> dict[str, Scalar]:
        """Name and memory of the current device, the number of visible ones, the driver."""
        import torch

        properties = self._module.get_device_properties(torch.accelerator.current_device_index())
        return {
            "device_name": properties.name,
            "device_count": torch.accelerator.device_count(),
            "device_memory_bytes": properties.total_memory,
            "driver": self.driver(),
        }

    def driver(self) -> str:
        """Version of the driver, blank when it cannot be asked."""
        raise NotImplementedError
