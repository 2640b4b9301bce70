"""`Kept`: what a model keeps of a sequence while it decodes, as transformers' own cache has it. Worker side."""

from __future__ import annotations

import copy
import inspect
import types
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

PARTS, INDEX = ("keys", "values"), ("indexer_keys", "idx_keys")
"""What layers of transformers' cache keep of positions for attention, and for an indexer that chooses some of them."""
INDEXED = {"indexed_attention", "minimax_m3_sparse"}


@dataclass(frozen=True)
class Kept:
    """Sizes for one sequence, all layers together."""

    values_per_token: int
    """Numbers that a position adds: keys and values, latents, an indexer's keys."""
    windows: tuple[tuple[int, int], ...]
    """Of these, the numbers of layers that read a window of the latest positions only, or as many chosen ones, and how
    many: a pair for each size."""
    chunks: tuple[tuple[int, int], ...]
    """The numbers of layers that read the positions of the same chunk only (Llama 4), and how many a chunk has."""
    state_bytes: int
    """Bytes of what linear attention and convolutions keep, whatever the length."""


def of(model: Any) -> Kept | None:
    """What one token leaves in the cache of a model of this configuration, without weights or computation.

    A copy on torch's meta device, which has shapes only, is given a token. None where its code needs more than shapes.
    """
    config = copy.deepcopy(model.config)
    vars(config)["pad_token_id"] = None  # some look for it among the tokens; set, some would refuse it
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "batched_mm"  # without a choice that depends on values
    try:
        cache = DynamicCache(config=config)
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            empty = type(model)._from_config(config, dtype=model.dtype, attn_implementation="eager").eval()
            for module in empty.modules():
                if hasattr(module, "compress_ratio"):
                    module.forward = types.MethodType(_choose_one, module)
            takes = inspect.signature(empty.forward).parameters
            name = "cache_params" if "cache_params" in takes else "past_key_values"
            empty(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True, **{name: cache})
    except Exception:  # any family's code may want values
        return None
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or [""] * len(cache.layers)
    values = states = 0
    windows: dict[int, int] = {}
    chunks: dict[int, int] = {}
    for kind, layer in zip(kinds, cache.layers, strict=False):
        numbers, index = (sum(_size(getattr(layer, part, None)) for part in parts) for parts in (PARTS, INDEX))
        values += numbers + index
        limit = _chosen(text) if kind in INDEXED else getattr(layer, "sliding_window", None)
        if limit and numbers:
            limited = chunks if kind == "chunked_attention" else windows  # the cache makes no difference between them
            limited[limit] = limited.get(limit, 0) + numbers
        for state in ("conv_states", "recurrent_states"):
            states += sum(each.numel() * each.element_size() for each in _all(getattr(layer, state, None)))
    if not values and not states:
        return None
    return Kept(values, _pairs(windows), _pairs(chunks), states)


def _choose_one(self: Any, _: Any, __: Any, attention_mask: torch.Tensor, past_key_values: Any) -> torch.Tensor:
    """In the place of an indexer of blocks, which looks at values: the only position."""
    past_key_values.update_indexer(torch.empty(1, 1, self.index_head_dim), self.layer_idx)
    return attention_mask == 0


def _chosen(config: Any) -> int | None:
    """The most positions that an indexer chooses; with blocks, those are more that do not make a block yet."""
    if (budget := getattr(config, "indexer_budget", None)) is not None:
        return int(budget) + int(config.indexer_compress_ratio) - 1
    if (blocks := getattr(config, "index_topk_blocks", None)) is not None:
        return int(blocks) * int(config.index_block_size)
    most: int | None = getattr(config, "index_topk", None)
    return most


def _pairs(limited: dict[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((numbers, limit) for limit, numbers in limited.items())


def _size(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _all(states: Any) -> list[torch.Tensor]:
    """The tensors of a layer's states, which are one, or one for each number of it."""
    found = states.values() if isinstance(states, dict) else [states]
    return [state for state in found if isinstance(state, torch.Tensor)]
