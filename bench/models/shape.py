"""`Shape`: the sizes of a model that memory and roofline figures need, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .spec import Model

GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "glm")
"""Families of one layout: grouped attention, a gated MLP, RMSNorm and no learned positions."""
TIED_BY_DEFAULT = ("bloom", "gemma", "gemma2", "gpt2", "opt")
"""Families whose published configurations tie the embeddings without saying so."""
NOTHING_KEPT = ("linear_attention", "conv", "mamba", "recurrent", "moe", "mlp")
"""Kinds of layers that keep nothing for a position."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer. A parameter is counted once, however many modules share it."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int | None
    """Longest sequence; None when positions have no limit (ALiBi)."""
    tied: bool
    """The input embedding is also the output matrix."""
    parameters: int | None
    """All parameters; None when the family is unknown and the model does not say."""
    embedding_parameters: int
    """Input embedding and the learned position table."""
    position_parameters: int
    """The learned position table alone; 0 for rotary positions and ALiBi."""
    num_experts: int
    """Experts per layer; 1 for a dense model."""
    experts_per_token: int | None
    """Experts of a layer that a token goes through; None when the model does not say."""
    kv_values_per_token: int
    """Numbers that all layers together keep for one position."""

    @classmethod
    def of(cls, model: Model) -> Shape | None:
        """The shape of `model`, from the field names of its family; None when its architecture is not known."""
        config = model.config
        layers = _first(config, "num_hidden_layers", "n_layer", "num_layers") or len(_kinds(config)) or None
        hidden = _first(config, "hidden_size", "n_embd", "n_embed", "d_model")
        heads = _first(config, "num_attention_heads", "n_head")
        vocab = _first(config, "vocab_size", "padded_vocab_size")
        if layers is None or hidden is None or heads is None or vocab is None:
            return None
        family = config.get("model_type", "")
        alibi = family == "bloom" or bool(config.get("alibi"))
        positions = None if alibi else _first(config, "max_position_embeddings", "n_positions", "seq_length")
        # OPT keeps two rows before position 0.
        rows = (positions or 0) + 2 if family == "opt" else (positions or 0) if family == "gpt2" else 0
        embedding = vocab * (_first(config, "word_embed_proj_dim") or hidden)
        tied = config.get("tie_word_embeddings")
        kv_heads = _first(config, "num_key_value_heads", "multi_query_group_num") or heads
        head_dim = _first(config, "head_dim", "kv_channels") or hidden // heads
        experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts") or 1
        chosen = _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
        shape = cls(
            num_layers=layers,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=vocab,
            max_positions=positions,
            tied=family in TIED_BY_DEFAULT if tied is None else bool(tied),
            parameters=model.parameters,
            embedding_parameters=embedding + rows * hidden,
            position_parameters=rows * hidden,
            num_experts=experts,
            experts_per_token=chosen if experts > 1 else 1,
            kv_values_per_token=_layers_with_cache(config, layers) * _kv_values(config, kv_heads, head_dim),
        )
        if model.parameters is not None:
            return shape
        return cls(**{**vars(shape), "parameters": shape._counted(config)})

    def active_parameters(self, of_experts: int | None = None, looked_up: int | None = None) -> float | None:
        """Parameters read per token: all without the input embedding, with the output matrix.

        P_act = P - V·d when untied, P when tied (the shared table is read as the output matrix); a learned position
        table is never counted. Where it is known how many are `looked_up` in tables, those are left out instead. Of a
        mixture's experts, `of_experts` parameters in all, those that a token goes through. None where P is not known,
        or what a token uses of it. Source: metrics.md 3.3.
        """
        if self.parameters is None:
            return None
        idle = 0.0
        if self.num_experts > 1:
            if of_experts is None or self.experts_per_token is None:
                return None
            idle = of_experts * (1 - self.experts_per_token / self.num_experts)
        if looked_up is None:
            looked_up = self.position_parameters if self.tied else self.embedding_parameters
        return self.parameters - looked_up - idle

    def kv_bytes_per_token(self, bytes_per_value: float) -> float:
        """Key and value cache of one token of one sequence, bytes. Source: metrics.md 3.3.

        2·L·n_kv·d_h·bytes_kv, with L the layers that have such a cache; for latent attention, the latent and the part
        with positions in the place of 2·n_kv·d_h. Windows are not taken into account.
        """
        return self.kv_values_per_token * bytes_per_value

    def weight_bytes(self, bytes_per_parameter: float, at_ends: float | None = None) -> float | None:
        """All weights, bytes; the embedding and the output matrix may have another size than the layers."""
        if self.parameters is None:
            return None
        ends = self.embedding_parameters + (0 if self.tied else self.vocab_size * self.hidden_size)
        return (
            ends * (bytes_per_parameter if at_ends is None else at_ends)
            + (self.parameters - ends) * bytes_per_parameter
        )

    def fits(self, positions: int) -> bool:
        """Whether a sequence of prompt and output of `positions` tokens in all is within the model's limit."""
        return self.max_positions is None or positions <= self.max_positions

    def _counted(self, config: Mapping[str, Any]) -> int | None:
        """Parameters counted from the sizes; None for families whose layout is not known here."""
        family = config.get("model_type", "")
        hidden = self.hidden_size
        inner = _first(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
        output = 0 if self.tied else self.vocab_size * hidden
        if family in GATED:
            queries, keys = self.num_heads * self.head_dim, 2 * self.num_kv_heads * self.head_dim
            layer = hidden * (2 * queries + keys) + 3 * hidden * inner + 2 * hidden
            if config.get("attention_bias", family in ("qwen2", "glm")):
                layer += queries + keys + (hidden if family in ("llama", "qwen3") else 0)
            if config.get("mlp_bias"):
                layer += 2 * inner + hidden
            if family == "qwen3":
                layer += 2 * self.head_dim
            return self.num_layers * layer + hidden + self.embedding_parameters + output
        dense = 4 * hidden * hidden + 2 * hidden * inner + inner + hidden
        if family == "gptj":  # one norm per layer, biases in the MLP and the output matrix
            return (
                self.num_layers * (dense + 2 * hidden)
                + 2 * hidden
                + self.embedding_parameters
                + output
                + self.vocab_size
            )
        if family == "bloom":  # biases and two norms per layer, a norm after the embedding
            return self.num_layers * (dense + 8 * hidden) + 4 * hidden + self.embedding_parameters + output
        if family == "opt" and self.embedding_parameters - self.position_parameters == self.vocab_size * hidden:
            return self.num_layers * (dense + 8 * hidden) + 2 * hidden + self.embedding_parameters + output
        return None


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """The kind of each layer; empty where the family has one kind, or another way of saying it."""
    return list(config.get("layer_types") or config.get("layers_block_type") or ())


def _layers_with_cache(config: Mapping[str, Any], layers: int) -> int:
    """Layers that keep something for each position."""
    if kinds := _kinds(config):
        return sum(kind not in NOTHING_KEPT for kind in kinds)
    some = config.get("attn_layer_indices")
    return len(some) if isinstance(some, list) else layers


def _kv_values(config: Mapping[str, Any], kv_heads: int, head_dim: int) -> int:
    """Numbers that one such layer keeps for a position."""
    latent = _first(config, "kv_lora_rank")
    if latent:
        return latent + (_first(config, "qk_rope_head_dim") or 0)
    return kv_heads * (head_dim + (_first(config, "v_head_dim") or head_dim))


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these fields that holds a whole number, or the same one for each layer."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]
        if isinstance(value, int):
            return value
    return None
