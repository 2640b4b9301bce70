"""A linear layer whose integers are packed for ARK, the kernels of auto-round-lib. Worker side: imports torch."""

from __future__ import annotations

import auto_round_kernel as ark
import torch

from ..providers.integers import Integers

TYPES = {"cpu": ("auto", "fp32", torch.float32), "xpu": ("int8", "fp16", torch.float16)}
"""What it computes in, the type of scales, and of activations. Source: auto_round_kernel/qlinear.py."""


class ArkLinear(torch.nn.Module):
    """`x @ weight.T + bias` on packed integers of 2 to 8 bits.

    ARK's own module takes 2, 4 and 8 bits from a checkpoint; the kernels below it take all of them.
    """

    def __init__(self, like: torch.nn.Linear, bits: int, group: int, asymmetric: bool, packed: torch.Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.bits, self.group, self.asymmetric = bits, group, asymmetric
        self.register_buffer("packed", packed)
        self.packed: torch.Tensor
        self.bias = like.bias

    @classmethod
    def of(cls, like: torch.nn.Linear, found: Integers, asymmetric: bool, device: torch.device) -> ArkLinear:
        """Pack the integers that stand for the weight of `like`."""
        compute, scales, dtype = TYPES[device.type]
        rows, groups, group = found.codes.shape
        packed = ark.repack_quantized_weight(
            found.codes.reshape(rows, -1).t().to(device, torch.int8).contiguous(),
            found.scale.reshape(rows, groups).t().to(device, dtype).contiguous(),
            found.zero.reshape(rows, groups).t().to(device, torch.int8).contiguous(),
            group, compute, f"int{found.bits}", scales, asymmetric,
        )  # fmt: skip
        return cls(like, found.bits, group, asymmetric, packed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In the dtype of `x`, whatever ARK computes in."""
        multiply = _traceable if torch.compiler.is_compiling() else _multiply  # an operator costs microseconds more
        rows = x.reshape(-1, self.in_features)
        out = multiply(rows, self.packed, self.out_features, self.group, self.bits, self.asymmetric)
        answer = out.view(*x.shape[:-1], self.out_features)
        return answer if self.bias is None else answer + self.bias


def _multiply(
    x: torch.Tensor, packed: torch.Tensor, rows: int, group: int, bits: int, asymmetric: bool
) -> torch.Tensor:
    """x [n, columns] times the packed weight [rows, columns], transposed."""
    compute, scales, dtype = TYPES[x.device.type]
    nothing = x.new_empty(0, dtype=dtype)
    out: torch.Tensor = ark.woqgemm(
        x.to(dtype), packed, nothing, rows, x.shape[1], group, compute, f"int{bits}", scales, asymmetric
    )
    return out.to(x.dtype)


_traceable = torch.library.custom_op("bench::ark_multiply", _multiply, mutates_args=())


@_traceable.register_fake
def _shape(x: torch.Tensor, packed: torch.Tensor, rows: int, group: int, bits: int, asymmetric: bool) -> torch.Tensor:
    return x.new_empty(x.shape[0], rows)
