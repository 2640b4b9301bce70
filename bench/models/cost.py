"""What one token of a loaded model costs in bytes and FLOPs, from its tensors and its shape. Worker side."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch

from ..record import ModelCost
from . import kept
from .host_embedding import HostEmbedding
from .shape import Shape
from .spec import Model


def of(model: Model, loaded: Any, kv_bytes: int) -> ModelCost:
    """The cost of a loaded transformers model whose KV cache stores values of `kv_bytes` bytes.

    Bytes are counted on the tensors as they are stored, so packed weights count packed; of a model for pictures, too,
    only what writes text. What a sequence keeps is that of transformers' own cache, or, where that cannot be had
    without running the model, what its sizes say. Figures that need an unknown shape are NaN.
    """
    config = loaded.config.get_text_config(decoder=True)
    head = loaded.get_output_embeddings()
    text = [loaded] if config is loaded.config else [loaded.get_decoder(), *([] if head is None else [head])]
    if not model.architecture or config is not loaded.config:  # known now, from the checkpoint
        model = dataclasses.replace(model, architecture=config.to_json_string(use_diff=False), parameters=None)
    counted = model.parameters is None
    if counted:
        model = dataclasses.replace(model, parameters=_parameters(text))
    weight_bytes = stored(*text)
    looked_up = _looked_up(text, head)
    weight_bytes -= sum(map(_bytes, looked_up))
    shape = Shape.of(model)
    cost = _cache(kept.of(loaded), shape, kv_bytes)
    modules = dict(loaded.named_modules())
    experts = [module for name, module in modules.items() if name.rpartition(".")[2] == "experts"]
    expert_bytes = stored(*experts)
    mixed = bool(experts) or any("Expert" in type(module).__name__ for module in modules.values())
    if shape is None:
        return dataclasses.replace(cost, weight_bytes=weight_bytes, expert_bytes=math.nan if mixed else 0.0)
    if not mixed:  # whatever its configuration says: the first layers may be dense, and there may be no others
        shape = dataclasses.replace(shape, num_experts=1)
    on_host = [module.weight for module in modules.values() if isinstance(module, HostEmbedding)]
    if counted or shape.tied:  # one on the host is not counted, or a copy of the head's
        looked_up = [table for table in looked_up if all(table is not other for other in on_host)]
    rows = sum(table.numel() for table in looked_up)
    active = shape.active_parameters(_parameters(experts) if experts else None, rows)
    chosen = 1.0
    if shape.num_experts > 1:
        chosen = math.nan if shape.experts_per_token is None else shape.experts_per_token / shape.num_experts
        expert_bytes = expert_bytes if experts else math.nan
    return dataclasses.replace(
        cost,
        weight_bytes=weight_bytes,
        active_parameters=math.nan if active is None else float(active),
        head_parameters=float(shape.vocab_size * shape.hidden_size),
        expert_bytes=expert_bytes,
        chosen_experts=chosen,
        attention_width=float(shape.num_layers * shape.num_heads * shape.head_dim),
    )


def _cache(found: kept.Kept | None, shape: Shape | None, kv_bytes: int) -> ModelCost:
    """What a sequence adds to a step, of which `found` knows more than `shape`."""
    if found is not None:
        return ModelCost(
            kv_bytes_per_token=float(found.values_per_token * kv_bytes),
            windows=tuple((float(numbers * kv_bytes), float(limit)) for numbers, limit in found.windows),
            chunks=tuple((float(numbers * kv_bytes), float(limit)) for numbers, limit in found.chunks),
            state_bytes=float(found.state_bytes),
        )
    return ModelCost(kv_bytes_per_token=math.nan if shape is None else shape.kv_bytes_per_token(kv_bytes))


def _looked_up(models: list[Any], head: Any) -> list[torch.Tensor]:
    """Tables of which a token reads a row: of tokens, positions or n-grams. That of `head` is not one: it reads all."""
    tables = {
        id(module.weight): module.weight
        for module in itertools.chain.from_iterable(model.modules() for model in models)
        if isinstance(module, torch.nn.Embedding | HostEmbedding)
    }
    tables.pop(id(getattr(head, "weight", None)), None)
    return list(tables.values())


def _parameters(models: list[Any]) -> int:
    """Parameters, each once, of packed layers as many as there were before."""
    seen: dict[int, int] = {}
    for module in itertools.chain.from_iterable(model.modules() for model in models):
        for name, tensor in module.named_parameters(recurse=False):
            seen[id(tensor)] = tensor.numel()
            if name == "weight" and hasattr(module, "in_features"):
                seen[id(tensor)] = module.in_features * module.out_features
        if hasattr(module, "in_features") and "weight" not in module._parameters:
            seen[id(module)] = module.in_features * module.out_features
    return sum(seen.values())


def stored(*models: Any) -> float:
    """Bytes of all weights as they are stored, each tensor once: parameters, and what packed layers keep beside them.

    A layer that stands in for a linear one may hold its packed weights and scales in buffers, in tensors within a
    tensor (torchao) or in the state of a quantiser (bitsandbytes).
    """
    seen: dict[int, float] = {}
    for module in itertools.chain.from_iterable(model.modules() for model in models):
        tensors = list(module.parameters(recurse=False))
        if hasattr(module, "in_features") and type(module) is not torch.nn.Linear:
            tensors += module.buffers(recurse=False)
        elif "_table" in vars(module):  # an embedding that was left on the host
            tensors.append(module._table)
        for tensor in tensors:
            seen[id(tensor)] = _bytes(tensor)
        if "hidden_bytes" in vars(module):  # what a provider counted where no tensor shows it
            seen[id(module)] = module.hidden_bytes
    return sum(seen.values())


def _bytes(tensor: Any) -> float:
    """Bytes of a tensor with what belongs to it."""
    state = getattr(tensor, "quant_state", None)
    beside: list[Any] = [getattr(tensor, name, None) for name in ("SCB",)]
    if state is not None:
        beside += [state.absmax, state.code, state.offset, *(
            (state.state2.absmax, state.state2.code) if state.nested else ())]  # fmt: skip
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is not None:
        parts = [getattr(tensor, name) for name in inner()[0]]
        return sum(map(_bytes, parts))
    size = float(tensor.numel() * tensor.element_size())
    return size + sum(item.numel() * item.element_size() for item in beside if isinstance(item, torch.Tensor))
