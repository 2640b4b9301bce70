"""`Kept`: what a model keeps of a sequence while it decodes, as transformers' own cache has it. Worker side."""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache


@dataclass(frozen=True)
class Kept:
    """Sizes for one sequence, all layers together."""

    values_per_token: int
    """Numbers that a position adds: keys and values, latents, an indexer's keys."""
    window_values_per_token: int
    """Of these, the numbers of layers that read a window of the latest positions only."""
    window: int
    """Positions of that window, the smallest where there are several; 0 for none. A chunk counts as a window."""
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
            takes = inspect.signature(empty.forward).parameters
            name = "cache_params" if "cache_params" in takes else "past_key_values"
            empty(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True, **{name: cache})
    except Exception:  # any family's code may want values
        return None
    values = windowed = states = 0
    windows = []
    for layer in cache.layers:
        parts = [getattr(layer, part, None) for part in ("keys", "values", "indexer_keys")]
        numbers = sum(part.numel() for part in parts if part is not None)
        values += numbers
        window = getattr(layer, "sliding_window", None)
        if window and numbers:
            windowed += numbers
            windows.append(window)
        for kind in ("conv_states", "recurrent_states"):
            states += sum(state.numel() * state.element_size() for state in _all(getattr(layer, kind, None)))
    return Kept(values, windowed, min(windows, default=0), states) if values or states else None


def _all(states: Any) -> list[torch.Tensor]:
    """The tensors of a layer's states, which are one, or one for each number of it."""
    found = states.values() if isinstance(states, dict) else [states]
    return [state for state in found if isinstance(state, torch.Tensor)]
