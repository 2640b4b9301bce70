"""Linear layers whose weights are integers of 4 bits around zero, 32, 64 or 128 columns of a row sharing a scale.

Layout: a block of 128 columns is 16 words of 32 bits. Word 4 t + i holds, from its lowest bits, the codes of columns
32 t + 4 j + i for j from 0 to 7: what a lane of a tensor core needs lies together, as words and as inputs. A weight is
(code - 8) * scale.
"""

from __future__ import annotations

import torch

BLOCK = 128
"""Columns of a block."""
MOST_ROWS = 64
"""Above, weights are expanded to floats for a library's matrix product."""


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes from 0 to 15, shape [rows, columns], as int32 words [rows, columns / 8]."""
    rows, columns = codes.shape
    shifts = torch.arange(0, 32, 4, device=codes.device).view(8, 1)
    words = codes.long().view(rows, columns // BLOCK, 4, 8, 4) << shifts
    return words.sum(3).to(torch.int32).view(rows, columns // 8)


def expand(words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weights as floats of the scales' dtype: words [rows, columns / 8], scale [rows, columns / group]."""
    if words.device.type != "cpu":
        from .int4_kernel import expand as kernel

        return kernel(words, scale)
    rows, width = words.shape
    shifts = torch.arange(0, 32, 4).view(8, 1)
    codes = (words.view(rows, -1, 4, 1, 4) >> shifts) & 15
    values = (codes.view(rows, scale.shape[1], -1).float() - 8) * scale.float()[:, :, None]
    return values.view(rows, width * 8).to(scale.dtype)


@torch.library.custom_op("bench::int4_linear", mutates_args=())
def int4_linear(x: torch.Tensor, words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x @ w.T; x is [rows, columns], contiguous, of the scales' dtype."""
    if x.device.type != "cpu" and x.shape[0] <= MOST_ROWS:
        from .linear_cuda import run

        return run(x, [words], [scale])[0]
    return x @ expand(words, scale).T


@int4_linear.register_fake
def _(x: torch.Tensor, words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], words.shape[0]))


class Int4Linear(torch.nn.Module):
    """A linear layer with packed weights, for inference."""

    words: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, words: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = words.shape[0], words.shape[1] * 8
        for name, tensor in (("words", words), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x of shape [..., in_features]; the result has its dtype, which is that of the scales."""
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] > MOST_ROWS and not torch.compiler.is_compiling():  # as the operator, with less for the host
            y = torch.nn.functional.linear(rows, expand(self.words, self.scale), self.bias)
        else:
            y = torch.ops.bench.int4_linear(rows, self.words, self.scale)
            y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.in_features}, {self.out_features}, group={self.in_features // self.scale.shape[1]}"
