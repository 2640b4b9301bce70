"""What makers say their devices can do: memory bandwidth, and dense FLOP/s per dtype without sparsity.

A device that is not here gets no figure, rather than a wrong one. For the Max 1550, torch shows each of the two stacks
as a device unless ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE, so its figures are per stack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Datasheet:
    """One device."""

    pattern: str
    """Regular expression that finds the driver's name for it."""
    bandwidth: float
    """byte/s."""
    flops: dict[str, float]
    """FLOP/s by torch dtype."""
    source: str


_INTEL_MAX = "Intel Data Center GPU Max Series product brief"
_NVIDIA_H = "NVIDIA H100 and H200 Tensor Core GPU datasheets, SXM, dense"

DATASHEETS = (
    Datasheet(r"Max 1550", 3276.8e9 / 2, {"float16": 839e12 / 2, "bfloat16": 839e12 / 2, "float32": 52.4e12 / 2},
              f"{_INTEL_MAX}, per stack"),
    Datasheet(r"Max 1100", 1228.8e9, {"float16": 352e12, "bfloat16": 352e12, "float32": 22.2e12}, _INTEL_MAX),
    Datasheet(r"Arc.*A770", 560e9, {"float16": 137.6e12, "bfloat16": 137.6e12, "float32": 17.2e12},
              "Intel Arc A770 16 GB specification, XMX"),
    Datasheet(r"Arc.*B580", 456e9, {"float16": 116.7e12, "bfloat16": 116.7e12, "float32": 14.6e12},
              "Intel Arc B580 specification, XMX"),
    Datasheet(r"H200", 4.8e12, {"float16": 989.4e12, "bfloat16": 989.4e12, "float32": 66.9e12}, _NVIDIA_H),
    Datasheet(r"H100 80GB HBM3", 3.35e12, {"float16": 989.4e12, "bfloat16": 989.4e12, "float32": 66.9e12}, _NVIDIA_H),
    Datasheet(r"A100.*80GB", 2.039e12, {"float16": 312e12, "bfloat16": 312e12, "float32": 19.5e12},
              "NVIDIA A100 80GB SXM datasheet, dense"),
)  # fmt: skip


def lookup(device_name: str) -> Datasheet | None:
    """The datasheet of a device by the name its driver gives, or None."""
    return next((sheet for sheet in DATASHEETS if re.search(sheet.pattern, device_name)), None)
