"""The processor: a monotonic clock, and the resident set as its memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cell import Scalar
from .base import Device, Mark, devices


def total_memory() -> int:
    """Bytes of memory this process may use: the machine's, or less where a control group says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(name).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def processor_name() -> str:
    """The model name in /proc/cpuinfo, or what the platform says."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return match[1].strip()
    import platform

    return platform.processor() or platform.machine()


@devices("cpu")
@dataclass(frozen=True)
class Cpu(Device):
    """The processor this worker runs on."""

    def mark(self) -> Mark:
        """`time.perf_counter`, s."""
        return time.perf_counter()

    def elapsed(self, marks: Sequence[Mark]) -> list[float]:
        """Differences to the first mark, s."""
        return [mark - marks[0] for mark in marks[1:]]

    def reset_peak_memory(self) -> None:
        """Reset the kernel's high-water mark of the resident set (proc_pid_clear_refs(5), value 5)."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # the peak then covers the whole life of the process, which is still an upper bound

    def peak_memory(self) -> tuple[float, float]:
        """VmHWM of this process, and NaN: torch's CPU allocator keeps no account."""
        try:
            match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        except OSError:
            match = None
        return (int(match[1]) * 1024.0 if match else float("nan"), float("nan"))

    def out_of_memory(self, error: BaseException) -> bool:
        """MemoryError, or the message of torch's CPU allocator, which has no class of its own."""
        return isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError)
            and re.search(r"can't allocate memory|not enough memory|Cannot allocate memory", str(error)) is not None
        )

    def info(self) -> dict[str, Scalar]:
        """Processor, one device, its memory; the kernel is the driver and has its own column."""
        return {
            "device_name": processor_name(),
            "device_count": 1,
            "device_memory_bytes": total_memory(),
            "driver": "",
        }
