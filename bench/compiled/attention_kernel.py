"""Attention of one new token per row over a shared prompt and the row's own continuation, in Triton.

Reading the cache is all the time this takes, so the work is cut along the cache (flash-decoding, Dao et al. 2023): each
program reads one piece of one head for every row that shares it, and a second kernel joins the pieces. What is read is
as long as what has been generated, not as long as what was allocated.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .early_cuda import after_previous, launch_options
from .tuning import autotuned

LEAST = 64
"""Positions that are worth a piece of their own."""
FEWEST, MOST = 16, 32
"""Queries that a program holds: with more, several read the same piece. Of large heads it holds the fewest."""


@triton.jit
def _softcap(scores, softcap: tl.constexpr):
    if softcap > 0:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    return scores


@triton.jit
def _take(
    q, q_rest, k, v, ok, top, total, sums, BIAS, biases, distance, CHOSEN, choices, place,
    scale: tl.constexpr, softcap: tl.constexpr, LATENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a block of positions to the running softmax: highest score, sum of weights, weighted sum of values."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if LATENT:
        scores += tl.dot(q_rest, tl.trans(v), input_precision=PRECISION)
        v = k
    scores = _softcap(scores * scale, softcap)
    if BIAS is not None:
        scores += tl.load(BIAS + biases[:, None] + distance[None, :], mask=ok[None, :], other=0.0).to(tl.float32)
    scores = tl.where(ok[None, :], scores, float("-inf"))
    if CHOSEN is not None:
        chosen = tl.load(CHOSEN + choices[:, None] + place[None, :], mask=ok[None, :], other=0)
        scores = tl.where(chosen != 0, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp(scores - shift[:, None])
    fade = tl.exp(top - shift)
    total = total * fade + tl.sum(weights, 1)
    sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return higher, total, sums


@triton.jit
def _lanes(e, head_stride, V: tl.constexpr, HALF: tl.constexpr):
    """Where a head's values are from its first: with HALF, the second half of them belongs to another head."""
    if HALF > 0:
        e = e // (V // 2) * HALF * head_stride + e % (V // 2)
    return e


USUAL, LARGE = (
    [triton.Config({"BLOCK": n}, num_warps=warps, num_stages=stages) for n, warps, stages in shapes]
    for shapes in ([(64, 2, 3), (32, 2, 2)], [(32, 8, 2), (64, 4, 3), (16, 8, 1)])
)
"""The first of the usual ones was the faster for all models measured on an H200; the last need less shared memory."""


HELD = 72 * 1024
"""Bytes of keys and values that a program of the large configurations can have in a block."""


def _is_large(size: int, value_size: int, latent: bool) -> bool:
    """Whether heads need more registers than a program of the usual configurations has."""
    return latent or size + value_size > 512


def _fitting(_: object, given: dict[str, Any], **fixed: Any) -> list[triton.Config]:
    """Those with blocks of no more bytes than a program can hold; Triton takes minutes to compile the others."""
    position = (fixed["D2"] + fixed["V2"]) * given["Q"].element_size()
    if not _is_large(fixed["D2"], fixed["V2"], fixed["LATENT"]):
        return USUAL
    return [config for config in LARGE if config.kwargs["BLOCK"] * position <= HELD] or LARGE[-1:]


@autotuned([*USUAL, *LARGE], key=["heads", "K", "GROUP", "D", "V", "PROMPT_PIECES", "OWN_PIECES"], fits=_fitting)
@triton.jit
def _pieces(
    Q, PK, PV, GK, GV, NK, NV, ANCESTRY, PROMPT_LENGTH, STEP, FIRST, BIAS, CHOSEN, OUT, TOP, TOTAL,
    q_row, q_head, pk_batch, pk_head, pk_pos, pv_batch, pv_head, pv_pos, gk_row, gk_head, gk_pos, gv_row, gv_head,
    gv_pos, nk_row, nk_head, nv_row, nv_head, ancestry_row, bias_head, chosen_row, chosen_head, capacity,
    heads, scale: tl.constexpr, softcap: tl.constexpr, window: tl.constexpr,
    K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, V: tl.constexpr, V2: tl.constexpr,
    SAME: tl.constexpr, HALF: tl.constexpr, LATENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PROMPT_PIECES: tl.constexpr, OWN_PIECES: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One piece for up to ROWS queries. Grid: (batch * key-value heads, K * OWN_PIECES * _ + PROMPT_PIECES * _).

    A prompt's piece serves K * GROUP queries at once. A piece of a row's own positions serves its GROUP queries, and
    reads each position from the row that `ancestry` names; the last one also takes the new position and stores it.
    With more than ROWS queries, that is for several programs (the _ above).
    Keys are of size D and values of V; SAME says that both have the same strides. With LATENT, keys are the values, and
    what is in the place of values belongs to the keys. With HALF, values of a head are those of two heads, HALF apart.
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
    e = tl.arange(0, V2)
    in_value = e < V
    value_head = head
    if HALF > 0:
        value_head = head % HALF
    if SAME:  # fewer registers
        pv_batch, pv_head, pv_pos = pk_batch, pk_head, pk_pos
        gv_row, gv_head, gv_pos = gk_row, gk_head, gk_pos
    lanes = tl.arange(0, ROWS)
    prompt_length = tl.load(PROMPT_LENGTH)
    origin = tl.load(FIRST + batch)
    first = origin
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D2 if LATENT else V2], tl.float32)
    if program >= 0:
        piece = program // prompt_programs
        lanes += program % prompt_programs * ROWS
        row = batch * K + lanes // GROUP
        query_head = head * GROUP + lanes % GROUP
        alive = lanes < K * GROUP
        biases = tl.where(alive, query_head * bias_head, 0)
        choices = tl.where(alive, row * chosen_row + query_head * chosen_head, 0)
        slot = piece
        span = tl.cdiv(tl.cdiv(prompt_length, PROMPT_PIECES), BLOCK) * BLOCK
        start = piece * span
        stop = tl.minimum(start + span, prompt_length)
        keys = PK + batch.to(tl.int64) * pk_batch + head * pk_head
        values = PV + batch.to(tl.int64) * pv_batch + value_head * pv_head
        value = _lanes(e, pv_head, V, HALF)
        position = start + tl.arange(0, BLOCK)
        valid = position < stop
        k = tl.load(keys + position[:, None] * pk_pos + d[None, :], mask=valid[:, None] & in_head[None, :], other=0.0)
        v = tl.load(
            values + position[:, None] * pv_pos + value[None, :], mask=valid[:, None] & in_value[None, :], other=0.0
        )
        after_previous(EARLY)  # prompts are written long before: the first of each piece is there when the query comes
        if window > 0:
            first = tl.maximum(first, prompt_length + tl.load(STEP) - window + 1)
        queries = Q + row[:, None] * q_row + query_head[:, None] * q_head
        q = tl.load(queries + d[None, :], mask=alive[:, None] & in_head[None, :], other=0.0)
        q_rest = q
        if LATENT:
            q_rest = tl.load(queries + D + e[None, :], mask=alive[:, None] & in_value[None, :], other=0.0)
        ok = valid & (position >= first)
        top, total, sums = _take(
            q, q_rest, k, v, ok, top, total, sums, BIAS, biases, position - origin, CHOSEN, choices, position,
            scale, softcap, LATENT, PRECISION,
        )  # fmt: skip
        for begin in range(tl.maximum(start + BLOCK, first // BLOCK * BLOCK), stop, BLOCK):
            position = begin + tl.arange(0, BLOCK)
            valid = position < stop
            k = tl.load(
                keys + position[:, None] * pk_pos + d[None, :], mask=valid[:, None] & in_head[None, :], other=0.0
            )
            v = tl.load(
                values + position[:, None] * pv_pos + value[None, :], mask=valid[:, None] & in_value[None, :], other=0.0
            )
            ok = valid & (position >= first)
            top, total, sums = _take(
                q, q_rest, k, v, ok, top, total, sums, BIAS, biases, position - origin, CHOSEN, choices, position,
                scale, softcap, LATENT, PRECISION,
            )  # fmt: skip
    else:
        own = tl.program_id(1) // own_programs % OWN_PIECES
        beam = tl.program_id(1) // own_programs // OWN_PIECES
        lanes += tl.program_id(1) % own_programs * ROWS
        row = batch * K + beam + lanes * 0
        query_head = head * GROUP + lanes
        alive = lanes < GROUP
        biases = tl.where(alive, query_head * bias_head, 0)
        choices = tl.where(alive, row * chosen_row + query_head * chosen_head, 0)
        slot = PROMPT_PIECES + own
        me = batch * K + beam
        step = tl.load(STEP)
        span = tl.cdiv(tl.cdiv(step, OWN_PIECES), BLOCK) * BLOCK
        start = own * span
        stop = tl.minimum(start + span, step)
        lineage = ANCESTRY + me * ancestry_row
        corner = head * gk_head + d[None, :]
        value_corner = value_head * gv_head + _lanes(e, gv_head, V, HALF)[None, :]
        position = start + tl.arange(0, BLOCK)
        source = tl.load(lineage + position, mask=position < stop, other=0).to(tl.int64)
        offset = (source * gk_row + position * gk_pos)[:, None] + corner
        value_offset = (source * gv_row + position * gv_pos)[:, None] + value_corner
        valid = position < stop
        k = tl.load(GK + offset, mask=valid[:, None] & in_head[None, :], other=0.0)
        v = tl.load(GV + value_offset, mask=valid[:, None] & in_value[None, :], other=0.0)
        after_previous(EARLY)  # what steps before this one have written
        if window > 0:
            first = tl.maximum(first, prompt_length + step - window + 1)
        queries = Q + row[:, None] * q_row + query_head[:, None] * q_head
        q = tl.load(queries + d[None, :], mask=alive[:, None] & in_head[None, :], other=0.0)
        q_rest = q
        if LATENT:
            q_rest = tl.load(queries + D + e[None, :], mask=alive[:, None] & in_value[None, :], other=0.0)
        ok = valid & (position + prompt_length >= first)
        top, total, sums = _take(
            q, q_rest, k, v, ok, top, total, sums, BIAS, biases, position + prompt_length - origin,
            CHOSEN, choices, position + capacity, scale, softcap, LATENT, PRECISION,
        )  # fmt: skip
        for begin in range(start + BLOCK, stop, BLOCK):
            position = begin + tl.arange(0, BLOCK)
            valid = position < stop
            source = tl.load(lineage + position, mask=valid, other=0).to(tl.int64)
            offset = (source * gk_row + position * gk_pos)[:, None] + corner
            value_offset = (source * gv_row + position * gv_pos)[:, None] + value_corner
            k = tl.load(GK + offset, mask=valid[:, None] & in_head[None, :], other=0.0)
            v = tl.load(GV + value_offset, mask=valid[:, None] & in_value[None, :], other=0.0)
            ok = valid & (position + prompt_length >= first)
            top, total, sums = _take(
                q, q_rest, k, v, ok, top, total, sums, BIAS, biases, position + prompt_length - origin,
                CHOSEN, choices, position + capacity, scale, softcap, LATENT, PRECISION,
            )  # fmt: skip
        if own == OWN_PIECES - 1:
            new_k = tl.load(NK + me * nk_row + head * nk_head + d, mask=in_head, other=0.0)
            value = _lanes(e, nv_head, V, HALF)
            new_v = tl.load(NV + me * nv_row + value_head * nv_head + value, mask=in_value, other=0.0)
            tl.store(GK + me.to(tl.int64) * gk_row + head * gk_head + step * gk_pos + d, new_k, mask=in_head)
            value = _lanes(e, gv_head, V, HALF)
            tl.store(GV + me.to(tl.int64) * gv_row + value_head * gv_head + step * gv_pos + value, new_v, mask=in_value)
            score = tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[None, :], 1)
            if LATENT:
                score += tl.sum(q_rest.to(tl.float32) * new_v.to(tl.float32)[None, :], 1)
                new_v = new_k
            score = _softcap(score * scale, softcap)
            if BIAS is not None:
                score += tl.load(BIAS + biases + prompt_length + step - origin).to(tl.float32)
            if CHOSEN is not None:
                score = tl.where(tl.load(CHOSEN + choices + capacity + step) != 0, score, float("-inf"))
            higher = tl.maximum(top, score)
            shift = higher
            if CHOSEN is not None:
                shift = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp(score - shift)
            fade = tl.exp(top - shift)
            total = total * fade + weight
            sums = sums * fade[:, None] + weight[:, None] * new_v.to(tl.float32)[None, :]
            top = higher
    place = (row * heads + query_head) * pieces + slot
    tl.store(TOP + place, top, mask=alive)
    tl.store(TOTAL + place, total, mask=alive)
    if LATENT:
        tl.store(OUT + place[:, None] * D + d[None, :], sums, mask=alive[:, None] & in_head[None, :])
    else:
        tl.store(OUT + place[:, None] * V + e[None, :], sums, mask=alive[:, None] & in_value[None, :])


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
    ancestry: torch.Tensor, prompt_length: torch.Tensor, step: torch.Tensor, first: torch.Tensor,
    units: int, early: bool, bias: torch.Tensor | None, latent: bool, paired: bool, window: int,
    sinks: torch.Tensor | None, chosen: torch.Tensor | None, scale: float, softcap: float,
) -> torch.Tensor:  # fmt: skip
    """See `attention.reference`, which computes the same. `units` is how many programs fill the device."""
    rows, heads, _, _ = query.shape
    batch, kv_heads, capacity, size = prompt_keys.shape
    value_size = prompt_values.shape[3] * (2 if paired else 1)
    result_size = size if latent else value_size
    beams, group = rows // batch, heads // kv_heads
    tiles = max(16, _power_of_two(size)), max(16, _power_of_two(value_size))
    held = FEWEST if _is_large(*tiles, latent) else max(FEWEST, min(MOST, _power_of_two(beams * group)))
    own_programs, prompt_programs = triton.cdiv(group, held), triton.cdiv(beams * group, held)
    prompt_pieces = _cut(units, batch * kv_heads * prompt_programs, capacity)
    own_pieces = max(1, min(units // 4 // (rows * kv_heads * own_programs), -(-own_keys.shape[2] // LEAST)))
    pieces = prompt_pieces + own_pieces
    partial = torch.empty((rows * heads, pieces, result_size), dtype=torch.float32, device=query.device)
    top = torch.empty((rows * heads, pieces), dtype=torch.float32, device=query.device)
    total = torch.empty_like(top)
    choices = (0, 0) if chosen is None else chosen.expand(-1, heads, -1).stride()[:2]
    launch = launch_options(early)
    result = torch.empty((rows, heads, result_size), dtype=query.dtype, device=query.device)
    _pieces[(batch * kv_heads, beams * own_pieces * own_programs + prompt_pieces * prompt_programs)](
        query, prompt_keys, prompt_values, own_keys, own_values, new_keys, new_values,
        ancestry, prompt_length, step, first, bias, chosen, partial, top, total,
        *query.stride()[:2], *prompt_keys.stride()[:3], *prompt_values.stride()[:3], *own_keys.stride()[:3],
        *own_values.stride()[:3], *new_keys.stride()[:2], *new_values.stride()[:2], ancestry.stride(0),
        0 if bias is None else bias.stride(0), *choices, capacity, heads,
        scale=scale, softcap=softcap, window=window, K=beams, GROUP=group,
        D=size, D2=tiles[0], V=value_size, V2=tiles[1],
        SAME=prompt_keys.stride() == prompt_values.stride() and own_keys.stride() == own_values.stride(),
        HALF=kv_heads // 2 if paired else 0, LATENT=latent, ROWS=held,
        PROMPT_PIECES=prompt_pieces, OWN_PIECES=own_pieces,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", EARLY=early, **launch,
    )  # fmt: skip
    joined = _power_of_two(pieces), _power_of_two(result_size)
    _join[(rows * heads,)](
        partial, top, total, sinks, result, heads, D=result_size, D2=joined[1], PIECES=pieces, PIECES2=joined[0],
        EARLY=early, num_warps=max(1, min(8, joined[0] * joined[1] // 4096)), **launch,
    )  # fmt: skip
    return result


@attend.register_fake
def _(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
    keys, values, latent, paired = arguments[2], arguments[3], arguments[13], arguments[14]
    size = keys.shape[3] if latent else values.shape[3] * (2 if paired else 1)
    return query.new_empty((*query.shape[:2], size))
