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
from triton.language.extra import cuda

from .int4 import BLOCK
from .norms import following

_wait, _launch_next = cuda.gdc_wait, cuda.gdc_launch_dependents

_FP16 = """
    lop3.b32 {0}, {half}, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 {1}, {half}, 0x00f000f0, 0x64006400, 0xea;
    shr.u32 {half}, {half}, 8;
    lop3.b32 {2}, {half}, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 {3}, {half}, 0x00f000f0, 0x64006400, 0xea;
    fma.rn.f16x2 {0}, {0}, one, minus1032;
    fma.rn.f16x2 {1}, {1}, sixteenth, minus72;
    fma.rn.f16x2 {2}, {2}, one, minus1032;
    fma.rn.f16x2 {3}, {3}, sixteenth, minus72;
"""
_BF16 = """
    lop3.b32 {0}, {half}, 0x000f000f, 0x43004300, 0xea;
    shr.u32 {half}, {half}, 4;
    lop3.b32 {1}, {half}, 0x000f000f, 0x43004300, 0xea;
    shr.u32 {half}, {half}, 4;
    lop3.b32 {2}, {half}, 0x000f000f, 0x43004300, 0xea;
    shr.u32 {half}, {half}, 4;
    lop3.b32 {3}, {half}, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 {0}, {0}, one, minus136;
    fma.rn.bf16x2 {1}, {1}, one, minus136;
    fma.rn.bf16x2 {2}, {2}, one, minus136;
    fma.rn.bf16x2 {3}, {3}, one, minus136;
"""


def _unpacking(steps: str, **constants: str) -> str:
    """PTX: of two words, the codes number j minus 8 become a pair of floats, for j from 0 to 7."""
    named = "".join(f"\n    .reg .b32 {name};\n    mov.b32 {name}, {value};" for name, value in constants.items())
    halves = "".join(
        f"\n    prmt.b32 {half}, $8, $9, {bytes_};" + steps.format(*(f"${first + j}" for j in range(4)), half=half)
        for half, first, bytes_ in (("low", 0, "0x5410"), ("high", 4, "0x7632"))
    )
    return "{" + named + "\n    .reg .b32 low, high;" + halves + "}"


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
def _rows(start, far, stride, i, COLUMNS: gl.constexpr, GATE: gl.constexpr):
    """Where the rows `i` of weights begin, and their columns: with a gate, those of `up` come second, `far` away."""
    if GATE == "":
        n = start + i
        place = n.to(gl.int64) * stride
    else:
        n = start + i % COLUMNS
        place = n.to(gl.int64) * stride + (i // COLUMNS).to(gl.int64) * far
    return place, n


@gluon.jit
def _scales(scales, here, SPLIT: gl.constexpr):
    """Those of the first, second, third and fourth group of a block, as far as it has so many."""
    first = gl.load(scales, mask=here, other=0.0)
    second = first
    third = first
    fourth = first
    if SPLIT > 1:
        second = gl.load(scales + 1, mask=here, other=0.0)
    if SPLIT > 2:
        third = gl.load(scales + 2, mask=here, other=0.0)
        fourth = gl.load(scales + 3, mask=here, other=0.0)
    return first, second, third, fourth


@gluon.jit
def _product(a0, a1, a2, a3, a4, a5, a6, a7, x, here, part):
    """Sum over the codes of each word, for the inputs that are `here`."""
    part = mma_v2(a0, gl.load(x, mask=here, other=0.0), part)
    part = mma_v2(a1, gl.load(x + 4, mask=here, other=0.0), part)
    part = mma_v2(a2, gl.load(x + 8, mask=here, other=0.0), part)
    part = mma_v2(a3, gl.load(x + 12, mask=here, other=0.0), part)
    part = mma_v2(a4, gl.load(x + 16, mask=here, other=0.0), part)
    part = mma_v2(a5, gl.load(x + 20, mask=here, other=0.0), part)
    part = mma_v2(a6, gl.load(x + 24, mask=here, other=0.0), part)
    return mma_v2(a7, gl.load(x + 28, mask=here, other=0.0), part)


def _configs() -> list[triton.Config]:
    shapes = [(16, 4, 2, True), (16, 4, 4, False), (16, 4, 8, False), (16, 4, 1, True), (32, 4, 1, True),
              (32, 4, 2, True), (32, 4, 4, False), (16, 8, 2, True), (32, 8, 2, True)]  # fmt: skip
    return [
        triton.Config({"BN": rows, "WARPS": warps, "BLOCKS": blocks, "AHEAD": ahead}, num_warps=warps)
        for rows, warps, blocks, ahead in shapes
    ]


def _fitting(configs: list[triton.Config], named: dict[str, Any], **fixed: Any) -> list[triton.Config]:
    """Those whose sums have room in the registers."""
    return [one for one in configs if one.kwargs["BN"] * one.kwargs["BLOCKS"] * fixed["BM"] <= 1024]


_KEY = ["N0", "N1", "N2", "N3", "GROUPS", "BM", "SPLIT", "RESIDUAL", "GATE", "PIECES", "AFTER"]


@triton.autotune(_configs(), key=_KEY, prune_configs_by={"early_config_prune": _fitting}, cache_results=True)
@gluon.jit
def _linears(
    X, Q, R, G, Z, P, W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K, BLOCK_COUNT, GROUPS,
    WFAR, SFAR, EPS, M,
    BM: gl.constexpr, BN: gl.constexpr, WARPS: gl.constexpr, BLOCKS: gl.constexpr, SPLIT: gl.constexpr,
    AHEAD: gl.constexpr, PIECES: gl.constexpr, PIECES2: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
    AFTER: gl.constexpr, EARLY: gl.constexpr, UNPACK: gl.constexpr,
):  # fmt: skip
    """M rows, at most BM. Grid: (blocks of BN rows of all weights,).

    Of the blocks of 128 columns each warp takes BLOCKS at a time for all BN rows, and in the end the sums of the warps
    are added. SPLIT groups of a block have scales of their own. AHEAD: read the next blocks before working on these.
    """
    COLUMNS: gl.constexpr = BN if GATE == "" else BN // 2
    SPAN: gl.constexpr = WARPS * BLOCKS
    sums: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, sums, 4)
    right: gl.constexpr = gl.DotOperandLayout(1, sums, 4)
    W, S, Y, N, start = _pick(W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, COLUMNS)

    b = gl.arange(0, SPAN, gl.SliceLayout(1, gl.SliceLayout(2, left)))[:, None, None]
    i = gl.arange(0, BN, gl.SliceLayout(0, gl.SliceLayout(2, left)))[None, :, None]
    k = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, left)))[None, None, :]
    place, n = _rows(start, WFAR, BLOCK_COUNT * 16, i, COLUMNS, GATE)
    codes = W + place + b * 16 + k
    sb = gl.arange(0, SPAN, gl.SliceLayout(1, gl.SliceLayout(2, sums)))[:, None, None]
    si = gl.arange(0, BN, gl.SliceLayout(0, gl.SliceLayout(2, sums)))[None, :, None]
    place, sn = _rows(start, SFAR, GROUPS, si, COLUMNS, GATE)
    scales = S + place + sb * SPLIT
    xb = gl.arange(0, SPAN, gl.SliceLayout(1, gl.SliceLayout(2, right)))[:, None, None]
    xk = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, right)))[None, :, None]
    xm = gl.arange(0, BM, gl.SliceLayout(0, gl.SliceLayout(1, right)))[None, None, :]
    inputs = X + xm * K + xb * 128 + xk // 4 * 32 + xk % 4

    whole: gl.constexpr = gl.BlockedLayout([1, 1], [4, 8], [WARPS, 1], [1, 0])
    columns = start + gl.arange(0, COLUMNS, gl.SliceLayout(1, whole))[:, None]
    m = gl.arange(0, BM, gl.SliceLayout(0, whole))[None, :]
    exist = (columns < N) & (m < M)

    words = gl.load(codes, mask=(n < N) & (b < BLOCK_COUNT), other=0, eviction_policy="evict_first")
    s0, s1, s2, s3 = _scales(scales, (sn < N) & (sb < BLOCK_COUNT), SPLIT)
    if AFTER:
        after = gl.load(G + columns, mask=columns < N, other=0.0).to(gl.float32)
    if EARLY:
        _wait()
        _launch_next()
    if RESIDUAL:
        residual = gl.load(R + m * N + columns, mask=exist, other=0.0).to(gl.float32)
    total = gl.zeros([SPAN, BN, BM], gl.float32, sums)
    for past in range(0, BLOCK_COUNT, SPAN):
        if AHEAD:
            nearer = BLOCK_COUNT - past - SPAN
            next_words = gl.load(codes + (past + SPAN) * 16, mask=(n < N) & (b < nearer), other=0,
                                 eviction_policy="evict_first")  # fmt: skip
            t0, t1, t2, t3 = _scales(scales + (past + SPAN) * SPLIT, (sn < N) & (sb < nearer), SPLIT)
        elif past > 0:
            nearer = BLOCK_COUNT - past
            words = gl.load(codes + past * 16, mask=(n < N) & (b < nearer), other=0, eviction_policy="evict_first")
            s0, s1, s2, s3 = _scales(scales + past * SPLIT, (sn < N) & (sb < nearer), SPLIT)
        a0, a1, a2, a3, a4, a5, a6, a7 = gl.inline_asm_elementwise(
            UNPACK, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r", [words], dtype=(X.dtype.element_ty,) * 8, is_pure=True,
            pack=2,
        )  # fmt: skip
        x = inputs + past * 128
        here = (xm < M) & (xb + past < BLOCK_COUNT)
        zeros = gl.zeros([SPAN, BN, BM], gl.float32, sums)
        for split in gl.static_range(SPLIT):
            group = here & (xk // (16 // SPLIT) == split) if SPLIT > 1 else here
            part = _product(a0, a1, a2, a3, a4, a5, a6, a7, x, group, zeros)
            scale = s0 if split == 0 else s1 if split == 1 else s2 if split == 2 else s3
            total += part * scale.to(gl.float32)
        if AHEAD:
            words, s0, s1, s2, s3 = next_words, t0, t1, t2, t3

    y = gl.sum(total, 0)
    if GATE == "":
        y = gl.convert_layout(y, whole)
    else:
        y, up = gl.split(gl.permute(gl.reshape(y, [2, COLUMNS, BM]), [1, 2, 0]))
        y, up = gl.convert_layout(y, whole), gl.convert_layout(up, whole)
    if PIECES > 0:  # read so late because registers are scarce before
        wide: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [WARPS, 1], [1, 0])  # a row in 8 lanes
        qm = gl.arange(0, BM, gl.SliceLayout(1, wide))[:, None]
        qp = gl.arange(0, PIECES2, gl.SliceLayout(0, wide))[None, :]
        squares = gl.load(Q + qm * PIECES + qp, mask=(qm < M) & (qp < PIECES), other=0.0)
        root = gl.rsqrt(gl.sum(squares, 1) / K + EPS)
        root = gl.convert_layout(root, gl.SliceLayout(0, whole))[None, :]
        y *= root
        if GATE != "":
            up *= root
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
    if AFTER:
        h = gl.where(exist, y.to(gl.float32), 0.0)
        gl.store(Z + m * N + columns, (h * after).to(Y.dtype.element_ty), mask=exist)
        part = gl.convert_layout(gl.sum(gl.reshape(h * h, [COLUMNS // 16, 16, BM]), 1), whole)
        piece = start // 16 + gl.arange(0, COLUMNS // 16, gl.SliceLayout(1, whole))[:, None]
        gl.store(P + m * (N // 16) + piece, part, mask=(piece < N // 16) & (m < M))


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


def run(
    x: torch.Tensor, words: list[torch.Tensor], scales: list[torch.Tensor], squares: torch.Tensor | None = None,
    eps: float = 0.0, residual: torch.Tensor | None = None, activation: str = "", after: torch.Tensor | None = None,
    early: bool = False,
) -> list[torch.Tensor]:  # fmt: skip
    """See `linear.linears`, for few rows."""
    rows, inputs = x.shape
    words_far = scales_far = 0
    if activation:
        if len(words) == 1:
            words, scales = list(words[0].chunk(2)), list(scales[0].chunk(2))
        words_far = (words[1].data_ptr() - words[0].data_ptr()) // words[0].element_size()
        scales_far = (scales[1].data_ptr() - scales[0].data_ptr()) // scales[0].element_size()
    columns = [w.shape[0] for w in words[: 1 if activation else 4]]
    results = [x.new_empty((rows, each)) for each in columns]
    more = following(results[0]) if after is not None else []

    def four(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [*tensors, *[tensors[0]] * (4 - len(tensors))]

    def grid(meta: dict[str, Any]) -> tuple[int]:
        block = meta["BN"] // 2 if activation else meta["BN"]
        return (sum(triton.cdiv(each, block) for each in columns),)

    fixed: dict[str, Any] = {
        "RESIDUAL": residual is not None, "GATE": activation, "AFTER": after is not None, "EARLY": early,
        "PIECES": 0 if squares is None else squares.shape[1],
    }  # fmt: skip
    if early:
        fixed["launch_pdl"] = True
    groups = scales[0].shape[1]
    others = (x if one is None else one for one in (squares, residual, after, *(more or (None, None))))
    _linears[grid](
        x, *others, *four(words), *four(scales), *four(results), *columns, *[0] * (4 - len(columns)),
        inputs, inputs // BLOCK, groups, words_far, scales_far, eps, rows,
        BM=max(8, triton.next_power_of_2(rows)), PIECES2=triton.next_power_of_2(max(128, fixed["PIECES"])),
        SPLIT=groups * BLOCK // inputs, UNPACK=UNPACK[x.dtype], **fixed,
    )  # fmt: skip
    return results + more
