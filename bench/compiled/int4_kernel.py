"""Weights of 4 bits as floats, in Triton, for matrix products of many rows. See `int4.py` for the layout."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _expand(W, S, Y, N, K, GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The weights as floats, [N, K]. Grid: (blocks of BN rows, blocks of BK columns)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)[:, None].to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)[None, :]
    inside = (n < N) & (k < K)
    words = tl.load(W + n * (K // 8) + k // 32 * 4 + k % 4, mask=inside, other=0)
    code = (words >> (k % 32 // 4 * 4)) & 15
    scale = tl.load(S + n * (K // GROUP) + k // GROUP, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + n * K + k, ((code - 8).to(tl.float32) * scale).to(Y.dtype.element_ty), mask=inside)


def expand(words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """See `int4.expand`."""
    rows, inputs = words.shape[0], words.shape[1] * 8
    dense = torch.empty((rows, inputs), dtype=scale.dtype, device=words.device)
    grid = (triton.cdiv(rows, 4), triton.cdiv(inputs, 1024))
    _expand[grid](words, scale, dense, rows, inputs, GROUP=inputs // scale.shape[1], BN=4, BK=1024)
    return dense
