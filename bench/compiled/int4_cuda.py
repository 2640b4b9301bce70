"""Linear layers with weights of 4 bits on NVIDIA's tensor cores, for few rows. See `int4.py` for the layout.

At a quarter of the bytes, ordinary arithmetic takes longer than reading. Tensor cores do the products, and codes become
floats two at a time: their bits are put into the mantissa of a float whose last bit counts 1, and what is too much is
taken off. Triton cannot say which lane holds which weight; Gluon, its language for that, can.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from . import linear_kernel
from .early_cuda import gdc_launch_dependents, gdc_wait, launch_options
from .int4 import BLOCK
from .tuning import autotuned

_FP16 = """
    lop3.b32 {0}, {word}, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 {1}, {word}, 0x00f000f0, 0x64006400, 0xea;
    shr.u32 next, {word}, 8;
    lop3.b32 {2}, next, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 {3}, next, 0x00f000f0, 0x64006400, 0xea;
    fma.rn.f16x2 {0}, {0}, one, minus1032;
    fma.rn.f16x2 {1}, {1}, sixteenth, minus72;
    fma.rn.f16x2 {2}, {2}, one, minus1032;
    fma.rn.f16x2 {3}, {3}, sixteenth, minus72;
"""
_BF16 = """
    lop3.b32 {0}, {word}, 0x000f000f, 0x43004300, 0xea;
    shr.u32 next, {word}, 4;
    lop3.b32 {1}, next, 0x000f000f, 0x43004300, 0xea;
    shr.u32 next, {word}, 8;
    lop3.b32 {2}, next, 0x000f000f, 0x43004300, 0xea;
    shr.u32 next, {word}, 12;
    lop3.b32 {3}, next, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 {0}, {0}, one, minus136;
    fma.rn.bf16x2 {1}, {1}, one, minus136;
    fma.rn.bf16x2 {2}, {2}, one, minus136;
    fma.rn.bf16x2 {3}, {3}, one, minus136;
"""


def _unpacking(steps: str, **constants: str) -> str:
    """PTX: two words become eight pairs of floats, the codes minus 8; the first word has the first four pairs."""
    named = "".join(f"\n    .reg .b32 {name};\n    mov.b32 {name}, {value};" for name, value in constants.items())
    words = "".join(
        steps.format(*(f"${first + j}" for j in range(4)), word=word) for word, first in (("$8", 0), ("$9", 4))
    )
    return "{" + named + "\n    .reg .b32 next;" + words + "}"


UNPACK = {
    torch.float16: _unpacking(
        _FP16, one="0x3c003c00", sixteenth="0x2c002c00", minus1032="0xe408e408", minus72="0xd480d480"
    ),
    torch.bfloat16: _unpacking(_BF16, one="0x3f803f80", minus136="0xc308c308"),
}


@gluon.jit
def _pick(
    W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, COLUMNS: gl.constexpr
):  # fmt: skip
    """Which layer this program works for: its words, scales, output and width, and the first of its columns."""
    block = gl.program_id(0)
    W, S, Y, N = W0, S0, Y0, N0
    if block >= gl.cdiv(N0, COLUMNS):
        block -= gl.cdiv(N0, COLUMNS)
        W, S, Y, N = W1, S1, Y1, N1
        if block >= gl.cdiv(N1, COLUMNS):
            block -= gl.cdiv(N1, COLUMNS)
            W, S, Y, N = W2, S2, Y2, N2
            if block >= gl.cdiv(N2, COLUMNS):
                block -= gl.cdiv(N2, COLUMNS)
                W, S, Y, N = W3, S3, Y3, N3
    return W, S, Y, N, block * COLUMNS


@gluon.jit
def _row(start, i, N, APART, COLUMNS: gl.constexpr, GATE: gl.constexpr):
    """Row `i` of a block; with a gate, those of `up` come second, APART rows behind. The last one may repeat."""
    row = gl.minimum(start + i % COLUMNS, N - 1)
    if GATE != "":
        row += i // COLUMNS * APART
    return row


@gluon.jit
def _read(codes, scales, block, past, BLOCK_COUNT, SPAN: gl.constexpr, SPLIT: gl.constexpr):
    """Words and scales of the next SPAN blocks, or of the last; the scales of what has been read before are 0.

    Also where they begin. Scales are those of the first to fourth group of a block, as far as it has so many.
    """
    at = gl.maximum(gl.minimum(past, BLOCK_COUNT - SPAN), 0)
    new = (block + at >= past) & (block < BLOCK_COUNT)
    words = gl.load(codes + at * 256, eviction_policy="evict_first")
    scales += at * SPLIT
    first = gl.load(scales, mask=new, other=0.0)
    second = first
    third = first
    fourth = first
    if SPLIT > 1:
        second = gl.load(scales + 1, mask=new, other=0.0)
    if SPLIT > 2:
        third = gl.load(scales + 2, mask=new, other=0.0)
        fourth = gl.load(scales + 3, mask=new, other=0.0)
    return words, at, first, second, third, fourth


@gluon.jit
def _input(x, offset: gl.constexpr, mine, SPLIT: gl.constexpr):
    """Of several groups those of one, and 0 for the others."""
    return gl.load(x + offset) if SPLIT == 1 else gl.load(x + offset, mask=mine, other=0.0)


@gluon.jit
def _work(words, s0, s1, s2, s3, x, xk, total, zeros, SPLIT: gl.constexpr, UNPACK: gl.constexpr):
    """Add the products of a tile to the sums."""
    a0, a1, a2, a3, a4, a5, a6, a7 = gl.inline_asm_elementwise(
        UNPACK, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r", [words], dtype=(x.dtype.element_ty,) * 8, is_pure=True,
        pack=2,
    )  # fmt: skip
    for split in gl.static_range(SPLIT):
        mine = xk // (16 // SPLIT) == split
        part = mma_v2(a0, _input(x, 0, mine, SPLIT), zeros)
        part = mma_v2(a1, _input(x, 4, mine, SPLIT), part)
        part = mma_v2(a2, _input(x, 8, mine, SPLIT), part)
        part = mma_v2(a3, _input(x, 12, mine, SPLIT), part)
        part = mma_v2(a4, _input(x, 16, mine, SPLIT), part)
        part = mma_v2(a5, _input(x, 20, mine, SPLIT), part)
        part = mma_v2(a6, _input(x, 24, mine, SPLIT), part)
        part = mma_v2(a7, _input(x, 28, mine, SPLIT), part)
        scale = s0 if split == 0 else s1 if split == 1 else s2 if split == 2 else s3
        total += part * scale.to(gl.float32)
    return total


def _configs() -> list[triton.Config]:
    """The best single one for products of Llama-2-7B on an H200, then what some gain from, for one row or four."""
    shapes = [(16, 4, 4), (16, 4, 1), (32, 4, 1), (16, 2, 2), (16, 8, 2), (32, 2, 1)]
    return [
        triton.Config({"BN": rows, "WARPS": warps, "BLOCKS": blocks}, num_warps=warps) for rows, warps, blocks in shapes
    ]


def _fitting(configs: list[triton.Config], named: dict[str, Any], **fixed: Any) -> list[triton.Config]:
    """Those whose sums have room in the registers."""
    return [one for one in configs if one.kwargs["BN"] * one.kwargs["BLOCKS"] * fixed["BM"] <= 1024]


@autotuned(_configs(), key=["N0", "N1", "N2", "N3", "GROUPS", "BM", "SPLIT", "RESIDUAL", "GATE"], fits=_fitting)
@gluon.jit
def _linears(
    X, R, W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K, BLOCK_COUNT, GROUPS, APART, WFAR, SFAR, M,
    BM: gl.constexpr, BN: gl.constexpr, WARPS: gl.constexpr, BLOCKS: gl.constexpr, SPLIT: gl.constexpr,
    RESIDUAL: gl.constexpr, GATE: gl.constexpr, EARLY: gl.constexpr, UNPACK: gl.constexpr,
):  # fmt: skip
    """M rows, at most BM. Grid: (blocks of BN rows of all weights,).

    Of the blocks of 128 columns each warp takes BLOCKS at a time for all BN rows, reads those that come next before it
    works on them, and in the end the sums of the warps are added. SPLIT groups of a block have scales of their own.
    Only scales are masked: what is read twice or is not there has none.
    """
    COLUMNS: gl.constexpr = BN if GATE == "" else BN // 2
    SPAN: gl.constexpr = WARPS * BLOCKS
    sums: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, sums, 4)
    right: gl.constexpr = gl.DotOperandLayout(1, sums, 4)
    W, S, Y, N, start = _pick(W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, COLUMNS)

    b = gl.minimum(gl.arange(0, SPAN, gl.SliceLayout(1, gl.SliceLayout(2, left))), BLOCK_COUNT - 1)[:, None, None]
    i = gl.arange(0, BN, gl.SliceLayout(0, gl.SliceLayout(2, left)))[None, :, None]
    k = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, left)))[None, None, :]
    row = _row(start, i, N, APART, COLUMNS, GATE)
    codes = W + (row // 16).to(gl.int64) * (BLOCK_COUNT * 256) + row % 16 * 16 + b * 256 + k
    sb = gl.arange(0, SPAN, gl.SliceLayout(1, gl.SliceLayout(2, sums)))[:, None, None]
    si = gl.arange(0, BN, gl.SliceLayout(0, gl.SliceLayout(2, sums)))[None, :, None]
    scales = S + _row(start, si, N, APART, COLUMNS, GATE).to(gl.int64) * GROUPS + sb * SPLIT
    if GATE != "":
        codes += (i // COLUMNS).to(gl.int64) * WFAR
        scales += (si // COLUMNS).to(gl.int64) * SFAR
    xb = gl.arange(0, SPAN, gl.SliceLayout(1, gl.SliceLayout(2, right)))[:, None, None]
    xk = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, right)))[None, :, None]
    xm = gl.arange(0, BM, gl.SliceLayout(0, gl.SliceLayout(1, right)))[None, None, :]
    inputs = X + gl.minimum(xm, M - 1) * K + gl.minimum(xb, BLOCK_COUNT - 1) * 128 + xk // 4 * 32 + xk % 4

    whole: gl.constexpr = gl.BlockedLayout([1, 1], [4, 8], [WARPS, 1], [1, 0])
    columns = start + gl.arange(0, COLUMNS, gl.SliceLayout(1, whole))[:, None]
    m = gl.arange(0, BM, gl.SliceLayout(0, whole))[None, :]
    exist = (columns < N) & (m < M)

    words, at, s0, s1, s2, s3 = _read(codes, scales, sb, 0, BLOCK_COUNT, SPAN, SPLIT)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    if RESIDUAL:
        residual = gl.load(R + m * N + columns, mask=exist, other=0.0).to(gl.float32)
    zeros = gl.zeros([SPAN, BN, BM], gl.float32, sums)
    total = zeros
    for past in range(SPAN, BLOCK_COUNT, SPAN):
        next_words, next_at, t0, t1, t2, t3 = _read(codes, scales, sb, past, BLOCK_COUNT, SPAN, SPLIT)
        total = _work(words, s0, s1, s2, s3, inputs + at * 128, xk, total, zeros, SPLIT, UNPACK)
        words, at, s0, s1, s2, s3 = next_words, next_at, t0, t1, t2, t3
    total = _work(words, s0, s1, s2, s3, inputs + at * 128, xk, total, zeros, SPLIT, UNPACK)

    y = gl.sum(total, 0)
    if GATE == "":
        y = gl.convert_layout(y, whole)
    else:
        y, up = gl.split(gl.permute(gl.reshape(y, [2, COLUMNS, BM]), [1, 2, 0]))
        y, up = gl.convert_layout(y, whole), gl.convert_layout(up, whole)
    y = y.to(Y.dtype.element_ty)
    if GATE != "":
        gate = y.to(gl.float32)
        if GATE == "gelu":  # the one by tanh, where (1 + tanh(z)) / 2 is 1 / (1 + exp(-2 z))
            gate = gate / (1.0 + gl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
        else:
            gate = gate / (1.0 + gl.exp(-gate))
        y = (gate * up.to(Y.dtype.element_ty).to(gl.float32)).to(Y.dtype.element_ty)
    if RESIDUAL:
        y = (residual + y.to(gl.float32)).to(Y.dtype.element_ty)
    gl.store(Y + m * N + columns, y, mask=exist)


@triton.jit
def _expand(W, S, Y, N, K, GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The weights as floats, [N, K]. Grid: (blocks of BN rows, blocks of BK columns)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)[:, None].to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)[None, :]
    inside = (n < N) & (k < K)
    j = k % 32
    place = n // 16 * (K * 2) + k // 128 * 256 + n % 16 * 16 + k % 128 // 32 * 4 + j % 4 // 2 * 2 + j // 16
    words = tl.load(W + place, mask=inside, other=0)
    code = (words >> (j % 2 * 16 + j % 16 // 4 * 4)) & 15
    scale = tl.load(S + n * (K // GROUP) + k // GROUP, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + n * K + k, ((code - 8).to(tl.float32) * scale).to(Y.dtype.element_ty), mask=inside)


def expand(words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """See `int4.expand`."""
    rows, inputs = scale.shape[0], words.shape[1] * 8
    dense = torch.empty((rows, inputs), dtype=scale.dtype, device=words.device)
    grid = (triton.cdiv(rows, 4), triton.cdiv(inputs, 1024))
    _expand[grid](words, scale, dense, rows, inputs, GROUP=inputs // scale.shape[1], BN=4, BK=1024)
    return dense


def run(
    x: torch.Tensor, words: list[torch.Tensor], scales: list[torch.Tensor], norm: torch.Tensor | None = None,
    eps: float = 0.0, residual: torch.Tensor | None = None, activation: str = "", early: bool = False,
) -> list[torch.Tensor]:  # fmt: skip
    """See `linear.linears`, for few rows."""
    if norm is not None:
        x = linear_kernel.normed(x, norm, eps, early)
    rows, inputs = x.shape
    apart = words_far = scales_far = 0
    columns = [each.shape[0] for each in scales[: 1 if activation else 4]]
    if activation and len(words) == 1:
        columns = [columns[0] // 2]
        apart = columns[0]
    elif activation:
        words_far, scales_far = linear_kernel.apart(words), linear_kernel.apart(scales)
    results = [x.new_empty((rows, each)) for each in columns]

    def grid(meta: dict[str, Any]) -> tuple[int]:
        block = meta["BN"] // 2 if activation else meta["BN"]
        return (sum(triton.cdiv(each, block) for each in columns),)

    w, s, y = (linear_kernel.four(parts) for parts in (words, scales, results))
    groups = scales[0].shape[1]
    launch = launch_options(early)
    _linears[grid](
        x, x if residual is None else residual, *w, *s, *y,
        *columns, *[0] * (4 - len(columns)), inputs, inputs // BLOCK, groups, apart, words_far, scales_far, rows,
        BM=max(8, triton.next_power_of_2(rows)), SPLIT=groups * BLOCK // inputs, RESIDUAL=residual is not None,
        GATE=activation, EARLY=early, UNPACK=UNPACK[x.dtype], **launch,
    )  # fmt: skip
    return results
