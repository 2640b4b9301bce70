"""What transformers calls instead of its own attention while the compiled step is traced."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from ..errors import Unsupported

try:
    from .attention_kernel import attend as kernel
except ImportError:  # this torch has no Triton
    kernel = None  # type: ignore[assignment]

NAME = "bench_decode"
"""Under which `attend` is registered with transformers. Without a mask function of this name none is made."""

UNUSED = {"dropout", "is_causal", "position_ids", "cache_position", "position_embeddings", "use_cache"}
"""Arguments that change nothing for one new token; `dropout` is 0 in inference."""


class Parts(NamedTuple):
    """What the cache hands through the model's attention layer in the place of keys and values."""

    new_keys: torch.Tensor
    """Keys of the new position, shape [rows, key-value heads, 1, head size]; rows is batch x beams."""
    new_values: torch.Tensor
    """The same of values, whose size may be another one."""
    prompt_keys: torch.Tensor
    """Shape [batch, key-value heads, prompt capacity, head size], shared by the beams of a prompt."""
    prompt_values: torch.Tensor
    own_keys: torch.Tensor
    """Generated positions, shape [rows, key-value heads, capacity, head size], each where it was computed."""
    own_values: torch.Tensor
    ancestry: torch.Tensor
    """Row that holds each generated position of a row, int32 of shape [rows, capacity]."""
    prompt_length: torch.Tensor
    """Filled positions of the prompt's cache, int32 of one element."""
    step: torch.Tensor
    """Filled generated positions, int32 of one element."""
    first: torch.Tensor
    """Position of each prompt that is the first to be attended to, behind its padding: int32 of shape [batch]."""
    units: int
    """How many programs fill the device."""
    early: bool
    """Whether the device launches a kernel before the one in front of it has ended."""
    bias: torch.Tensor | None = None
    """Added to the score of a position by its distance from `first`: shape [heads, positions]."""
    latent: bool = False
    """Keys are latents of one head, which are the values, too; the part of keys with positions is in place of values.

    A query has both parts behind one another (multi-head latent attention with absorbed weights, DeepSeek-V2 2024).
    """
    paired: bool = False
    """A head's values are those of two heads, half of all apart, behind one another (DiffLlama)."""
    window: int = 0
    """Only so many of the latest positions are attended to; 0 for all."""

    def places(self) -> Places:
        """Of this layer's cache."""
        lengths = self.prompt_keys.shape[2], self.own_keys.shape[2]
        return Places(self.prompt_length, self.step, self.first, lengths, len(self.own_keys))


class Places(NamedTuple):
    """What the places of a cache hold: of the prompt's first, and then of those generated, all of one row."""

    prompt_length: torch.Tensor
    step: torch.Tensor
    first: torch.Tensor
    capacities: tuple[int, int]
    """Of the prompt's cache, and of a row's own."""
    rows: int

    def positions(self) -> torch.Tensor:
        """The position that each place is for, [capacities]: generated ones come after the prompt's filled ones."""
        prompt, own = (torch.arange(length, device=self.step.device) for length in self.capacities)
        return torch.cat([prompt, self.prompt_length + own])

    def filled(self) -> torch.Tensor:
        """Whether each place holds a position, padding or not, [capacities]."""
        length, _ = self.capacities
        positions = self.positions()
        filled = positions <= self.prompt_length + self.step
        return filled & ((positions < self.prompt_length) | (torch.arange(len(filled), device=filled.device) >= length))

    def seen(self) -> torch.Tensor:
        """Whether each row may attend to each place, [rows, capacities]."""
        behind = self.positions() >= self.first[:, None]
        return (self.filled() & behind).repeat_interleave(self.rows // len(self.first), dim=0)


class Unattended(NamedTuple):
    """What attention gives where its mask leaves nothing to attend to, having the lowest number everywhere."""

    scores_count: bool
    """Whether scores are not lost when that is added: then it is as if there were no mask. Otherwise, the mean."""
    is_zero: bool
    """Whether it is 0 instead: that number is taken for no position at all."""


class Blocks(NamedTuple):
    """What `blocks.choose_for_heads` has chosen."""

    places: torch.Tensor
    """Whether heads of a group may attend to each place, [rows, groups, capacities]."""
    otherwise: Unattended
    """Where they may attend to none."""


def attend(
    module: Any, query: torch.Tensor, key: Parts, value: Parts, attention_mask: torch.Tensor | None,
    scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
    s_aux: torch.Tensor | None = None, indices: torch.Tensor | None = None, block_indices: Blocks | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of the new tokens (query of shape [rows, heads, 1, head size]), which it also puts into the cache.

    `s_aux` is transformers' name for sinks: scores of shape [heads] that no value belongs to. `indices` are the places
    that an indexer has chosen among `Places.seen`, shape [rows, 1, chosen]. Those of `blocks` say it of each place:
    in `attention_mask`, of shape [rows, 1, 1, capacities], or for groups of heads in `block_indices`.
    """
    surprises = sorted(name for name, given in other.items() if given is not None and name not in UNUSED)
    if any(isinstance(other[name], torch.Tensor) for name in surprises):
        raise Unsupported(f"{type(module).__name__} gives its attention {', '.join(surprises)}, which compiled ignores")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    chosen = None if attention_mask is None or attention_mask.dim() != 4 else attention_mask[:, 0]
    nothing = None
    if indices is not None:
        seen = key.places().seen()
        chosen = (torch.zeros_like(seen).scatter(1, indices[:, 0].long(), True) & seen)[:, None]
    elif block_indices is not None:
        key, query, chosen, nothing = _of_blocks(key, query, *block_indices)
    if sliding_window:
        key = key._replace(window=min(sliding_window, key.window or sliding_window))
    query = query.to(key.new_keys.dtype)  # CodeGen's stays in fp32
    run = kernel if kernel is not None and query.device.type != "cpu" else reference
    more = s_aux, chosen, scale, softcap or 0.0
    if not key.latent:
        result = run(query, *key, *more)
        return (result if nothing is None else result.masked_fill(nothing, 0)).unsqueeze(1), None
    keys, values = _expansion(module, query)
    plain, positioned = query[..., : keys.shape[1]], query[..., keys.shape[1] :]
    absorbed = (plain.squeeze(2).transpose(0, 1) @ keys).transpose(0, 1).unsqueeze(2)
    latents = run(torch.cat([absorbed, positioned], dim=-1), *key, *more)
    return (latents.transpose(0, 1) @ values.transpose(1, 2)).transpose(0, 1).unsqueeze(1), None


def _of_blocks(
    parts: Parts, query: torch.Tensor, places: torch.Tensor, otherwise: Unattended
) -> tuple[Parts, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """For attention to `places`, or else to all that are filled, padding, too: Parts and queries.

    Also whether each head attends to each place, [rows, heads, capacities], and whether its result is 0, [rows, heads,
    1], if that may be.
    """
    chosen = places.repeat_interleave(query.shape[1] // places.shape[1], dim=1)
    nothing = ~chosen.any(-1, keepdim=True)
    chosen = torch.where(nothing, parts.places().filled(), chosen)
    if not otherwise.scores_count:
        query = query.masked_fill(nothing[..., None], 0)
    parts = parts._replace(first=torch.zeros_like(parts.first))
    return parts, query, chosen, nothing if otherwise.is_zero else None


def _expansion(layer: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights that make of latents keys, [heads, size without positions, rank], and values, [heads, size, rank].

    Packed ones are had by expanding an identity.
    """
    expand = layer.kv_b_proj
    if type(expand) is torch.nn.Linear and type(expand.weight) in (torch.Tensor, torch.nn.Parameter):
        weight = expand.weight
    else:
        weight = expand(torch.eye(layer.kv_lora_rank, dtype=like.dtype, device=like.device)).T
    if getattr(expand, "bias", None) is not None:
        raise Unsupported(f"engine=compiled does not know latents with a bias, as in {type(layer).__name__}")
    both = torch.unflatten(weight, 0, (-1, layer.qk_nope_head_dim + layer.v_head_dim))
    return both[:, : layer.qk_nope_head_dim], both[:, layer.qk_nope_head_dim :]


def contiguous(
    prompt: torch.Tensor, own: torch.Tensor, ancestry: torch.Tensor, prompt_length: torch.Tensor
) -> torch.Tensor:
    """What each row has at all positions, shape [rows, heads, capacities, size]: its own come right behind its prompt.

    `prompt` is of shape [batch, heads, prompt capacity, size] and `own` of shape [rows, heads, capacity, size].
    """
    rows, _, capacity, _ = own.shape
    place = torch.arange(prompt.shape[2] + capacity, device=prompt.device)
    generated = (place - prompt_length).clamp(min=0, max=capacity - 1)
    mine = own[ancestry[:, generated].long(), :, generated].transpose(1, 2)
    given = prompt[:, :, place.clamp(max=prompt.shape[2] - 1)].repeat_interleave(rows // len(prompt), dim=0)
    return torch.where((place < prompt_length)[:, None], given, mine)


def inherited(own: torch.Tensor, ancestry: torch.Tensor) -> torch.Tensor:
    """The generated positions of each row, [rows, heads, capacity, size], of what each row has computed."""
    return own[ancestry.long(), :, torch.arange(own.shape[2], device=own.device)].transpose(1, 2)


def reference(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """The same as the kernel in plain torch, for devices without Triton: shape [rows, heads, head size].

    `arguments` are `Parts` and the kernel's others. The prompt's cache is read where it is, for all its beams.
    """
    *fields, sinks, chosen, scale, softcap = arguments
    parts = Parts(*fields)
    query, index = query.squeeze(2).float(), parts.step.long()
    parts.own_keys.index_copy_(2, index, parts.new_keys)
    parts.own_values.index_copy_(2, index, parts.new_values)
    keys = parts.prompt_keys, inherited(parts.own_keys, parts.ancestry)
    values = parts.prompt_values, inherited(parts.own_values, parts.ancestry)
    if parts.latent:
        rank = keys[0].shape[-1]
        found = (scores(query[..., :rank], *keys) + scores(query[..., rank:], *values)) * scale
        values = keys
    else:
        found = scores(query, *keys) * scale
    if parts.paired:
        prompt, own = (torch.cat(each.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1) for each in values)
        values = prompt, own
    if softcap:
        found = softcap * torch.tanh(found / softcap)
    places = parts.places()
    positions = places.positions()
    seen = places.seen()[:, None] if chosen is None else chosen  # [rows, 1 or heads, capacities]
    if parts.window:
        seen = seen & (positions > parts.prompt_length + parts.step - parts.window)
    if parts.bias is not None:
        first = parts.first.repeat_interleave(len(query) // len(parts.first))[:, None]
        distance = (positions - first).clamp(min=0, max=parts.bias.shape[1] - 1)
        found = found + parts.bias[:, distance].transpose(0, 1)
    found = found.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        found = torch.cat([found, sinks.float()[None, :, None].expand(len(query), -1, 1)], dim=-1)
    return _mixed(found.softmax(-1)[..., : len(positions)].to(values[0].dtype), *values)


def scores(query: torch.Tensor, prompt: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Products of queries of shape [rows, heads, size] with what is behind one another for each row.

    `prompt` is of shape [batch, key-value heads, capacity, size], and read once for all rows that share it; `own` is of
    shape [rows, key-value heads, capacity, size]. Returns [rows, heads, capacities].
    """
    given = _of_rows(_of_prompts(query, prompt) @ prompt.float().transpose(-1, -2), len(own))
    mine = torch.unflatten(query, 1, (own.shape[1], -1)) @ own.float().transpose(-1, -2)
    return torch.cat([given, mine.flatten(1, 2)], dim=-1)


def _mixed(weights: torch.Tensor, prompt: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Sums of values by weights of shape [rows, heads, capacities]: [rows, heads, size]."""
    length = prompt.shape[2]
    given = _of_rows(_of_prompts(weights[..., :length], prompt) @ prompt, len(own))
    return given + (torch.unflatten(weights[..., length:], 1, (own.shape[1], -1)) @ own).flatten(1, 2)


def _of_prompts(each: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """[rows, heads, n] as [batch, key-value heads, all that read the same, n]."""
    batch, heads = prompt.shape[:2]
    rows, several, size = each.shape
    return each.view(batch, rows // batch, heads, several // heads, size).transpose(1, 2).flatten(2, 3)


def _of_rows(each: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of `_of_prompts`."""
    return torch.unflatten(each, 2, (rows // len(each), -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2)


AttentionInterface.register(NAME, attend)
