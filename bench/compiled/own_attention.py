"""Whose attention `attention.attend` can replace, and how, where a family does not call transformers' interface.

Another family: add what replaces a method of its attention layer to `REPLACED`, and, where positions add to the scores,
how much to `bias`. The family's own code still fills prompts; without an entry, it decodes, too (`takes_parts`).
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers.models.bloom import modeling_bloom
from transformers.models.diffllama import modeling_diffllama
from transformers.models.falcon import modeling_falcon

from . import blocks
from .attention import Parts, attend


class Method(NamedTuple):
    """A method of an attention layer, and the one that is there for new tokens."""

    layer: torch.nn.Module
    name: str
    new: types.MethodType

    def replace(self, yes: bool) -> None:
        """Put the new method into the layer, or give it back its own."""
        if yes:
            setattr(self.layer, self.name, self.new)
        else:
            self.layer.__dict__.pop(self.name, None)


def _attn(self: Any, query: torch.Tensor, key: Any, value: Any, attention_mask: None = None) -> tuple[Any, None]:
    """The product that GPT-J's layer and those like it have as a method: shape [rows, heads, 1, head size]."""
    return attend(self, query, key, value, None)[0].transpose(1, 2), None


def _bloom(
    self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, *_: Any, layer_past: Any, **__: Any
) -> tuple[Any, None]:
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    return self.dense(_mixed(self, query, key, value, layer_past)) + residual, None


def _falcon(
    self: Any, hidden_states: torch.Tensor, alibi: torch.Tensor | None, *_: Any, layer_past: Any,
    position_embeddings: Any, **__: Any,
) -> tuple[Any, None]:  # fmt: skip
    query, key, value = (part.transpose(1, 2) for part in self._split_heads(self.query_key_value(hidden_states)))
    if alibi is None:
        query, key = modeling_falcon.apply_rotary_pos_emb(query, key, *position_embeddings)
    return self.dense(_mixed(self, query, key, value, layer_past)), None


def _xglm(self: Any, hidden_states: torch.Tensor, past_key_values: Any, **_: Any) -> tuple[Any, None]:
    query, key, value = (
        layer(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        for layer in (self.q_proj, self.k_proj, self.v_proj)
    )
    return self.out_proj(_mixed(self, query, key, value, past_key_values)), None


def _diffllama(
    self: Any, hidden_states: torch.Tensor, position_embeddings: Any, past_key_values: Any = None, **_: Any
) -> tuple[Any, None]:
    query, key, value = (
        layer(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for layer in (self.q_proj, self.k_proj, self.v_proj)
    )
    query, key = modeling_diffllama.apply_rotary_pos_emb(query, key, *position_embeddings)
    parts, _ = past_key_values.update(key, value, self.layer_idx)
    paired = parts._replace(paired=True)
    mixed, subtracted = attend(self, query, paired, paired, None, scaling=self.head_dim**-0.5)[0].chunk(2, dim=2)
    powers = [
        torch.exp((left * right).sum(dtype=torch.float32)).to(query.dtype)
        for left, right in ((self.lambda_q1, self.lambda_k1), (self.lambda_q2, self.lambda_k2))
    ]
    difference = mixed - (powers[0] - powers[1] + self.lambda_init) * subtracted
    return self.o_proj((1 - self.lambda_init) * self.groupnorm(difference).flatten(2)), None


def _latent(_: Any, parts: Parts, __: Parts) -> tuple[Parts, Parts]:
    """Latents as they are in the place of the keys and values that they expand to."""
    latent = parts._replace(latent=True)
    return latent, latent


def _mixed(layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: Any) -> torch.Tensor:
    """Attention from projections of shape [rows, heads, 1, head size]; returns [rows, 1, hidden size]."""
    parts, _ = cache.update(key, value, layer.layer_idx)
    return attend(layer, query, parts, parts, None)[0].flatten(2)


REPLACED: dict[str, tuple[str, Callable[..., Any]]] = {
    "GPTJAttention": ("_attn", _attn),
    "CodeGenAttention": ("_attn", _attn),
    "GPTNeoXJapaneseAttention": ("_attn", _attn),
    "BloomAttention": ("forward", _bloom),
    "FalconAttention": ("forward", _falcon),
    "XGLMAttention": ("forward", _xglm),
    "DiffLlamaAttention": ("forward", _diffllama),
    "Qwen4ExpTextQSAIndexer": ("forward", blocks.choose),
    "MiniMaxM3VLIndexer": ("forward", blocks.choose_for_heads),
}
"""By the class of the attention layer, or its indexer: the method that is replaced, and by what."""
LATENT = "expand_kv"
"""The method that all families of latent attention have since transformers 5.15; before, they kept what it returns."""

KNOWN_LAYERS = {
    "full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "linear_attention", "conv", "moe",
    "mlp", "minimax_m3_sparse",
}  # fmt: skip
"""Kinds of layers whose attention, if any, is that of `attention.attend`."""


def takes_parts(model: Any) -> bool:
    """Whether `attention.attend` can take the place of the attention of `model`: it is known here, all of it."""
    config = model.config.get_text_config(decoder=True)
    module = sys.modules[type(model).__module__]
    types = set(getattr(config, "layer_types", None) or ())
    if types - KNOWN_LAYERS:
        return False
    if getattr(model, "_supports_attention_backend", False) or hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return True
    return bool(methods(model)) and "sliding_attention" not in types


def methods(model: Any) -> list[Method]:
    """What is to be replaced in `model`: nothing, if its family is not known here."""
    found = []
    for layer in model.modules():
        name, new = REPLACED.get(type(layer).__name__, (LATENT, _latent))
        if hasattr(layer, name):
            found.append(Method(layer, name, types.MethodType(new, layer)))
    return found


def chunk(config: Any, number: int) -> int | None:
    """Size of the chunks within which the layer of that number attends; None for no chunks."""
    kinds = getattr(config, "layer_types", None)
    size: int | None = getattr(config, "attention_chunk_size", None)
    return size if kinds is None or kinds[number] == "chunked_attention" else None


def bias(model: Any, length: int) -> torch.Tensor | None:
    """What positions add to scores by their distance from the prompt's start, [heads, length]; None for nothing.

    ALiBi (Press et al. 2022), in the dtype and with the rounding of the family's own code.
    """
    config = model.config.get_text_config(decoder=True)
    family = config.model_type
    if family != "bloom" and not (family == "falcon" and config.alibi):
        return None
    heads = config.num_attention_heads
    ones = torch.ones(1, length, dtype=torch.int64, device=model.device)
    build = (modeling_bloom if family == "bloom" else modeling_falcon).build_alibi_tensor
    table: torch.Tensor = build(ones, heads, model.dtype).squeeze(1)
    if family == "bloom":
        return table
    times = 2 if config._attn_implementation == "eager" else 1  # that code adds it to the mask and to the scores
    return times * table / math.sqrt(config.hidden_size // heads)
