"""Linear layers with weights of 4 bits, in Triton. See `int4.py` for the layout.

At a quarter of the bytes, arithmetic is what takes time. A code becomes a float in one operation, by putting its bits into
the mantissa of 128, or of 2048 for codes that lie lower in the word; what is too much is taken off the sum afterwards,
once for the codes of a word.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

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
    """Scales and offsets of the words `kw` of rows `n`, shape [BN, BK]."""
    place = n[:, None] * groups + (kw // WORDS)[None, :]
    scale = tl.load(S + place, mask=inside, other=0.0).to(tl.float32)
    if SYMMETRIC:
        offset = tl.full(scale.shape, 8.0, tl.float32)
    else:
        offset = tl.load(Z + place, mask=inside, other=0.0).to(tl.float32)
    return scale, offset


@triton.jit
def _code(words, index: tl.constexpr):
    """Code number `index` of each word, as a float that is too large by 2048 for numbers 1, 3 and 5, by 128 for others."""
    if index == 0:
        words = words << 16
    elif index < 3:
        words = words << 8
    elif index == 7:
        words = words >> 12
    elif index > 4:
        words = words >> 8
    if index == 1 or index == 3 or index == 5:
        return ((words & 0xF000) | 0x45000000).to(tl.float32, bitcast=True)
    else:
        return ((words & 0xF0000) | 0x43000000).to(tl.float32, bitcast=True)


@triton.jit
def _excess(index: tl.constexpr):
    """By how much `_code` is too large."""
    if index == 1 or index == 3 or index == 5:
        return 2048.0
    else:
        return 128.0


def _vector_configs() -> list[triton.Config]:
    shapes = [(2, 128, 1), (2, 256, 1), (4, 64, 1), (4, 128, 1), (4, 128, 2), (4, 256, 2), (4, 256, 4), (8, 64, 2),
              (8, 128, 4)]  # fmt: skip
    return [triton.Config({"BN": n, "BK": k}, num_warps=warps) for n, k, warps in shapes]


@triton.autotune(_vector_configs(), key=["N0", "N1", "N2", "N3", "K", "M"], cache_results=True)
@triton.jit
def _vector(
    X, W0, W1, W2, W3, S0, S1, S2, S3, Z0, Z1, Z2, Z3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WORDS: tl.constexpr, SYMMETRIC: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """At most 2 rows by ordinary arithmetic. Grid: (blocks of BN columns of all layers,). BK counts words of 8 codes."""
    W, S, Z, Y, N, start = _pick(
        W0, W1, W2, W3, S0, S1, S2, S3, Z0, Z1, Z2, Z3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN
    )  # fmt: skip
    n = start + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total_words = K // 8
    groups = total_words // WORDS
    rows = (n < N)[:, None]
    weights = W + n[:, None].to(tl.int64) * total_words
    here = k < total_words
    inside = rows & here[None, :]
    words = tl.load(weights + k[None, :], mask=inside, other=0, eviction_policy="evict_first")
    scale, offset = _spread(S, Z, n, k, inside, groups, WORDS, SYMMETRIC)
    if EARLY:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    first = tl.zeros([BN, BK], tl.float32)
    second = tl.zeros([BN, BK], tl.float32)
    for past in range(0, total_words, BK):
        kw = past + k
        here = kw < total_words
        if past > 0:
            inside = rows & here[None, :]
            words = tl.load(weights + kw[None, :], mask=inside, other=0, eviction_policy="evict_first")
            scale, offset = _spread(S, Z, n, kw, inside, groups, WORDS, SYMMETRIC)
        inputs = X + (kw // WORDS) * (WORDS * 8) + kw % WORDS
        first += _words_times(words.to(tl.uint32, bitcast=True), inputs, here, offset, WORDS) * scale
        if M == 2:
            second += _words_times(words.to(tl.uint32, bitcast=True), inputs + K, here, offset, WORDS) * scale
    tl.store(Y + n, tl.sum(first, 1).to(Y.dtype.element_ty), mask=n < N)
    if M == 2:
        tl.store(Y + N + n, tl.sum(second, 1).to(Y.dtype.element_ty), mask=n < N)


@triton.jit
def _words_times(words, inputs, here, offset, WORDS: tl.constexpr):
    """Sum over the codes of each word of (code - offset) * input; fp32 [BN, BK]."""
    part = tl.zeros(words.shape, tl.float32)
    all_inputs = tl.zeros([1, words.shape[1]], tl.float32)
    too_much = tl.zeros([1, words.shape[1]], tl.float32)
    for index in tl.static_range(8):
        x = tl.load(inputs + index * WORDS, mask=here, other=0.0).to(tl.float32)[None, :]
        part += _code(words, index) * x
        all_inputs += x
        too_much += _excess(index) * x
    return part - (offset * all_inputs + too_much)


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
        bits = words.to(tl.uint32, bitcast=True)
        for index in tl.static_range(8):
            x = tl.load(inputs + index * WORDS, mask=(m < M)[:, None] & here, other=0.0)
            w = (_code(bits, index) - (offset + _excess(index))) * scale
            sums += tl.dot(w.to(x.dtype), tl.trans(x))
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
        value = (_code(words.to(tl.uint32, bitcast=True), index) - (offset + _excess(index))) * scale
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
    if rows <= 2:
        _vector[grid](*arguments, M=rows, **fixed)
    else:
        _rows[grid](*arguments, rows, BM=max(16, triton.next_power_of_2(rows)), **fixed)
    return results
