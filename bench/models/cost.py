"""What one token of a loaded model costs in bytes and FLOPs, from its tensors and its shape. Worker side."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from ..record import ModelCost
from .shape import Shape
from .spec import Model


def of(model: Model, loaded: Any, kv_bytes: int) -> ModelCost:
    """The cost of a loaded transformers model whose KV cache stores values of `kv_bytes` bytes.

    Bytes are counted on the tensors as they are stored, so packed weights count packed. Figures that need an unknown
    shape are NaN.
    """
    if not model.architecture:  # known now, from the checkpoint
        architecture = json.loads(loaded.config.to_json_string(use_diff=False))
        model = dataclasses.replace(model, architecture=json.dumps(architecture))
    if model.parameters is None:
        model = dataclasses.replace(model, parameters=sum(item.numel() for item in loaded.parameters()))
    weight_bytes = float(sum(item.numel() * item.element_size() for item in loaded.parameters()))
    table = loaded.get_input_embeddings().weight
    head = loaded.get_output_embeddings()
    if head is None or head.weight is not table:
        weight_bytes -= table.numel() * table.element_size()
    shape = Shape.of(model)
    if shape is None:
        return ModelCost(weight_bytes=weight_bytes)
    active = shape.active_parameters()
    return ModelCost(
        weight_bytes=weight_bytes - shape.position_parameters * table.element_size(),
        kv_bytes_per_token=shape.kv_bytes_per_token(kv_bytes),
        active_parameters=math.nan if active is None else float(active),
        head_parameters=float(shape.vocab_size * shape.hidden_size),
        attention_width=float(shape.num_layers * shape.num_heads * shape.head_dim),
    )
