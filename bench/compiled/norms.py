"""An RMSNorm in two halves, done by the kernels on both sides of it.

The kernel in front computes the sum h of a product and a residual; it also multiplies h with the weights of the norm,
and sums the squares of each PIECE columns. The kernel behind reads that product, and divides its results by the root
mean square, which is the same for all columns of a row.
"""

from __future__ import annotations

import torch

PIECE = 16
"""Columns whose squares are one sum."""


def following(h: torch.Tensor) -> list[torch.Tensor]:
    """Room for h times the weights, and for the sums of squares, fp32 [rows, columns / PIECE]."""
    rows, columns = h.shape
    return [torch.empty_like(h), h.new_empty((rows, columns // PIECE), dtype=torch.float32)]


def front(h: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """What the kernel in front gives besides h [rows, columns], in plain torch."""
    wide = torch.promote_types(h.dtype, torch.float32)
    return [h * weights, h.to(wide).square().view(h.shape[0], -1, PIECE).sum(-1)]


def root(squares: torch.Tensor, columns: int, eps: float) -> torch.Tensor:
    """By what the kernel behind multiplies its results, [rows, 1]."""
    return torch.rsqrt(squares.sum(-1, keepdim=True) / columns + eps)
