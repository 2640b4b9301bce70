"""What a token of a loaded model costs: its cache as transformers fills it, and the experts that it goes through."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from bench.metrics import decode_bytes, least_decode_bytes
from bench.models import cost
from bench.models.shape import Shape
from bench.models.spec import Model
from bench.record import ModelCost
from tests.test_compiled import model

MIXTRAL = 2 * 4 * 3 * 64 * 96
"""Parameters of all experts: layers, experts of each, matrices of one, sizes."""


@pytest.mark.parametrize("family", ["llama", "qwen3", "gptj", "deepseek_v3", "llama4_text", "qwen3_5_text", "lfm2_moe"])
def test_bytes_of_the_cache_are_those_that_transformers_keeps(family: str):
    made = model(family)
    cache = DynamicCache(config=made.config)
    with torch.inference_mode():
        made(input_ids=torch.full((2, 5), 7), past_key_values=cache, use_cache=True)
    kept = [part for layer in cache.layers if hasattr(layer, "keys") for part in (layer.keys, layer.values)]
    assert cost.of(Model(name=family), made, 4).kv_bytes_per_token == sum(4 * part.numel() for part in kept) / 10


@pytest.mark.parametrize(
    "says",
    [
        {"layer_types": ["linear_attention", "minimax_m3_sparse"]},
        {"layers_block_type": ["mamba", "attention"]},
        {"attn_layer_indices": [1]},
    ],
    ids=str,
)
def test_layers_that_keep_nothing_for_a_position(says: dict[str, Any]):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 199}
    counted = {"num_hidden_layers": 2} if "attn_layer_indices" in says else {}  # otherwise Nemotron-H's do not say it
    config = {"model_type": "mixed", **sizes, **counted, **says}
    shape = Shape.of(Model(name="mixed", architecture=json.dumps(config)))
    assert shape is not None
    assert (shape.num_layers, shape.kv_bytes_per_token(2)) == (2, 2 * 64 * 2)


def test_experts_that_a_token_goes_through():
    found = cost.of(Model(name="mixtral"), model("mixtral"), 4)
    total = sum(parameter.numel() for parameter in model("mixtral").parameters())
    assert (found.expert_bytes, found.chosen_experts) == (4 * MIXTRAL, 0.5)
    assert found.weight_bytes == 4 * (total - 199 * 64)  # the input embedding
    assert found.active_parameters == total - 199 * 64 - MIXTRAL / 2
    dense = cost.of(Model(name="llama"), model("llama"), 4)
    assert (dense.expert_bytes, dense.chosen_experts) == (0, 1)


def test_experts_that_are_not_found_leave_the_floor_unknown():
    made = model("mixtral")
    for layer in made.model.layers:
        layer.mlp.somewhere = layer.mlp._modules.pop("experts")
    found = cost.of(Model(name="mixtral"), made, 4)
    assert math.isnan(found.expert_bytes) and math.isnan(found.active_parameters)
    silent = json.loads(made.config.to_json_string()) | {"num_experts_per_tok": None}
    assert math.isnan(cost.of(Model(name="mixtral", architecture=json.dumps(silent)), made, 4).chosen_experts)


def test_bytes_of_a_step_with_experts(make: Any):
    """Three sequences that choose a fourth of the experts each meet 1 - (3/4)^3 = 37/64 of them."""
    costs = ModelCost(weight_bytes=1000, expert_bytes=640, chosen_experts=0.25, kv_bytes_per_token=5)
    record = make.record(make.cell(batch=1, beams=3, inputs=10, outputs=4), cost=costs)
    assert decode_bytes(record) == 360 + 370 + 3 * 5 * 12
    assert least_decode_bytes(record) == 360 + 370 + 5 * (10 + 3 * 2)
