"""Attention of one new token per row over a shared prompt and the row's own continuation, in Triton.

Reading the cache is all the time this takes, so the work is cut along the cache (flash-decoding, Dao et al. 2023): each
program reads one piece of one head for every row that shares it, and a second kernel joins the pieces. What is read is
as long as what has been generated, not as long as what was allocated.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .early_cuda import after_previous, launch_options
from .tuning import autotuned

LEAST = 64
"""Positions that are worth a piece of their own."""
MOST = 32
"""Queries that a program holds: with more, several read the same piece."""


@triton.jit
def _softcap(scores, softcap: tl.constexpr):
    if softcap > 0:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    return scores


@triton.jit
def _take(
    q, k, v, ok, top, total, sums, BIAS, biases, distance, scale: tl.constexpr, softcap: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a block of positions to the running softmax: highest score, sum of weights, weighted sum of values."""
    scores = _softcap(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, softcap)
    if BIAS is not None:
        scores += tl.load(BIAS + biases[:, None] + distance[None, :], mask=ok[None, :], other=0.0).to(tl.float32)
    scores = tl.where(ok[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp(scores - shift[:, None])
    fade = tl.exp(top - shift)
    total = total * fade + tl.sum(weights, 1)
    sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return higher, total, sums


def _pieces_configs() -> list[triton.Config]:
    """The first was the faster one for all models measured on an H200; the other needs less shared memory."""
    shapes = [(64, 2, 3), (32, 2, 2)]
    return [triton.Config({"BLOCK": n}, num_warps=warps, num_stages=stages) for n, warps, stages in shapes]


@autotuned(_pieces_configs(), key=["heads", "K", "GROUP", "D", "PROMPT_PIECES", "OWN_PIECES"])
@triton.jit
def _pieces(
    Q, PK, PV, GK, GV, NK, NV, ANCESTRY, PROMPT_LENGTH, STEP, PAD, BIAS, OUT, TOP, TOTAL,
    q_row, q_head, pk_batch, pk_head, pk_pos, gk_row, gk_head, gk_pos, nk_row, nk_head, nv_row, nv_head, ancestry_row,
    bias_head, heads, scale: tl.constexpr, softcap: tl.constexpr, window: tl.constexpr,
    K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, PROMPT_PIECES: tl.constexpr, OWN_PIECES: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One piece for up to ROWS queries. Grid: (batch * key-value heads, K * OWN_PIECES * _ + PROMPT_PIECES * _).

    A prompt's piece serves K * GROUP queries at once. A piece of a row's own positions serves its GROUP queries, and
    reads each position from the row that `ancestry` names; the last one also takes the new position and stores it.
    With more than ROWS queries, that is for several programs (the _ above).
    Own pieces are short but read one thing after the other, so they come first: last, the device would wait for them.
    """
    pair = tl.program_id(0)
    own_programs = (GROUP + ROWS - 1) // ROWS
    prompt_programs = (K * GROUP + ROWS - 1) // ROWS
    program = tl.program_id(1) - K * OWN_PIECES * own_programs
    kv_heads = heads // GROUP
    batch = pair // kv_heads
    head = pair % kv_heads
    pieces = PROMPT_PIECES + OWN_PIECES
    d = tl.arange(0, D2)
    in_head = d < D
    lanes = tl.arange(0, ROWS)
    prompt_length = tl.load(PROMPT_LENGTH)
    pad = tl.load(PAD + batch)
    first = pad
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D2], tl.float32)
    if program >= 0:
        piece = program // prompt_programs
        lanes += program % prompt_programs * ROWS
        row = batch * K + lanes // GROUP
        query_head = head * GROUP + lanes % GROUP
        alive = lanes < K * GROUP
        biases = tl.where(alive, query_head * bias_head, 0)
        slot = piece
        span = tl.cdiv(tl.cdiv(prompt_length, PROMPT_PIECES), BLOCK) * BLOCK
        start = piece * span
        stop = tl.minimum(start + span, prompt_length)
        keys = PK + batch.to(tl.int64) * pk_batch + head * pk_head
        values = PV + batch.to(tl.int64) * pk_batch + head * pk_head
        position = start + tl.arange(0, BLOCK)
        inside = (position < stop)[:, None] & in_head[None, :]
        k = tl.load(keys + position[:, None] * pk_pos + d[None, :], mask=inside, other=0.0)
        v = tl.load(values + position[:, None] * pk_pos + d[None, :], mask=inside, other=0.0)
        after_previous(EARLY)  # prompts are written long before: the first of each piece is there when the query comes
        if window > 0:
            first = tl.maximum(first, prompt_length + tl.load(STEP) - window + 1)
        q = tl.load(Q + row[:, None] * q_row + query_head[:, None] * q_head + d[None, :],
                    mask=alive[:, None] & in_head[None, :], other=0.0)  # fmt: skip
        ok = (position < stop) & (position >= first)
        top, total, sums = _take(
            q, k, v, ok, top, total, sums, BIAS, biases, position - pad, scale, softcap, PRECISION
        )  # fmt: skip
        for begin in range(tl.maximum(start + BLOCK, first // BLOCK * BLOCK), stop, BLOCK):
            position = begin + tl.arange(0, BLOCK)
            valid = position < stop
            inside = valid[:, None] & in_head[None, :]
            k = tl.load(keys + position[:, None] * pk_pos + d[None, :], mask=inside, other=0.0)
            v = tl.load(values + position[:, None] * pk_pos + d[None, :], mask=inside, other=0.0)
            ok = valid & (position >= first)
            top, total, sums = _take(
                q, k, v, ok, top, total, sums, BIAS, biases, position - pad, scale, softcap, PRECISION
            )  # fmt: skip
    else:
        own = tl.program_id(1) // own_programs % OWN_PIECES
        beam = tl.program_id(1) // own_programs // OWN_PIECES
        lanes += tl.program_id(1) % own_programs * ROWS
        row = batch * K + beam + lanes * 0
        query_head = head * GROUP + lanes
        alive = lanes < GROUP
        biases = tl.where(alive, query_head * bias_head, 0)
        slot = PROMPT_PIECES + own
        me = batch * K + beam
        step = tl.load(STEP)
        span = tl.cdiv(tl.cdiv(step, OWN_PIECES), BLOCK) * BLOCK
        start = own * span
        stop = tl.minimum(start + span, step)
        lineage = ANCESTRY + me * ancestry_row
        corner = head * gk_head + d[None, :]
        position = start + tl.arange(0, BLOCK)
        source = tl.load(lineage + position, mask=position < stop, other=0).to(tl.int64)
        offset = (source * gk_row + position * gk_pos)[:, None] + corner
        inside = (position < stop)[:, None] & in_head[None, :]
        k = tl.load(GK + offset, mask=inside, other=0.0)
        v = tl.load(GV + offset, mask=inside, other=0.0)
        after_previous(EARLY)  # what steps before this one have written
        if window > 0:
            first = tl.maximum(first, prompt_length + step - window + 1)
        q = tl.load(Q + row[:, None] * q_row + query_head[:, None] * q_head + d[None, :],
                    mask=alive[:, None] & in_head[None, :], other=0.0)  # fmt: skip
        ok = (position < stop) & (position + prompt_length >= first)
        top, total, sums = _take(
            q, k, v, ok, top, total, sums, BIAS, biases, position + prompt_length - pad, scale, softcap, PRECISION
        )  # fmt: skip
        for begin in range(start + BLOCK, stop, BLOCK):
            position = begin + tl.arange(0, BLOCK)
            valid = position < stop
            source = tl.load(lineage + position, mask=valid, other=0).to(tl.int64)
            offset = (source * gk_row + position * gk_pos)[:, None] + corner
            inside = valid[:, None] & in_head[None, :]
            k = tl.load(GK + offset, mask=inside, other=0.0)
            v = tl.load(GV + offset, mask=inside, other=0.0)
            ok = valid & (position + prompt_length >= first)
            top, total, sums = _take(
                q, k, v, ok, top, total, sums, BIAS, biases, position + prompt_length - pad, scale, softcap, PRECISION
            )  # fmt: skip
        if own == OWN_PIECES - 1:
            new_k = tl.load(NK + me * nk_row + head * nk_head + d, mask=in_head, other=0.0)
            new_v = tl.load(NV + me * nv_row + head * nv_head + d, mask=in_head, other=0.0)
            place = me.to(tl.int64) * gk_row + head * gk_head + step * gk_pos
            tl.store(GK + place + d, new_k, mask=in_head)
            tl.store(GV + place + d, new_v, mask=in_head)
            score = _softcap(tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[None, :], 1) * scale, softcap)
            if BIAS is not None:
                score += tl.load(BIAS + biases + prompt_length + step - pad).to(tl.float32)
            higher = tl.maximum(top, score)
            weight = tl.exp(score - higher)
            fade = tl.exp(top - higher)
            total = total * fade + weight
            sums = sums * fade[:, None] + weight[:, None] * new_v.to(tl.float32)[None, :]
            top = higher
    place = (row * heads + query_head) * pieces + slot
    tl.store(TOP + place, top, mask=alive)
    tl.store(TOTAL + place, total, mask=alive)
    tl.store(OUT + place[:, None] * D + d[None, :], sums, mask=alive[:, None] & in_head[None, :])


@triton.jit
def _join(
    OUT, TOP, TOTAL, SINKS, RESULT, heads, D: tl.constexpr, D2: tl.constexpr,
    PIECES: tl.constexpr, PIECES2: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Softmax-weighted mean of the pieces. Grid: (rows * heads,). A sink has a score, and a value of 0."""
    pair = tl.program_id(0)
    piece = tl.arange(0, PIECES2)
    d = tl.arange(0, D2)
    here = piece < PIECES
    after_previous(EARLY)
    top = tl.load(TOP + pair * PIECES + piece, mask=here, other=float("-inf"))
    total = tl.load(TOTAL + pair * PIECES + piece, mask=here, other=0.0)
    sums = tl.load(OUT + (pair * PIECES + piece[:, None]) * D + d[None, :],
                   mask=here[:, None] & (d < D)[None, :], other=0.0)  # fmt: skip
    highest = tl.max(top, 0)
    weight = tl.exp(top - highest)
    whole = tl.sum(weight * total, 0)
    if SINKS is not None:
        whole += tl.exp(tl.load(SINKS + pair % heads).to(tl.float32) - highest)
    result = tl.sum(weight[:, None] * sums, 0) / whole
    tl.store(RESULT + pair * D + d, result.to(RESULT.dtype.element_ty), mask=d < D)


def _cut(units: int, heads: int, capacity: int) -> int:
    """Into how many pieces the prompt's positions of a head are cut.

    Measured on an H200: as many as `units` programs can take; twice that, when each still has twice the least to read.
    """
    few, many = min(units // heads, -(-capacity // LEAST)), min(2 * units // heads, capacity // LEAST // 2)
    return max(1, few, many)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@torch.library.custom_op("bench::attend", mutates_args={"own_keys", "own_values"})
def attend(
    query: torch.Tensor, new_keys: torch.Tensor, new_values: torch.Tensor,
    prompt_keys: torch.Tensor, prompt_values: torch.Tensor, own_keys: torch.Tensor, own_values: torch.Tensor,
    ancestry: torch.Tensor, prompt_length: torch.Tensor, step: torch.Tensor, pad: torch.Tensor,
    units: int, early: bool, bias: torch.Tensor | None, sinks: torch.Tensor | None,
    scale: float, softcap: float, window: int,
) -> torch.Tensor:  # fmt: skip
    """See `attention.reference`, which computes the same. `units` is how many programs fill the device."""
    rows, heads, _, size = query.shape
    batch, kv_heads = prompt_keys.shape[:2]
    beams, group = rows // batch, heads // kv_heads
    held = max(16, min(MOST, _power_of_two(beams * group)))
    own_programs, prompt_programs = triton.cdiv(group, held), triton.cdiv(beams * group, held)
    prompt_pieces = _cut(units, batch * kv_heads * prompt_programs, prompt_keys.shape[2])
    own_pieces = max(1, min(units // 4 // (rows * kv_heads * own_programs), -(-own_keys.shape[2] // LEAST)))
    pieces = prompt_pieces + own_pieces
    partial = torch.empty((rows * heads, pieces, size), dtype=torch.float32, device=query.device)
    top = torch.empty((rows * heads, pieces), dtype=torch.float32, device=query.device)
    total = torch.empty_like(top)
    launch = launch_options(early)
    result = torch.empty((rows, heads, size), dtype=query.dtype, device=query.device)
    _pieces[(batch * kv_heads, beams * own_pieces * own_programs + prompt_pieces * prompt_programs)](
        query, prompt_keys, prompt_values, own_keys, own_values, new_keys, new_values,
        ancestry, prompt_length, step, pad, bias, partial, top, total,
        query.stride(0), query.stride(1), prompt_keys.stride(0), prompt_keys.stride(1), prompt_keys.stride(2),
        own_keys.stride(0), own_keys.stride(1), own_keys.stride(2),
        new_keys.stride(0), new_keys.stride(1), new_values.stride(0), new_values.stride(1), ancestry.stride(0),
        0 if bias is None else bias.stride(0), heads, scale=scale, softcap=softcap, window=window,
        K=beams, GROUP=group, D=size, D2=_power_of_two(size), ROWS=held,
        PROMPT_PIECES=prompt_pieces, OWN_PIECES=own_pieces,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", EARLY=early, **launch,
    )  # fmt: skip
    joined = _power_of_two(pieces), _power_of_two(size)
    _join[(rows * heads,)](
        partial, top, total, sinks, result, heads, D=size, D2=joined[1], PIECES=pieces, PIECES2=joined[0],
        EARLY=early, num_warps=max(1, min(8, joined[0] * joined[1] // 4096)), **launch,
    )  # fmt: skip
    return result


@attend.register_fake
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return query.new_empty((query.shape[0], query.shape[1], query.shape[3]))
