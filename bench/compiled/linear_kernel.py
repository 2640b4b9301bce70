"""Linear layers of a few rows, in Triton: reading the weights is all the time they take.

On devices that can launch a kernel before the one in front of it has ended (`early`), each program reads its first
weights, which nobody writes, before it waits for its input.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra import cuda
except ImportError:  # a Triton without that backend never compiles what is under `if EARLY`
    cuda = None


@triton.jit
def _pick(W0, W1, W2, W3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN: tl.constexpr):
    """Which layer this program works for: its weights, its output, its width, and the first of its columns."""
    block = tl.program_id(0)
    W, Y, N = W0, Y0, N0
    if block >= tl.cdiv(N0, BN):
        block -= tl.cdiv(N0, BN)
        W, Y, N = W1, Y1, N1
        if block >= tl.cdiv(N1, BN):
            block -= tl.cdiv(N1, BN)
            W, Y, N = W2, Y2, N2
            if block >= tl.cdiv(N2, BN):
                block -= tl.cdiv(N2, BN)
                W, Y, N = W3, Y3, N3
    return W, Y, N, block * BN


def _vector_configs() -> list[triton.Config]:
    shapes = [(1, 2048, 4), (2, 256, 4), (2, 512, 4), (2, 1024, 4), (2, 2048, 8), (4, 512, 4), (4, 1024, 8)]
    return [triton.Config({"BN": n, "BK": k}, num_warps=warps) for n, k, warps in shapes]


@triton.autotune(_vector_configs(), key=["N0", "N1", "N2", "N3", "K"], cache_results=True)
@triton.jit
def _vector(
    X, W0, W1, W2, W3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K, BN: tl.constexpr, BK: tl.constexpr, EARLY: tl.constexpr
):
    """One row. Grid: (blocks of BN columns of all layers,)."""
    W, Y, N, start = _pick(W0, W1, W2, W3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN)
    n = start + tl.arange(0, BN)
    k = tl.arange(0, BK)
    weights = W + n[:, None].to(tl.int64) * K + k[None, :]
    inside = (n < N)[:, None]
    w = tl.load(weights, mask=inside & (k < K)[None, :], other=0.0, eviction_policy="evict_first")
    if EARLY:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    sums = w.to(tl.float32) * tl.load(X + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    for past in range(BK, K, BK):
        here = (past + k) < K
        w = tl.load(weights + past, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
        x = tl.load(X + past + k, mask=here, other=0.0)
        sums += w.to(tl.float32) * x.to(tl.float32)[None, :]
    tl.store(Y + n, tl.sum(sums, 1).to(Y.dtype.element_ty), mask=n < N)


def _rows_configs() -> list[triton.Config]:
    shapes = [
        (16, 256, 4, 4),
        (16, 512, 4, 3),
        (32, 128, 4, 5),
        (32, 256, 4, 4),
        (64, 64, 4, 6),
        (64, 128, 4, 4),
        (128, 64, 4, 4),
    ]
    return [triton.Config({"BN": n, "BK": k}, num_warps=warps, num_stages=stages) for n, k, warps, stages in shapes]


@triton.autotune(_rows_configs(), key=["N0", "N1", "N2", "N3", "K", "BM"], cache_results=True)
@triton.jit
def _rows(
    X, W0, W1, W2, W3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, K, M,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """M rows, at most BM. Grid: (blocks of BN columns of all layers,)."""
    W, Y, N, start = _pick(W0, W1, W2, W3, Y0, Y1, Y2, Y3, N0, N1, N2, N3, BN)
    n = start + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    weights = W + n[:, None].to(tl.int64) * K + k[None, :]
    inputs = X + m[:, None] * K + k[None, :]
    inside = (n < N)[:, None]
    alive = (m < M)[:, None]
    w = tl.load(weights, mask=inside & (k < K)[None, :], other=0.0, eviction_policy="evict_first")
    if EARLY:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    sums = tl.dot(w, tl.trans(tl.load(inputs, mask=alive & (k < K)[None, :], other=0.0)))
    for past in range(BK, K, BK):
        here = ((past + k) < K)[None, :]
        w = tl.load(weights + past, mask=inside & here, other=0.0, eviction_policy="evict_first")
        x = tl.load(inputs + past, mask=alive & here, other=0.0)
        sums += tl.dot(w, tl.trans(x))
    tl.store(Y + m[None, :] * N + n[:, None], sums.to(Y.dtype.element_ty), mask=alive.trans(1, 0) & inside)


def run(x: torch.Tensor, weights: list[torch.Tensor], early: bool) -> list[torch.Tensor]:
    """See `linear.linears`."""
    rows, inputs = x.shape
    results = [torch.empty((rows, w.shape[0]), dtype=x.dtype, device=x.device) for w in weights]
    spare = 4 - len(weights)
    w = [*weights, *[weights[0]] * spare]
    y = [*results, *[results[0]] * spare]
    n = [*(weight.shape[0] for weight in weights), *[0] * spare]

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (sum(triton.cdiv(columns, meta["BN"]) for columns in n),)

    launch = {"launch_pdl": True} if early else {}
    if rows == 1:
        _vector[grid](x, *w, *y, *n, inputs, EARLY=early, **launch)
    else:
        _rows[grid](x, *w, *y, *n, inputs, rows, BM=max(16, triton.next_power_of_2(rows)), EARLY=early, **launch)
    return results
