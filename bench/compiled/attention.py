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

LARGEST = 256
"""Size of heads up to which the kernel is used: it was measured up to this, and not made for more."""

UNUSED = {"dropout", "is_causal", "position_ids", "cache_position", "position_embeddings", "use_cache"}
"""Arguments that change nothing for one new token; `dropout` is 0 in inference."""


class Parts(NamedTuple):
    """What the cache hands through the model's attention layer in the place of keys and values."""

    new_keys: torch.Tensor
    """Keys (or values) of the new position, shape [rows, key-value heads, 1, head size]; rows is batch x beams."""
    new_values: torch.Tensor
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
    pad: torch.Tensor
    """Padding on the left of each prompt, int32 of shape [batch]."""
    units: int
    """How many programs fill the device."""
    early: bool
    """Whether the device launches a kernel before the one in front of it has ended."""
    bias: torch.Tensor | None = None
    """Added to the score of a position by its distance from the prompt's first token: shape [heads, positions]."""


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: Parts, value: Parts, attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None, s_aux: torch.Tensor | None = None, **other: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of the new tokens (query of shape [rows, heads, 1, head size]), which it also puts into the cache.

    `s_aux` is transformers' name for sinks: scores of shape [heads] that no value belongs to.
    """
    surprises = sorted(name for name, given in other.items() if given is not None and name not in UNUSED)
    if any(isinstance(other[name], torch.Tensor) for name in surprises):
        raise Unsupported(f"{type(module).__name__} gives its attention {', '.join(surprises)}, which compiled ignores")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or 0
    query = query.to(key.new_keys.dtype)  # CodeGen's stays in fp32
    if kernel is not None and query.device.type != "cpu" and query.shape[-1] <= LARGEST:
        result = kernel(query, *key, s_aux, scale, softcap or 0.0, window)
    else:
        result = reference(query, key, s_aux, scale, softcap or 0.0, window)
    return result.unsqueeze(1), None


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


def reference(
    query: torch.Tensor, parts: Parts, sinks: torch.Tensor | None, scale: float, softcap: float, window: int
) -> torch.Tensor:
    """The same in plain torch, for devices without Triton and large heads: shape [rows, heads, head size]."""
    rows, heads, _, _ = query.shape
    batch, kv_heads, _, _ = parts.prompt_keys.shape
    index = parts.step.long()
    parts.own_keys.index_copy_(2, index, parts.new_keys)
    parts.own_values.index_copy_(2, index, parts.new_values)

    def whole(prompt: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return contiguous(prompt, own, parts.ancestry, parts.prompt_length).repeat_interleave(heads // kv_heads, dim=1)

    keys, values = whole(parts.prompt_keys, parts.own_keys), whole(parts.prompt_values, parts.own_values)
    place = torch.arange(keys.shape[2], device=keys.device)
    now = parts.prompt_length + parts.step
    first = parts.pad.repeat_interleave(rows // batch)[:, None]
    seen = (place >= first) & (place <= now)
    if window:
        seen &= place > now - window
    scores = (query.float() @ keys.float().transpose(-1, -2)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if parts.bias is not None:
        distance = (place - first).clamp(min=0, max=parts.bias.shape[1] - 1)
        scores = scores + parts.bias[:, distance].transpose(0, 1)[:, :, None]
    scores = scores.masked_fill(~seen[:, None, None, :], -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[None, :, None, None].expand(rows, -1, 1, 1)], dim=-1)
    weights = scores.softmax(-1)[..., : len(place)]
    return (weights.to(values.dtype) @ values).squeeze(2)


AttentionInterface.register(NAME, attend)
