"""Linear layers whose weights are integers of 4 bits around zero, 32, 64 or 128 columns of a row sharing a scale.

Layout: 16 rows of 128 columns are 256 words of 32 bits, row after row, so that a warp reads them in one piece; after
them come the next 128 columns, and in the end the next 16 rows. In a row, word 4 t + 2 u + v holds, from its lowest
bits, the codes of columns 32 t + 16 v + 4 j + 2 u for j from 0 to 3, then those of the columns behind these: what a
lane of a tensor core needs lies together, as words and as inputs. A weight is (code - 8) * scale.
"""

from __future__ import annotations

import torch

BLOCK = 128
"""Columns of a block."""
ROWS = 16
"""Rows that lie together."""
MOST_ROWS = 64
"""Above, weights are expanded to floats for a library's matrix product."""


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes from 0 to 15, shape [rows, columns], as int32 words [rows filled up to a multiple of 16, columns / 8]."""
    codes = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[0] % ROWS))
    rows, columns = codes.shape
    shifts = torch.arange(0, 32, 4, device=codes.device).view(2, 4)
    parts = codes.long().view(rows // ROWS, ROWS, columns // BLOCK, 4, 2, 4, 2, 2)  # t, v, j, u, which of a pair
    words = (parts.permute(0, 2, 1, 3, 6, 4, 7, 5) << shifts).sum((-2, -1))
    return words.to(torch.int32).view(rows, columns // 8)


def expand(words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weights as floats of the scales' dtype: words as `pack` gives them, scale [rows, columns / group]."""
    if words.device.type != "cpu":
        from .int4_cuda import expand as kernel

        return kernel(words, scale)
    rows, columns = words.shape[0], words.shape[1] * 8
    shifts = torch.arange(0, 32, 4).view(2, 4)
    parts = (words.view(rows // ROWS, columns // BLOCK, ROWS, 4, 2, 2, 1, 1) >> shifts) & 15
    codes = parts.permute(0, 2, 1, 3, 5, 7, 4, 6).reshape(rows, columns)[: scale.shape[0]]
    values = (codes.view(*scale.shape, -1).float() - 8) * scale.float()[:, :, None]
    return values.view(-1, columns).to(scale.dtype)


@torch.library.custom_op("bench::int4_linear", mutates_args=())
def int4_linear(x: torch.Tensor, words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x @ w.T; x is [rows, columns], contiguous, of the scales' dtype."""
    if x.device.type != "cpu" and x.shape[0] <= MOST_ROWS:
        from .int4_cuda import run

        return run(x, [words], [scale])[0]
    return x @ expand(words, scale).T


@int4_linear.register_fake
def _(x: torch.Tensor, words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], scale.shape[0]))


class Int4Linear(torch.nn.Module):
    """A linear layer with packed weights, for inference."""

    words: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, words: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = scale.shape[0], words.shape[1] * 8
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
