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
        compute, scales, dtype = TYPES[x.device.type]
        out = ark.woqgemm(
            x.reshape(-1, self.in_features).to(dtype), self.packed, x.new_empty(0, dtype=dtype),
            self.out_features, self.in_features, self.group, compute, f"int{self.bits}", scales, self.asymmetric,
        )  # fmt: skip
        answer: torch.Tensor = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return answer if self.bias is None else answer + self.bias
