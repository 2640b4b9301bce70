"""An indexer's choice of blocks of positions, on keys that are read where they are, and on the device.

Qwen4-Exp's (`choose`) looks at values on the host in transformers. A block's key is the mean of so many of the
indexer's keys behind one another, counted from behind the padding. Blocks that are wholly in a prompt are the same for
all its beams. Behind them, a row has its own, and the first of these may begin in the prompt. Positions that do not
make a block yet are always chosen.

MiniMax M3's (`choose_for_heads`) scores each position, for each of some groups of heads, and takes of a block the
highest. Blocks are counted from the first position, padding or not, and positions of padding have scores, too: those
blocks are of equal score, and which of them are chosen depends, in `generate` on CPU, on how its products are rounded.
Here they are equal.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch

from .attention import Blocks, Unattended, inherited, scores
from .equals import best_of_each

if TYPE_CHECKING:
    from .cache import Place, Shared


def starts(place: Place, prompt_capacity: int, size: int) -> torch.Tensor:
    """Where blocks of `size` begin, behind the padding: [3, rows, blocks], 3 as transformers has it for pictures."""
    blocks = (prompt_capacity + place.capacity) // size + 1
    return (torch.arange(blocks, device=place.step.device) * size).expand(3, place.rows, -1)


def choose(
    self: Any, hidden_states: torch.Tensor, position_embeddings: Any, attention_mask: torch.Tensor, past_key_values: Any
) -> torch.Tensor:
    """Whether each row attends to each place, [rows, 1, 1, capacities]: the indexer's `forward` for new tokens.

    `position_embeddings` are those of `starts`, and behind them those of the new positions.
    """
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
    new = self.index_qk_proj(hidden_states).unflatten(-1, (-1, self.index_head_dim))
    query, key = new.split([self.index_n_heads, self.index_kv_heads], dim=2)
    cos, sin = position_embeddings
    query = rotate(self.q_layernorm(query), cos=cos[:, -1:], sin=sin[:, -1:], unsqueeze_dim=2)
    keys: Shared = past_key_values.update_indexer(key.squeeze(2), self.layer_idx).keys
    place, size = keys.place, self.compress_ratio
    filled = place.prompt_length - place.pad
    whole, complete = filled // size, (filled + place.step + 1) // size

    def finished(means: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        normed = self.k_layernorm(means.to(key.dtype)).unsqueeze(1)
        return rotate(normed, cos=cos[0, numbers], sin=sin[0, numbers])  # type: ignore[no-any-return]

    prompt = _of_prompts(keys, size)
    own, numbers = _of_rows(keys, whole, size)
    first = torch.arange(prompt.shape[1], device=numbers.device)[None]
    keys_of_blocks = finished(prompt, first), finished(own, numbers.clamp(max=cos.shape[1] - 2))
    found = scores(query.squeeze(1).float(), *keys_of_blocks).relu().sum(1) / math.sqrt(self.index_head_dim)
    there = torch.cat([_each(first < whole[:, None], place), numbers < _each(complete, place)[:, None]], dim=1)
    if found.device.type == "cpu":
        chosen: torch.Tensor = best_of_each(found, there, self.block_topk)
    else:
        best = found.masked_fill(~there, -torch.inf).topk(min(self.block_topk, found.shape[1])).indices
        chosen = torch.zeros_like(there).scatter(1, best, True) & there

    number = (place.places(keys.prompt.shape[2]).positions() - place.pad[:, None]) // size
    behind = len(first[0]) + number - whole[:, None]
    column = torch.where(number < whole[:, None], number, behind).clamp(min=0, max=found.shape[1] - 1)
    unfinished = number >= complete[:, None]
    return (chosen.gather(1, _each(column.long(), place)) | _each(unfinished, place))[:, None, None]


def choose_for_heads(
    self: Any, hidden_states: torch.Tensor, position_embeddings: Any, past_key_values: Any, position_ids: torch.Tensor
) -> Blocks:
    """What heads of each group may attend to: that indexer's `forward`."""
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
    cos, sin = (part[..., : self.head_dim] for part in position_embeddings)
    query = self.q_norm(self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
    key = self.k_norm(self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
    query, key = rotate(query, key, cos, sin)
    layer = past_key_values.layers[self.layer_idx]
    keys: Shared = layer.update_index(key).keys
    place, capacity, size = keys.place, keys.prompt.shape[2], self.block_size
    places = place.places(capacity)
    found = scores(query.squeeze(2).float(), keys.prompt, inherited(keys.own, place.ancestry))

    positions = torch.arange(-(-found.shape[-1] // size) * size, device=found.device)
    behind = (capacity + positions - place.prompt_length).clamp(max=found.shape[-1] - 1)
    at = torch.where(positions < place.prompt_length, positions, behind).long()
    found = _level(found, keys)[..., at].masked_fill((positions > position_ids)[:, None], -torch.inf)
    best = torch.unflatten(found, -1, (-1, size)).amax(-1)
    latest = (position_ids // size - torch.arange(self.local_blocks, device=found.device)).clamp(min=0)
    best = best.scatter(-1, latest[:, None].expand(-1, best.shape[1], -1), torch.inf)
    if found.device.type == "cpu":
        there = (positions[::size] <= place.prompt_length + place.step).expand(best.shape[0] * best.shape[1], -1)
        chosen: torch.Tensor = best_of_each(best.flatten(0, 1), there, self.topk_blocks).view_as(best)
    else:
        blocks = best.topk(min(self.topk_blocks, best.shape[-1])).indices
        chosen = torch.zeros_like(best, dtype=torch.bool).scatter(-1, blocks, True)
    chosen = chosen & (best > -torch.inf)
    column = (places.positions() // size).clamp(max=best.shape[-1] - 1).long()
    return Blocks(chosen[..., column] & places.seen()[:, None], layer.unattended)


def unattended(model: Any) -> Unattended:
    """What the attention of MiniMax M3 gives for nothing but padding, tried: kernels differ, and dtypes."""
    layer = next(layer for layer in model.modules() if hasattr(layer, "indexer"))
    attention = sys.modules[type(layer).__module__]
    run = attention.ALL_ATTENTION_FUNCTIONS.get_interface(
        layer.config._attn_implementation, attention.eager_attention_forward
    )
    heads, size = layer.config.num_attention_heads, layer.head_dim
    like = {"dtype": model.dtype, "device": model.device}
    query, values = torch.ones(1, heads, 1, size, **like), torch.ones(1, heads, 64, size, **like)
    values[:, :, ::2] = 3
    keys = (values - 1) * 5 / (size * layer.scaling)  # scores of 10, where values are 3, and of 0
    mask = torch.full((1, heads, 1, 64), torch.finfo(model.dtype).min, **like)
    groups = layer.num_key_value_groups
    found = float(run(layer, query, keys[:, ::groups], values[:, ::groups], mask, scaling=layer.scaling)[0].mean())
    return Unattended(scores_count=found > 2.5, is_zero=found < 1)


def _level(found: torch.Tensor, keys: Shared) -> torch.Tensor:
    """Scores of shape [rows, groups, capacities], the same for all padding whose keys are: rounding may differ."""
    place, prompt = keys.place, keys.prompt[:, 0]
    capacity = prompt.shape[1]
    last = (place.pad - 1).clamp(min=0).long()
    key = prompt[torch.arange(len(last), device=last.device), last]
    padding = torch.arange(capacity, device=last.device) < place.pad[:, None]
    same = _each(padding & (prompt == key[:, None]).all(-1), place)[:, None]
    score = found.gather(-1, _each(last, place)[:, None, None].expand(-1, found.shape[1], -1))
    return torch.cat([torch.where(same, score, found[..., :capacity]), found[..., capacity:]], dim=-1)


def _of_prompts(keys: Shared, size: int) -> torch.Tensor:
    """Means of each prompt's blocks, [batch, blocks, size of a key]; the last may not be whole."""
    place = keys.place
    batch, _, capacity, _ = keys.prompt.shape
    at = place.pad[:, None] + torch.arange(capacity // size * size, device=place.pad.device)
    prompt = torch.arange(batch, device=at.device)[:, None]
    return torch.unflatten(keys.prompt[prompt, 0, at.clamp(max=capacity - 1)], 1, (-1, size)).mean(2)


def _of_rows(keys: Shared, whole: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of each row's blocks behind the `whole` ones of its prompt, and their numbers, [rows, blocks]."""
    place = keys.place
    blocks = (place.capacity + 2 * size - 2) // size
    at = _each(place.pad + whole * size, place)[:, None] + torch.arange(blocks * size, device=whole.device)
    generated = (at - place.prompt_length).clamp(min=0, max=place.capacity - 1).long()
    prompt = torch.arange(place.rows, device=at.device)[:, None] // place.beams
    given = keys.prompt[prompt, 0, at.clamp(max=keys.prompt.shape[2] - 1)]
    mine = keys.own[place.ancestry.gather(1, generated).long(), 0, generated]
    each = torch.where((at < place.prompt_length)[..., None], given, mine)
    numbers = _each(whole, place)[:, None] + torch.arange(blocks, device=whole.device)
    return torch.unflatten(each, 1, (-1, size)).mean(2), numbers


def _each(of_prompts: torch.Tensor, place: Place) -> torch.Tensor:
    """The same for each beam."""
    return of_prompts.repeat_interleave(place.beams, dim=0)
