"""Intel GPUs through stock `torch.xpu`. All that is XPU-only is in this file."""

from __future__ import annotations

from dataclasses import dataclass

from .accelerator import Accelerator
from .base import devices


@devices("xpu")
@dataclass(frozen=True)
class Xpu(Accelerator):
    """An Intel GPU: Data Center GPU Max, Arc, Core Ultra."""

    torch_type = "xpu"
    graph = "XPUGraph"

    def processors(self) -> int:
        """Xe cores, which torch calls subslices."""
        import torch

        return int(torch.xpu.get_device_properties(torch.accelerator.current_device_index()).gpu_subslice_count)

    def driver(self) -> str:
        """The Level Zero driver's version, from the device properties."""
        import torch

        properties = torch.xpu.get_device_properties(torch.accelerator.current_device_index())
        return str(getattr(properties, "driver_version", ""))
