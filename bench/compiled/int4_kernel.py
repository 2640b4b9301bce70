"""Linear layers with weights of 4 bits, in Triton. See `int4.py` for the layout.

A code becomes a float by putting it into the mantissa of 2**23, which is cheaper than converting it: at a quarter of the
bytes, arithmetic would else take longer than reading.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

MAGIC = tl.constexpr(0x4B000000)
"""2**23 as a float: its last bits count ones."""
BASE = tl.constexpr(8388608.0)


@triton.jit
def _pick(
    W0, W1, W2, W3, S0, S1, S2, S3, Z0, Z1, Z2, Z3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN: tl.constexpr
):  # fmt: skip
    """Which layer this program works for: codes, scales, offsets, output, width, and the first of its columns."""
    block = tl.program_id(0)
    W, S, Z, Y, N = W0, S0, Z0, Y0, N0
    if block >= tl.cdiv(N0, BN):
        block -= tl.cdiv(N0, BN)
        W, S, Z, Y, N = W1, S1, Z1, Y1, N1
        if block >= tl.cdiv(N1, BN):
            block -= tl.cdiv(N1, BN)
            W, S, Z, Y, N = W2, S2, Z2, Y2, N2
            if block >= tl.cdiv(N2, BN):
                block -= tl.cdiv(N2, BN)
                W, S, Z, Y, N = W3, S3, Z3, Y3, N3
    return W, S, Z, Y, N, block * BN


@triton.jit
def _spread(S, Z, n, kw, inside, groups, WORDS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Scales and offsets of the words `kw` of rows `n`, shape [BN, BK]; offsets are counted from 2**23."""
    place = n[:, None] * groups + (kw // WORDS)[None, :]
    scale = tl.load(S + place, mask=inside, other=0.0).to(tl.float32)
    if SYMMETRIC:
        offset = tl.full(scale.shape, 8.0 + BASE, tl.float32)
    else:
        offset = tl.load(Z + place, mask=inside, other=0.0).to(tl.float32) + BASE
    return scale, offset


@triton.jit
def _code(words, index: tl.constexpr):
    """Code number `index` of each word, as a float that is 2**23 too large."""
    return (((words >> (4 * index)) & 15) | MAGIC).to(tl.float32, bitcast=True)


def _vector_configs() -> list[triton.Config]:
    shapes = [(2, 256, 4), (4, 128, 4), (4, 256, 4), (8, 64, 4), (8, 128, 4), (4, 512, 8), (8, 256, 8), (16, 64, 4)]
    return [triton.Config({"BN": n, "BK": k}, num_warps=warps) for n, k, warps in shapes]


@triton.autotune(_vector_configs(), key=["N0", "N1", "N2", "N3", "K"], cache_results=True)
@triton.jit
def _vector(
    X, W0, W1, W2, W3, S0, S1, S2, S3, Z0, Z1, Z2, Z3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K,
    BN: tl.constexpr, BK: tl.constexpr, WORDS: tl.constexpr, SYMMETRIC: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row. Grid: (blocks of BN columns of all layers,). BK counts words of 8 codes."""
    W, S, Z, Y, N, start = _pick(
        W0, W1, W2, W3, S0, S1, S2, S3, Z0, Z1, Z2, Z3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN
    )  # fmt: skip
    n = start + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total_words = K // 8
    groups = total_words // WORDS
    rows = (n < N)[:, None]
    weights = W + n[:, None].to(tl.int64) * total_words
    words = tl.load(weights + k[None, :], mask=rows & (k < total_words)[None, :], other=0, eviction_policy="evict_first")
    scale, offset = _spread(S, Z, n, k, rows & (k < total_words)[None, :], groups, WORDS, SYMMETRIC)
    if EARLY:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    sums = tl.zeros([BN, BK], tl.float32)
    for past in range(0, total_words, BK):
        kw = past + k
        here = kw < total_words
        if past > 0:
            inside = rows & here[None, :]
            words = tl.load(weights + kw[None, :], mask=inside, other=0, eviction_policy="evict_first")
            scale, offset = _spread(S, Z, n, kw, inside, groups, WORDS, SYMMETRIC)
        inputs = X + (kw // WORDS) * (WORDS * 8) + kw % WORDS
        part = tl.zeros([BN, BK], tl.float32)
        for index in tl.static_range(8):
            x = tl.load(inputs + index * WORDS, mask=here, other=0.0).to(tl.float32)
            part += (_code(words, index) - offset) * x[None, :]
        sums += part * scale
    tl.store(Y + n, tl.sum(sums, 1).to(Y.dtype.element_ty), mask=n < N)


def _rows_configs() -> list[triton.Config]:
    shapes = [(16, 32, 4), (16, 64, 4), (32, 16, 4), (32, 32, 4), (64, 16, 4), (64, 32, 4)]
    return [triton.Config({"BN": n, "BK": k}, num_warps=warps) for n, k, warps in shapes]


@triton.autotune(_rows_configs(), key=["N0", "N1", "N2", "N3", "K", "BM"], cache_results=True)
@triton.jit
def _rows(
    X, W0, W1, W2, W3, S0, S1, S2, S3, Z0, Z1, Z2, Z3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K, M,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WORDS: tl.constexpr, SYMMETRIC: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """M rows, at most BM. Grid: (blocks of BN columns of all layers,). BK counts words of 8 codes."""
    W, S, Z, Y, N, start = _pick(
        W0, W1, W2, W3, S0, S1, S2, S3, Z0, Z1, Z2, Z3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN
    )  # fmt: skip
    n = start + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    total_words = K // 8
    groups = total_words // WORDS
    rows = (n < N)[:, None]
    weights = W + n[:, None].to(tl.int64) * total_words
    if EARLY:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    sums = tl.zeros([BN, BM], tl.float32)
    for past in range(0, total_words, BK):
        kw = past + k
        here = (kw < total_words)[None, :]
        inside = rows & here
        words = tl.load(weights + kw[None, :], mask=inside, other=0, eviction_policy="evict_first")
        scale, offset = _spread(S, Z, n, kw, inside, groups, WORDS, SYMMETRIC)
        inputs = X + m[:, None] * K + ((kw // WORDS) * (WORDS * 8) + kw % WORDS)[None, :]
        for index in tl.static_range(8):
            x = tl.load(inputs + index * WORDS, mask=(m < M)[:, None] & here, other=0.0)
            w = ((_code(words, index) - offset) * scale).to(x.dtype)
            sums += tl.dot(w, tl.trans(x))
    tl.store(Y + m[None, :] * N + n[:, None], sums.to(Y.dtype.element_ty), mask=(m < M)[None, :] & rows)


@triton.jit
def _expand(
    W, S, Z, Y, N, K, BN: tl.constexpr, BK: tl.constexpr, WORDS: tl.constexpr, SYMMETRIC: tl.constexpr
):
    """The weights as floats, [N, K]. Grid: (blocks of BN rows, blocks of BK words)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    kw = tl.program_id(1) * BK + tl.arange(0, BK)
    total_words = K // 8
    inside = (n < N)[:, None] & (kw < total_words)[None, :]
    words = tl.load(W + n[:, None].to(tl.int64) * total_words + kw[None, :], mask=inside, other=0)
    scale, offset = _spread(S, Z, n, kw, inside, total_words // WORDS, WORDS, SYMMETRIC)
    place = Y + n[:, None].to(tl.int64) * K + ((kw // WORDS) * (WORDS * 8) + kw % WORDS)[None, :]
    for index in tl.static_range(8):
        value = (_code(words, index) - offset) * scale
        tl.store(place + index * WORDS, value.to(Y.dtype.element_ty), mask=inside)


def expand(words: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, group: int) -> torch.Tensor:
    """See `int4.expand`."""
    rows, width = words.shape
    dense = torch.empty((rows, width * 8), dtype=scale.dtype, device=words.device)
    grid = (triton.cdiv(rows, 16), triton.cdiv(width, 64))
    _expand[grid](words, scale, scale if offset is None else offset, dense, rows, width * 8,
                  BN=16, BK=64, WORDS=group // 8, SYMMETRIC=offset is None)  # fmt: skip
    return dense


def run(
    x: torch.Tensor, words: list[torch.Tensor], scales: list[torch.Tensor], offsets: list[torch.Tensor], group: int,
    early: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """See `int4.int4_linears`, for few rows."""
    rows, inputs = x.shape
    results = [torch.empty((rows, w.shape[0]), dtype=x.dtype, device=x.device) for w in words]

    def four(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [*tensors, *[tensors[0]] * (4 - len(tensors))]

    n = [*(w.shape[0] for w in words), *[0] * (4 - len(words))]
    arguments = (x, *four(words), *four(scales), *four(offsets or scales), *four(results), *n, inputs)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (sum(triton.cdiv(columns, meta["BN"]) for columns in n),)

    fixed: dict[str, Any] = {"WORDS": group // 8, "SYMMETRIC": not offsets, "EARLY": early}
    if early:
        fixed["launch_pdl"] = True
    if rows == 1:
        _vector[grid](*arguments, **fixed)
    else:
        _rows[grid](*arguments, rows, BM=max(16, triton.next_power_of_2(rows)), **fixed)
    return results
