"""Linear layers of a few rows, in Triton: reading the weights is all the time they take.

On devices that can launch a kernel before the one in front of it has ended (`early`), each program reads its first
weights, which nobody writes, before it waits for its input.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .early_cuda import after_previous, launch_options
from .tuning import autotuned


@triton.jit
def _pick(W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN: tl.constexpr):
    """Which layer this program works for: its weights, scales, output and width, and the first of its columns."""
    block = tl.program_id(0)
    W, S, Y, N = W0, S0, Y0, N0
    if block >= tl.cdiv(N0, BN):
        block -= tl.cdiv(N0, BN)
        W, S, Y, N = W1, S1, Y1, N1
        if block >= tl.cdiv(N1, BN):
            block -= tl.cdiv(N1, BN)
            W, S, Y, N = W2, S2, Y2, N2
            if block >= tl.cdiv(N2, BN):
                block -= tl.cdiv(N2, BN)
                W, S, Y, N = W3, S3, Y3, N3
    return W, S, Y, N, block * BN


@triton.jit
def _scales(S, n, N, dtype: tl.constexpr, SCALES: tl.constexpr):
    """Of columns n: as they are kept (`exact`), or rounded to what the products have (`rounded`)."""
    scale = tl.load(S + n, mask=n < N, other=0.0)
    if SCALES == "rounded":
        scale = scale.to(dtype)
    return scale.to(tl.float32)


@triton.jit
def _offsets(start, K, FAR, COLUMNS: tl.constexpr, GATE: tl.constexpr):
    """Where the rows of weights begin, and the column of each: with a gate, two a column, of which one is FAR away.

    A choice between two addresses would cost the compiler what it knows of them, and the loads their width.
    """
    if GATE == "":
        n = start + tl.arange(0, COLUMNS)
        rows = n.to(tl.int64) * K
    else:
        row = tl.arange(0, 2 * COLUMNS)
        n = start + row // 2
        rows = n.to(tl.int64) * K + (row % 2).to(tl.int64) * FAR
    return rows, n


@triton.jit
def _floats(w):
    """Weights as floats of 32 bits. Put into the lowest bits of 2 ** 23, an integer is a float by one subtraction."""
    if w.dtype == tl.int8:
        return ((w.to(tl.int32) & 255) ^ 0x4B000080).to(tl.float32, bitcast=True) - 8388736.0  # 2 ** 23 + 128
    return w.to(tl.float32)


@triton.jit
def _factors(w, dtype: tl.constexpr):
    """Weights as tensor cores take them; bf16 takes longer to make of fp8 directly."""
    if w.dtype == tl.float8e4nv and dtype == tl.bfloat16:
        w = w.to(tl.float32)
    return w.to(dtype)


@triton.jit
def _gated(gate, up, GATE: tl.constexpr):
    """Both as fp16 or bf16; `gelu` is the one by tanh, where (1 + tanh(z)) / 2 is sigmoid(2 z)."""
    x = gate.to(tl.float32)
    if GATE == "gelu":
        x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        x *= tl.sigmoid(x)
    return (x * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def _norm(X, G, Y, K, EPS, BK: tl.constexpr, EARLY: tl.constexpr):
    """RMSNorm, rounded where the models round. Grid: (rows,)."""
    k = tl.arange(0, BK)
    here = k < K
    g = tl.load(G + k, mask=here, other=0.0).to(tl.float32)
    after_previous(EARLY)
    place = tl.program_id(0) * K + k
    x = tl.load(X + place, mask=here, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 0) / K + EPS)
    tl.store(Y + place, (x.to(Y.dtype.element_ty).to(tl.float32) * g).to(Y.dtype.element_ty), mask=here)


def normed(x: torch.Tensor, weights: torch.Tensor, eps: float, early: bool) -> torch.Tensor:
    """RMSNorm of each row of x [rows, columns]."""
    rows, columns = x.shape
    y = torch.empty_like(x)
    launch = launch_options(early)
    _norm[(rows,)](x, weights, y, columns, eps, BK=triton.next_power_of_2(columns), EARLY=early, num_warps=8, **launch)
    return y


Configs = dict[int, list[triton.Config]]
"""By the bytes of a weight: the best single one for products of five models on an H200, then what some gain from."""


def _vector_configs(*shapes: tuple[int, int, int]) -> list[triton.Config]:
    return [triton.Config({"BN": n, "BK": k}, num_warps=warps) for n, k, warps in shapes]


VECTOR: Configs = {
    2: _vector_configs((4, 512, 4), (2, 1024, 4), (1, 1024, 4)),
    1: _vector_configs((8, 1024, 4), (4, 1024, 4), (8, 512, 2)),
}


def _rows_configs(*shapes: tuple[int, int, int, int]) -> list[triton.Config]:
    return [triton.Config({"BN": n, "BK": k}, num_warps=warps, num_stages=stages) for n, k, warps, stages in shapes]


ROWS: Configs = {
    2: _rows_configs((64, 128, 4, 6), (32, 256, 4, 6), (64, 128, 4, 4), (128, 64, 4, 4)),
    1: _rows_configs((32, 128, 4, 6), (64, 128, 4, 4), (32, 256, 4, 4)),
}


def _tuned(by_bytes: Configs, key: list[str]) -> Any:
    """The decorator of a kernel with such configurations."""

    def fits(configs: list[triton.Config], named: dict[str, Any], **_: Any) -> list[triton.Config]:
        return [one for one in by_bytes[named["W0"].element_size()] if one in configs]

    return autotuned(list(dict.fromkeys([*by_bytes[2], *by_bytes[1]])), key, fits)


@_tuned(VECTOR, ["N0", "N1", "N2", "N3", "K", "NORM", "RESIDUAL", "GATE", "SCALES"])
@triton.jit
def _vector(
    X, G, R, W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K, FAR, SFAR, EPS,
    BN: tl.constexpr, BK: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    GATE: tl.constexpr, SCALES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row. Grid: (blocks of BN columns of all results,)."""
    W, S, Y, N, start = _pick(W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN)
    n = start + tl.arange(0, BN)
    k = tl.arange(0, BK)
    rows, columns = _offsets(start, K, FAR, BN, GATE)
    weights = W + rows[:, None] + k[None, :]
    inside = (columns < N)[:, None]
    w = tl.load(weights, mask=inside & (k < K)[None, :], other=0.0, eviction_policy="evict_first")
    if NORM:
        g = tl.load(G + k, mask=k < K, other=0.0)
    if SCALES != "":
        if GATE != "":
            S += tl.arange(0, 2 * BN) % 2 * SFAR
        scale = _scales(S, columns, N, Y.dtype.element_ty, SCALES)
    after_previous(EARLY)
    if RESIDUAL:
        residual = tl.load(R + n, mask=n < N, other=0.0)
    x = tl.load(X + k, mask=k < K, other=0.0).to(tl.float32)
    if NORM:
        squares = x * x
        x *= g.to(tl.float32)
    sums = _floats(w) * x[None, :]
    for past in range(BK, K, BK):
        here = (past + k) < K
        w = tl.load(weights + past, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
        x = tl.load(X + past + k, mask=here, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(G + past + k, mask=here, other=0.0).to(tl.float32)
        sums += _floats(w) * x[None, :]
    y = tl.sum(sums, 1)
    if NORM:
        y *= tl.rsqrt(tl.sum(squares, 0) / K + EPS)
    if SCALES != "":
        y *= scale
    y = y.to(Y.dtype.element_ty)
    if GATE != "":
        gate, up = tl.split(tl.reshape(y, (BN, 2)))
        y = _gated(gate, up, GATE)
    if RESIDUAL:
        y = (residual.to(tl.float32) + y.to(tl.float32)).to(Y.dtype.element_ty)
    tl.store(Y + n, y, mask=n < N)


@_tuned(ROWS, ["N0", "N1", "N2", "N3", "K", "BM", "SCALES"])
@triton.jit
def _rows(
    X, W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K, M,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SCALES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """M rows, at most BM. Grid: (blocks of BN columns of all layers,)."""
    W, S, Y, N, start = _pick(W0, W1, W2, W3, S0, S1, S2, S3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN)
    n = start + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    weights = W + n[:, None].to(tl.int64) * K + k[None, :]
    inputs = X + m[:, None] * K + k[None, :]
    inside = (n < N)[:, None]
    alive = (m < M)[:, None]
    w = tl.load(weights, mask=inside & (k < K)[None, :], other=0.0, eviction_policy="evict_first")
    if SCALES != "":
        scale = _scales(S, n, N, Y.dtype.element_ty, SCALES)
    after_previous(EARLY)
    x = tl.load(inputs, mask=alive & (k < K)[None, :], other=0.0)
    sums = tl.dot(_factors(w, x.dtype), tl.trans(x))
    for past in range(BK, K, BK):
        here = ((past + k) < K)[None, :]
        w = tl.load(weights + past, mask=inside & here, other=0.0, eviction_policy="evict_first")
        x = tl.load(inputs + past, mask=alive & here, other=0.0)
        sums += tl.dot(_factors(w, x.dtype), tl.trans(x))
    if SCALES != "":
        sums *= scale[:, None]
    tl.store(Y + m[None, :] * N + n[:, None], sums.to(Y.dtype.element_ty), mask=alive.trans(1, 0) & inside)


def run(
    x: torch.Tensor, weights: list[torch.Tensor], scales: list[torch.Tensor], rounded: bool = False,
    norm: torch.Tensor | None = None, eps: float = 0.0, residual: torch.Tensor | None = None, activation: str = "",
    early: bool = False,
) -> list[torch.Tensor]:  # fmt: skip
    """See `linear.linears`; for several rows without norm, residual and activation."""
    rows, inputs = x.shape
    far = scales_far = 0
    if activation:
        weights, scales = (list(parts[0].chunk(2)) if len(parts) == 1 else parts for parts in (weights, scales))
        far = apart(weights)
        scales_far = apart(scales) if scales else 0
    columns = [w.shape[0] for w in weights[: 1 if activation else 4]]
    results = [x.new_empty((rows, each)) for each in columns]
    w, s, y = (four(parts) for parts in (weights, scales or weights, results))
    n = [*columns, *[0] * (4 - len(columns))]

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (sum(triton.cdiv(each, meta["BN"]) for each in columns),)

    kind = ("rounded" if rounded else "exact") if scales else ""
    launch = launch_options(early)
    if rows == 1:
        g, r = (x if one is None else one for one in (norm, residual))
        _vector[grid](
            x, g, r, *w, *s, *y, *n, inputs, far, scales_far, eps, NORM=norm is not None,
            RESIDUAL=residual is not None, GATE=activation, SCALES=kind, EARLY=early, **launch,
        )  # fmt: skip
    else:
        filled = max(16, triton.next_power_of_2(rows))
        _rows[grid](x, *w, *s, *y, *n, inputs, rows, BM=filled, SCALES=kind, EARLY=early, **launch)
    return results


def apart(parts: list[torch.Tensor]) -> int:
    """Elements from the start of the first to that of the second."""
    return (parts[1].data_ptr() - parts[0].data_ptr()) // parts[0].element_size()


def four(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """As many as kernels take; the first stands for those that are not there."""
    return [*parts, *[parts[0]] * (4 - len(parts))]
