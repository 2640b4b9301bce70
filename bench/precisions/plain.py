"""The floating-point formats that every device has."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Precision, precisions


@precisions("fp32")
@dataclass(frozen=True)
class Fp32(Precision):
    """IEEE single precision: the accuracy reference."""

    bytes_per_parameter = 4.0
    dtype = "float32"


@precisions("bf16")
@dataclass(frozen=True)
class Bf16(Precision):
    """bfloat16."""

    bytes_per_parameter = 2.0
    dtype = "bfloat16"


@precisions("fp16")
@dataclass(frozen=True)
class Fp16(Precision):
    """IEEE half precision: what the Intel GPU scripts always measured."""

    bytes_per_parameter = 2.0
    dtype = "float16"
