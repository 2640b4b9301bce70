"""Linear layers whose weights are integers of 4 bits, `group` columns of a row sharing a scale.

Layout: a word of 32 bits holds 8 codes of one group. Word w of a group of G columns holds, from its lowest bits, the codes
of columns w, w + G/8, w + 2 G/8, ...: neighbouring words then need neighbouring inputs. A weight is (code - offset) *
scale, with offset 8 where it is not stored.
"""

from __future__ import annotations

import torch

MOST_ROWS = 64
"""Above, weights are expanded to floats for a library's matrix product."""


def pack(codes: torch.Tensor, group: int) -> torch.Tensor:
    """Codes from 0 to 15, shape [rows, columns], as int32 words [rows, columns / 8]."""
    rows, columns = codes.shape
    parts = codes.to(torch.int64).view(rows, columns // group, 8, group // 8)
    shifts = torch.arange(0, 32, 4, device=codes.device).view(8, 1)
    return (parts << shifts).sum(2).to(torch.int32).view(rows, columns // 8).contiguous()


def expand(words: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, group: int) -> torch.Tensor:
    """The weights as floats of the scales' dtype: words [rows, columns / 8], the others [rows, columns / group]."""
    if words.device.type != "cpu":
        from .int4_kernel import expand as kernel

        return kernel(words, scale, offset, group)
    rows, width = words.shape
    shifts = torch.arange(0, 32, 4).view(8, 1)
    codes = (words.view(rows, -1, 1, group // 8) >> shifts) & 15
    zero = 8.0 if offset is None else offset.float()[:, :, None]
    values = (codes.flatten(2).float() - zero) * scale.float()[:, :, None]
    return values.view(rows, width * 8).to(scale.dtype)


@torch.library.custom_op("bench::int4_linears", mutates_args=())
def int4_linears(
    x: torch.Tensor, words: list[torch.Tensor], scales: list[torch.Tensor], offsets: list[torch.Tensor], group: int,
    early: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """x @ w.T for each of at most four weights; x is [rows, columns], contiguous, `offsets` empty or one per weight.

    `early` is `Device.launches_early`.
    """
    if x.device.type != "cpu" and x.shape[0] <= MOST_ROWS:
        from .int4_kernel import run

        return run(x, words, scales, offsets, group, early)
    missing: list[torch.Tensor | None] = [None] * len(words)
    return [x @ expand(*parts, group).T for parts in zip(words, scales, offsets or missing, strict=True)]


@int4_linears.register_fake
def _(
    x: torch.Tensor, words: list[torch.Tensor], scales: list[torch.Tensor], offsets: list[torch.Tensor], group: int,
    early: bool,
) -> list[torch.Tensor]:  # fmt: skip
    return [x.new_empty((x.shape[0], w.shape[0])) for w in words]


class Int4Linear(torch.nn.Module):
    """A linear layer with packed weights, for inference."""

    words: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self, words: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, bias: torch.Tensor | None, group: int
    ) -> None:
        super().__init__()
        self.group = group
        self.out_features, self.in_features = words.shape[0], words.shape[1] * 8
        for name, tensor in (("words", words), ("scale", scale), ("offset", offset), ("bias", bias)):
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x of shape [..., in_features]; the result has its dtype, which is that of the scales."""
        offsets = [] if self.offset is None else [self.offset]
        rows = x.reshape(-1, self.in_features)
        y = torch.ops.bench.int4_linears(rows, [self.words], [self.scale], offsets, self.group, False)[0]
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, group={self.group}"

