"""NVIDIA GPUs (and AMD ones, which torch also calls cuda)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .accelerator import Accelerator
from .base import devices


@devices("cuda")
@dataclass(frozen=True)
class Cuda(Accelerator):
    """A GPU behind torch's cuda type."""

    torch_type = "cuda"
    graph = "CUDAGraph"

    def capability(self) -> tuple[int, int]:
        """As torch says; AMD's GPUs have none."""
        import torch

        return torch.cuda.get_device_capability() if torch.version.hip is None else (0, 0)

    def launches_early(self) -> bool:
        """Programmatic dependent launch, from compute capability 9 on."""
        return self.capability() >= (9, 0)

    def reads_fp8(self) -> bool:
        """From compute capability 8.9 on."""
        return self.capability() >= (8, 9)

    def compiler_variables(self) -> dict[str, str]:
        """The assembler that torch brings, for Triton, which has one of another version.

        Inductor says so to Triton as well, but only in processes in which it compiles. One that finds its code in the
        cache would take Triton's own, and its kernels would be others: tuned and compiled again.
        """
        import torch

        assembler = Path(torch.__file__).parent / "bin" / "ptxas"
        return {"TRITON_PTXAS_PATH": str(assembler)} if os.access(assembler, os.X_OK) else {}

    def driver(self) -> str:
        """The kernel module's version; torch has no call for it. Blank for ROCm and where /proc does not tell."""
        try:
            line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
        except (OSError, IndexError):
            return ""
        return next((word for word in line.split() if word[0].isdigit() and "." in word), "")
