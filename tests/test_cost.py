"""What a token of a loaded model costs: its cache as transformers fills it, and the experts that it goes through."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from bench.metrics import decode_bytes, least_decode_bytes
from bench.models import cost, kept
from bench.models.host_embedding import keep_on_host
from bench.models.shape import Shape
from bench.models.spec import Model
from bench.record import ModelCost
from tests.test_compiled import FAMILIES, SMALL, model

MIXTRAL = 2 * 4 * 3 * 64 * 96
"""Parameters of all experts: layers, experts of each, matrices of one, sizes."""


KEEPING = [
    "llama", "qwen3", "gptj", "gpt2", "mistral", "gpt_oss", "deepseek_v3", "deepseek_v32", "llama4_text",
    "mimo_v2_flash", "qwen3_5_text", "qwen4_exp_text", "minimax_m3_vl_text", "lfm2_moe",
    "mamba2",
]  # fmt: skip
"""Caches of all kinds: latents and an indexer's keys, windows, chunks, sizes by layer, states with and without keys."""

WINDOWS = {
    "mistral": ((4 * 2 * 2 * 2 * 16, 12),),
    "gpt_oss": ((4 * 2 * 2 * 16, 8),),  # the first of two layers
    "deepseek_v32": ((4 * 2 * (32 + 16), 8),),  # latents of positions that an indexer of its own keys chooses
    "mimo_v2_flash": ((4 * 4 * (24 + 16), 8),),  # which has all heads
    "qwen4_exp_text": ((4 * 2 * 2 * 16, 9 + 2),),  # three blocks of three, and two that are none yet
    "minimax_m3_vl_text": ((4 * 2 * 2 * 16, 7 * 3),),  # the second of two layers
}
CHUNKS = {"llama4_text": ((4 * 2 * 2 * 16, 8),)}
"""Bytes per position of the layers that do not read all, and the positions that they read, as SMALL models have it."""


@pytest.mark.parametrize("family", KEEPING)
def test_bytes_of_the_cache_are_those_that_transformers_keeps(family: str):
    made = model(family)
    cache = DynamicCache(config=made.config)
    with torch.inference_mode():
        name = "cache_params" if family == "mamba2" else "past_key_values"
        made(input_ids=torch.full((2, 5), 7), use_cache=True, **{name: cache})
    found = cost.of(Model(name=family), made, 4)
    parts = {layer: [getattr(layer, part, None) for part in (*kept.PARTS, *kept.INDEX)] for layer in cache.layers}
    bytes_of = {layer: sum(4 * part.numel() for part in some if part is not None) / 10 for layer, some in parts.items()}
    assert found.kv_bytes_per_token == sum(bytes_of.values())
    assert found.windows == WINDOWS.get(family, ())
    assert found.chunks == CHUNKS.get(family, ())
    states = [state for layer in cache.layers for kind in ("conv_states", "recurrent_states")
              for state in getattr(layer, kind, {}).values() if state is not None]  # fmt: skip
    assert found.state_bytes == sum(state.nbytes for state in states) / 2
    assert bool(states) == (family in ("qwen3_5_text", "qwen4_exp_text", "lfm2_moe", "mamba2"))


def test_sizes_say_what_is_kept_where_the_model_cannot_be_asked(monkeypatch: pytest.MonkeyPatch):
    """A family whose code looks at values, which a tensor without data has not."""
    made = model("llama")

    def forward(self: Any, input_ids: torch.Tensor, **_: Any) -> None:
        raise AssertionError(int(input_ids.sum()))

    monkeypatch.setattr(type(made), "forward", forward)
    assert kept.of(made) is None
    assert cost.of(Model(name="llama"), made, 2).kv_bytes_per_token == 2 * 2 * 2 * 2 * 16


def pictures() -> Any:
    """A small model that reads pictures, too, with a window in its layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = sizes | {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 199, "sliding_window": 8, "pad_token_id": 0}
    return AutoConfig.for_model("gemma3", text_config=text, vision_config=sizes | {"image_size": 28, "patch_size": 14})


def test_of_a_model_for_pictures_only_what_writes_is_counted():
    config = pictures()
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    writing = sum(each.numel() for each in made.get_decoder().parameters())
    assert writing < sum(each.numel() for each in made.parameters())
    found = cost.of(Model(name="gemma3", architecture=config.to_json_string(use_diff=False)), made, 4)
    assert found.weight_bytes == 4 * writing  # the head is the input embedding
    assert found.kv_bytes_per_token == 4 * 2 * 2 * 2 * 16
    assert found.active_parameters == writing


def test_distances_to_the_floor_of_models_that_say_their_sizes_in_other_ways(bench: Any, tmp_path: Path):
    """From a folder to the table: sizes in `text_config`, and no attention heads."""
    pictures().save_pretrained(tmp_path / "gemma3")
    model("mamba2").config.save_pretrained(tmp_path / "mamba2")
    done = bench("run", "-m", f"model={tmp_path / 'gemma3'},{tmp_path / 'mamba2'}", "weights=random", "precision=fp32",
                 "engine=eager", "lengths=24/8", "num_beams=1", "iterations=2", "warmup=1", "results=out")  # fmt: skip
    assert done.code == 0, done.stderr
    with (bench.cwd / "out" / "results.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert {name: float(row["tpot_over_floor"]) > 1 for name, row in rows.items()} == {"gemma3": True, "mamba2": True}


def test_a_floor_for_a_model_without_attention():
    found = cost.of(Model(name="mamba2"), model("mamba2"), 4)
    total = sum(parameter.numel() for parameter in model("mamba2").parameters())
    assert found.weight_bytes == 4 * (total - (0 if model("mamba2").config.tie_word_embeddings else 199 * 64))
    assert found.kv_bytes_per_token == 0 < found.state_bytes


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


def test_a_mixture_without_a_mixed_layer_is_dense():
    """DeepSeek's first layers are, whatever its configuration says of experts; here there are no others."""
    config = AutoConfig.for_model("deepseek_v3", **SMALL | FAMILIES["deepseek_v3"] | {"first_k_dense_replace": 2})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    total = sum(parameter.numel() for parameter in made.parameters())
    found = cost.of(Model(name="deepseek_v3"), made, 4)
    assert (found.expert_bytes, found.chosen_experts, found.active_parameters) == (0, 1, total - 199 * 64)


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


def test_bytes_of_a_step_with_windows_and_states(make: Any):
    """10 + t positions for t from 0 to 4, of which a window of 12 shows 10 to 12 and then 12, in the mean 11.5.

    Of the 11.5, t are a row's own, in the mean 2; without beams there is nothing to share.
    """
    costs = ModelCost(weight_bytes=1000, kv_bytes_per_token=5, windows=((3, 12),), state_bytes=7)
    record = make.record(make.cell(batch=2, beams=3, inputs=10, outputs=4), cost=costs)
    assert decode_bytes(record) == 1000 + 6 * (2 * 12 + 3 * 11.5 + 14)
    assert least_decode_bytes(record) == 1000 + 2 * (2 * 10 + 3 * 9.5) + 6 * (2 * 2 + 3 * 2 + 14)
    alone = make.record(make.cell(batch=2, beams=1, inputs=10, outputs=4), cost=costs)
    assert decode_bytes(alone) == least_decode_bytes(alone) == 1000 + 2 * (2 * 12 + 3 * 11.5 + 14)
    later = make.cell(batch=1, beams=1, inputs=20, outputs=4)
    assert decode_bytes(make.record(later, cost=costs)) == 1000 + 2 * 22 + 3 * 12 + 14
    several = dataclasses.replace(costs, windows=((1, 12), (2, 30)))
    assert decode_bytes(make.record(later, cost=several)) == 1000 + 2 * 22 + 12 + 2 * 22 + 14


def test_bytes_of_a_step_with_chunks(make: Any):
    """Chunks of 8: of 10 + t positions, t from 0 to 12, 2 + t are in a chunk, from t = 6 on t - 6: in the mean 48 / 12.

    Of these, t and then t - 6 are a row's own: (18 + 18) / 12.
    """
    costs = ModelCost(weight_bytes=1000, kv_bytes_per_token=5, chunks=((3, 8),))
    record = make.record(make.cell(batch=2, beams=3, inputs=10, outputs=12), cost=costs)
    assert decode_bytes(record) == 1000 + 6 * (2 * 16 + 3 * 4)
    assert least_decode_bytes(record) == 1000 + 2 * (2 * 10 + 3 * 1) + 6 * (2 * 6 + 3 * 3)
    within = make.record(make.cell(batch=1, beams=1, inputs=2, outputs=4), cost=costs)
    assert decode_bytes(within) == 1000 + 5 * 4
    steps = [(10 + (number + 0.5) / 1000 * 12) % 8 for number in range(1000)]  # the same by counting
    alone = make.record(make.cell(batch=1, beams=1, inputs=10, outputs=12), cost=costs)
    assert decode_bytes(alone) == pytest.approx(1000 + 2 * 16 + 3 * sum(steps) / 1000, rel=1e-6)


def test_tables_of_which_rows_are_read_are_not_read_whole():
    """N-grams (Qwen4-Exp) beside the input embedding, and learned positions (OPT) beside a tied one."""
    for family, names in (("qwen4_exp_text", ("embed_tokens", "ngram_embedding")), ("opt", ("embed_positions",))):
        made = model(family)
        rows = sum(each.numel() for name, each in made.named_parameters() if name.split(".")[-2] in names)
        total = sum(each.numel() for each in made.parameters())
        assert 0 < rows < total
        found = cost.of(Model(name=family), made, 4)
        assert found.weight_bytes == 4 * (total - rows)
        assert found.active_parameters == total - rows - found.expert_bytes / 4 / 2


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_on_the_host_is_no_work_of_the_device(tied: bool):
    config = AutoConfig.for_model("llama", **SMALL, num_key_value_heads=2, tie_word_embeddings=tied)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    known = Model(name="llama", architecture=config.to_json_string(use_diff=False), parameters=made.num_parameters())
    before = [cost.of(each, made, 4) for each in (Model(name="llama"), known)]
    keep_on_host(made)
    assert [cost.of(each, made, 4) for each in (Model(name="llama"), known)] == before
