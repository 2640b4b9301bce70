"""engine=compiled: the same tokens as `generate`, on every family that transformers can give a static cache."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from bench.cell import Cell, Choice, Generate
from bench.compiled import attention, cache, own_attention, step, tuning
from bench.compiled.cache import Index, Place, Shared
from bench.compiled.step import Decoder, Shape
from bench.devices.cpu import Cpu
from bench.engines import engines
from bench.engines.compiled import Compiled
from bench.engines.eager import Eager
from bench.errors import ConfigError, Unsupported
from bench.models import build, refill
from bench.models.spec import Model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # Inductor's own

VOCABULARY = 199
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 16, "qk_nope_head_dim": 24,
    "v_head_dim": 16,
}  # fmt: skip
MIXED = {
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "num_key_value_heads": 2,
}  # fmt: skip
TWO_ROTATIONS = {
    "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "rope_theta": 1e4,
    "original_max_position_embeddings": 26,
}  # fmt: skip
"""Others begin within the continuation of `prompts`, at the seventh token."""
CHUNKED = ["chunked_attention", "full_attention"]
WINDOWED = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "llama with dynamic rotation": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 12},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24},
    "phi3": {"num_key_value_heads": 4, "sliding_window": 16},
    "phi3 with two rotations": {
        "num_key_value_heads": 2, "rope_parameters": TWO_ROTATIONS, "original_max_position_embeddings": 26,
    },
    "phimoe with two rotations": {
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None,
        "rope_parameters": TWO_ROTATIONS | {"short_mscale": 1.1, "long_mscale": 1.3},
        "original_max_position_embeddings": 26,
    },
    "gemma3_text with dynamic rotation": {
        "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "layer_types": WINDOWED,
        "rope_parameters": {
            "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    },
    "glm": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "starcoder2": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt_neox": {},
    "phi": {},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_bigcode": GPT,
    "codegen": {**GPT, "rotary_dim": 8},
    "bloom": GPT,
    "falcon": {"alibi": False},
    "falcon with alibi": {"alibi": True},
    "falcon with groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "stablelm": {"num_key_value_heads": 2},
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "biogpt": {},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "xglm": {"d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4},
    "deepseek_v3": MIXED | LATENT | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v32": MIXED | LATENT | {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2},
    "diffllama": {"num_key_value_heads": 2},
    "llama4_text": MIXED | {"head_dim": 16, "attention_chunk_size": 8, "layer_types": CHUNKED},
    "mimo_v2_flash": MIXED | {"head_dim": 24, "v_head_dim": 16, "sliding_window": 8, "layer_types": WINDOWED},
    "qwen3_5_text": {
        "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "qwen4_exp_text": MIXED | {
        "head_dim": 16, "layer_types": ["linear_attention", "indexed_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 9, "indexer_compress_ratio": 3,
        "ple_layer_ids": [1], "ple_embed_dim": 32, "ngram_vocab_size_base": 100, "heads_per_ngram": 2, "hc_lowrank": 32,
    },
    "minimax_m3_vl_text": MIXED | {
        "head_dim": 16, "rotary_dim": 8, "layer_types": ["full_attention", "minimax_m3_sparse"], "index_n_heads": 2,
        "index_head_dim": 16, "index_block_size": 3, "index_topk_blocks": 7, "dense_intermediate_size": 32,
        "shared_intermediate_size": 32,
    },
    "lfm2_moe": MIXED | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
}  # fmt: skip
FAMILIES["qwen4_exp_text with two rotations"] = FAMILIES["qwen4_exp_text"] | {"rope_parameters": TWO_ROTATIONS}


def model(family: str) -> Any:
    """A tiny model whose logits differ enough that rounding decides nothing."""
    kind = family.partition(" ")[0]
    config = AutoConfig.for_model(kind, **{**SMALL, **FAMILIES[family]})
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.requires_grad_(False)
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1 or name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=0.15 if parameter.dim() > 1 else 2)
    return build.ready(made)


def prompts(batch: int, padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [batch, 20]; the n-th prompt starts with 3 n tokens of padding."""
    ids = torch.randint(3, VOCABULARY, (batch, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for number in range(batch if padded else 0):
        mask[number, : 3 * number] = 0
    return ids * mask, mask


def both(
    made: Any, batch: int, beams: int, padded: bool = False, options: dict[str, Any] | None = None, **settings: Any
):
    """What `generate` and the loop say; the loop the second time, when its caches hold what was there before."""
    ids, mask = prompts(batch, padded)
    settings = {"max_new_tokens": 14, "eos_token_id": None, **settings}
    if settings["eos_token_id"] is None:
        settings["min_new_tokens"] = settings["max_new_tokens"]
    config = GenerationConfig(num_beams=beams, do_sample=False, pad_token_id=0, **settings)
    with torch.inference_mode():
        expected = made.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        decoder = Decoder(made, Shape.of(batch, ids.shape[1], config), config, options)
        for _ in range(2):
            steps: list[int] = []
            found = decoder.generate(ids, mask if padded else None, config.max_new_tokens, partial(steps.append, 1))
    assert len(steps) >= found.shape[1] - ids.shape[1]
    return expected.tolist(), found.tolist(), decoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_generate(family: str):
    made = model(family)
    config = made.config
    usual = config._attn_implementation, config._experts_implementation
    for batch, beams, padded in ((1, 1, False), (3, 1, True), (1, 4, False), (3, 4, True)):
        expected, found, decoder = both(made, batch, beams, padded)
        assert found == expected, (batch, beams)
        assert {len(layer.keys) for layer in decoder.cache.layers} <= {batch}  # beams share them
    assert (config._attn_implementation, config._experts_implementation) == usual
    assert not [layer for layer in made.modules() if {"forward", "_attn"} & set(vars(layer))]  # its own again


@pytest.mark.parametrize(
    ("family", "setting"), [("qwen4_exp_text", "indexer_n_heads"), ("deepseek_v32", "index_n_heads")]
)
@pytest.mark.parametrize("heads", [1, 16])
def test_indexers_with_other_heads(family: str, setting: str, heads: int, monkeypatch: pytest.MonkeyPatch):
    """With few, many scores are exactly 0, and tokens depend on which of these are taken; with many, none is."""
    monkeypatch.setitem(FAMILIES[family], setting, heads)
    made = model(family)
    for batch, beams in ((1, 1), (3, 1), (1, 4), (3, 4)):
        expected, found, _ = both(made, batch, beams, padded=True)
        assert found == expected, (batch, beams)


@pytest.mark.parametrize("limit", [19, 20, 32, 33])
def test_where_generate_fills_the_cache_anew(limit: int, monkeypatch: pytest.MonkeyPatch):
    """Behind 20 tokens, 14 come: the cache is filled anew for the second of them (20), for the last (32), or never."""
    changed = {"original_max_position_embeddings": limit}
    settings = FAMILIES["phi3 with two rotations"] | {"rope_parameters": TWO_ROTATIONS | changed} | changed
    monkeypatch.setitem(FAMILIES, "phi3", settings)
    made = model("phi3")
    for batch, beams in ((1, 1), (3, 4)):
        expected, found, _ = both(made, batch, beams, padded=True)
        assert found == expected


def test_where_generate_forgets_the_prompt(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each token follows from the one before it alone: refused, and in `generate` itself measured with a warning."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_blocks": 1}
    parts = {"vision_config": small, "audio_config": small}
    monkeypatch.setitem(FAMILIES, "phi4_multimodal", FAMILIES["phi3 with two rotations"] | parts)
    made = model("phi4_multimodal")
    message = f"transformers {build.RELEASE[0]}.* forgets the prompt when phi4_multimodal passes 26 positions: use leng"
    with pytest.raises(Unsupported, match=message):
        both(made, 1, 1)
    expected, found, _ = both(made, 1, 1, max_new_tokens=7)
    assert found == expected
    ids, _ = prompts(1, padded=False)
    generated = made.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    alone = [int(made(generated[:, at : at + 1]).logits.argmax()) for at in range(26, 39)]
    assert generated[0, 27:].tolist() == alone

    folder = tmp_path / "forgets"
    made.config.save_pretrained(folder)
    common = "weights=random", "device=cpu", "precision=fp32", "lengths=20/14", "iterations=1", "warmup=1"
    done = bench("run", "-m", f"model={folder}", *common, "engine=eager,static,compiled", "num_beams=1", "results=out")
    assert done.code == 1, done.stderr
    with (bench.cwd / "out" / "results.csv").open() as file:
        found = {row["engine"]: row for row in csv.DictReader(file)}
    message = "forgets the prompt when phi4_multimodal passes 26 positions"
    assert message in found["eager"]["warnings"] and message in found["static"]["warnings"]
    assert found["compiled"]["status"] == "unsupported" and message in found["compiled"]["error"]

    monkeypatch.setattr(refill, "RELEASE", (5, 19))
    with pytest.raises(Unsupported, match=r"5.19 .* when phi3 .*: use a newer transformers \(5.20\), or lengths"):
        both(model("phi3 with two rotations"), 1, 1)


ENDS = [5, 7, 11, 13]
MANY = list(range(3, 40))


@pytest.mark.parametrize("family", ["llama", "gptj"])
@pytest.mark.parametrize(
    ("beams", "settings"),
    [
        (1, {"eos_token_id": MANY}),
        (3, {"eos_token_id": ENDS, "length_penalty": 1.3}),
        (3, {"eos_token_id": ENDS, "early_stopping": True}),
        (3, {"eos_token_id": MANY, "early_stopping": "never", "length_penalty": 0.5}),
        (4, {"eos_token_id": MANY, "length_penalty": -1.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [None, pytest.param({}, marks=pytest.mark.slow)], ids=["loop", "compiled"])
def test_sequences_end_where_those_of_generate_do(
    family: str, beams: int, settings: dict[str, Any], options: dict[str, Any] | None
):
    torch.compiler.reset()
    expected, found, _ = both(model(family), 2, beams, options=options, max_new_tokens=20, **settings)
    assert found == expected
    if beams == 1:
        assert len(found[0]) < 40  # all prompts have met an EOS
    torch.compiler.reset()


def test_one_graph_serves_all_lengths_that_fit():
    made = model("llama")
    ids, _ = prompts(2, False)
    config = GenerationConfig(max_new_tokens=30, num_beams=3, pad_token_id=0, eos_token_id=None)
    decoder = Decoder(made, Shape.of(2, 20, config), config)
    assert Shape.of(2, 64, config) == decoder.shape != Shape.of(2, 65, config)
    with torch.inference_mode():
        for length, new in ((20, 14), (7, 30), (20, 5)):
            config.max_new_tokens = config.min_new_tokens = new
            expected = made.generate(input_ids=ids[:, :length], generation_config=config)
            assert decoder.generate(ids[:, :length], None, new, lambda: None).tolist() == expected.tolist()


@pytest.mark.parametrize("family", ["llama", "gptj", "deepseek_v32", "diffllama", "qwen3_5_text"])
def test_attention_that_is_not_known_is_given_all_positions(family: str, monkeypatch: pytest.MonkeyPatch):
    """A family of tomorrow: its own attention, on what looks like transformers' static cache."""
    monkeypatch.setattr(own_attention, "takes_parts", lambda model: False)
    made = model(family)
    for batch, beams, padded in ((1, 1, False), (3, 4, True)):
        expected, found, decoder = both(made, batch, beams, padded)
        assert found == expected, (batch, beams)
        assert decoder.cache.whole
        assert not [method for method in decoder.cache.methods if not type(method.layer).__name__.endswith("Indexer")]
        assert {len(layer.keys) for layer in decoder.cache.layers} == {batch}


@pytest.mark.parametrize(("family", "least"), [("deepseek_v32", 17), ("mamba2", 17), ("qwen4_exp_text", 23)])
def test_a_transformers_with_which_tokens_differ_is_refused(family: str, least: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "RELEASE", (5, 13))
    reason = rf"needs transformers 5\.{least} or newer for {family}, found 5\.13: use engine=eager"
    with pytest.raises(Unsupported, match=reason):
        both(model(family), 1, 1)
    both(model("llama"), 1, 1)


def test_packed_weights_of_latents():
    """Nobody can read what a packed layer holds, but it can be applied."""

    class Packed(torch.nn.Module):
        def __init__(self, dense: torch.nn.Linear) -> None:
            super().__init__()
            self.register_buffer("codes", (dense.weight / 2).clone())

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ (self.codes * 2).T

    made = model("deepseek_v3")
    for layer in made.model.layers:
        layer.self_attn.kv_b_proj = Packed(layer.self_attn.kv_b_proj)
    expected, found, _ = both(made, 2, 3, padded=True)
    assert found == expected
    for layer in made.model.layers:
        layer.self_attn.kv_b_proj.bias = torch.ones(1)
    with pytest.raises(Unsupported, match="latents with a bias, as in DeepseekV3Attention"):
        both(made, 1, 1)


def test_an_indexer_that_asks_for_something_else_is_refused():
    keys = Index(Shared(Place(1, 2, 4, torch.device("cpu"), 1, False), 8, torch.zeros(1, 1, 8, 16)))
    scores = torch.matmul(torch.ones(2, 1, 3, 16), keys.transpose(-1, -2).float().unsqueeze(1))
    assert scores.shape == (2, 1, 3, 8 + 4)
    with pytest.raises(Unsupported, match=r"an indexer that asks for .*einsum.*: use engine=eager"):
        torch.einsum("rxhd,rtd->rxht", torch.ones(2, 1, 3, 16), keys)


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_the_compiled_step_gives_the_same_tokens(family: str):
    torch.compiler.reset()
    made = model(family)
    expected, found, _ = both(made, 2, 3, padded=True, options={})
    assert found == expected
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")  # BLOOM's own
@pytest.mark.filterwarnings(
    "ignore:Torchinductor does not support code generation for complex:UserWarning"
)  # Llama 4's
@pytest.mark.parametrize(("batch", "beams"), [(1, 1), (3, 1), (1, 4), (3, 4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compiled_gives_the_same_tokens(family: str, batch: int, beams: int):
    """What users run. Twelve minutes for all, two at a time; the same loop is compared uncompiled above."""
    torch.compiler.reset()
    expected, found, _ = both(model(family), batch, beams, padded=True, options={})
    assert found == expected
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")  # BLOOM's own
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_can_be_captured_for_all_lengths(family: str):
    """A size that is read from a tensor cannot be captured, and what depends on a length would stay as it was then.

    Where torch.compile would make another graph, nobody looks any more once the first one is launched by itself. And
    what is as long as the prompts' cache is there once for each prompt, never for each beam, but for scores.
    """
    torch.compiler.reset()
    ids, _ = prompts(2, False)
    config = GenerationConfig(max_new_tokens=4, num_beams=2, pad_token_id=0)
    shape = dataclasses.replace(Shape.of(2, 20, config), prompt=83)  # as long as nothing else
    decoder = Decoder(model(family), shape, config)
    assert not decoder.cache.whole or not decoder.cache.layers
    rows, capacity, total = 4, 83, decoder.cache.length
    heads = max(4, getattr(decoder.model.config, "index_n_heads", 4))
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    decoder.run = torch.compile(decoder.step, fullgraph=True, dynamic=False, backend=keep)
    with torch.inference_mode():
        for length, new in ((20, 4), (9, 3), (20, 4)):
            decoder.generate(ids[:, :length], None, new, lambda: None)
    (graph,) = graphs
    made = [node.meta.get("example_value") for node in graph.graph.nodes]
    assert not [value for value in made if isinstance(value, torch.SymInt)]
    long = [value.shape for value in made if isinstance(value, torch.Tensor) and {capacity, total} & {*value.shape}]
    assert not [shape for shape in long if len(shape) > 2 and shape[0] == rows and shape.numel() > rows * heads * total]
    assert long or family == "mamba2"
    torch.compiler.reset()


class Graphs(Cpu):
    """A device whose graphs are calls that are counted, or that cannot be captured."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__()
        object.__setattr__(self, "refusal", refusal)
        object.__setattr__(self, "launches", [])
        object.__setattr__(self, "captured", [])
        object.__setattr__(self, "allocated", {"now": 100.0, "peak": 100.0})

    def has_graphs(self) -> bool:
        return True

    def reset_peak_memory(self) -> None:
        self.allocated["peak"] = self.allocated["now"]

    def memory_in_use(self) -> float:
        return self.allocated["now"]

    def peak_memory(self) -> tuple[float, float]:
        return self.allocated["peak"], 1000.0

    def capture(self, work: Any) -> Any:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.captured.append(getattr(work, "__qualname__", "step"))
        self.allocated["peak"] = max(self.allocated["peak"], self.allocated["now"] + 42)  # while it is captured

        def replay() -> None:
            self.launches.append(1)
            work()

        return replay


@pytest.mark.parametrize("refusal", ["", "operation not permitted when stream is capturing\nand more"])
def test_from_the_second_step_on_a_step_is_one_launch(refusal: str):
    torch.compiler.reset()
    made, device = model("llama"), Graphs(refusal)
    ids, _ = prompts(2, False)
    config = GenerationConfig(max_new_tokens=6, pad_token_id=0, eos_token_id=None, min_new_tokens=6)
    with torch.inference_mode():
        expected = made.generate(input_ids=ids, generation_config=config)
        decoder = Decoder(made, Shape.of(2, 20, config), config, {}, device, capture_prompts=True)
        found = [decoder.generate(ids, None, 6, lambda: None) for _ in range(2)]
    assert [each.tolist() for each in found] == 2 * [expected.tolist()]
    assert len(device.launches) == (0 if refusal else 1 + 4 + 1 + 5)  # the first step is not
    why = "could not be captured (operation not permitted when stream is capturing): the host launches its kernels"
    said = tuple(f"{what} {why} one by one" for what in ("filling the prompt", "the step"))
    assert decoder.noticed == (said if refusal else ())
    torch.compiler.reset()


@pytest.mark.parametrize("capture", ["torch", "none"])
def test_other_ways_than_the_devices_graphs(capture: str):
    """torch.compile's modes hold no graph of a CPU, and the record says so; without any, nothing is wrong."""
    torch.compiler.reset()
    made, device = model("llama"), Graphs()
    ids, _ = prompts(2, False)
    config = GenerationConfig(max_new_tokens=6, pad_token_id=0, eos_token_id=None, min_new_tokens=6)
    options = torch._inductor.list_mode_options("reduce-overhead") if capture == "torch" else {}
    with torch.inference_mode():
        expected = made.generate(input_ids=ids, generation_config=config)
        decoder = Decoder(made, Shape.of(2, 20, config), config, options, device, capture=capture)
        found = [decoder.generate(ids, None, 6, lambda: None) for _ in range(2)]
    assert [each.tolist() for each in found] == 2 * [expected.tolist()]
    assert not device.captured
    said = ("torch.compile did not capture the step: the host launches its kernels one by one",)
    assert decoder.noticed == (said if capture == "torch" else ())
    torch.compiler.reset()


def test_settings_of_capturing():
    class Accelerated(Graphs):
        torch_type = "cuda"

    for capture in ("device", "torch", "none"):
        options = Compiled(capture=capture)._options(Accelerated())
        assert ("triton.cudagraphs" in options) == (capture == "torch")
    with pytest.raises(ConfigError, match=r"engine.capture 'devise'.*device"):
        Compiled(capture="devise")


def test_prompts_are_one_launch(monkeypatch: pytest.MonkeyPatch):
    torch.compiler.reset()
    made, device = model("llama"), Graphs()
    config = GenerationConfig(max_new_tokens=3, pad_token_id=0, eos_token_id=None, min_new_tokens=3)
    decoder = Decoder(made, Shape.of(2, 20, config), config, {}, device, capture_prompts=True)
    with torch.inference_mode():
        for seed, length in enumerate((20, 20, 9, 9, 20)):
            torch.manual_seed(seed)
            ids = torch.randint(3, VOCABULARY, (2, length))
            before = len(device.launches)
            found = decoder.generate(ids, None, 3, lambda: None)
            assert found.tolist() == made.generate(input_ids=ids, generation_config=config).tolist()
            assert len(device.launches) - before == (2 if seed == 0 else 3)  # the first step of all is none
        assert sum("_capture_prompt" in name for name in device.captured) == 3  # each time the length is another
        before = len(device.launches)
        padded, mask = prompts(2, True)
        expected = made.generate(input_ids=padded, attention_mask=mask, generation_config=config)
        assert decoder.generate(padded, mask, 3, lambda: None).tolist() == expected.tolist()
        monkeypatch.setattr(step, "CAPTURED", 2 * 9 - 1)
        decoder.generate(ids[:, :9], None, 3, lambda: None)
    assert len(device.launches) - before == 2 * 2  # neither with a mask nor with too many tokens
    assert decoder.unseen_memory == 42
    for usual in ((device, False), (Cpu(), True)):
        assert not Decoder(made, Shape.of(2, 20, config), config, {}, *usual).captures_prompts
    torch.compiler.reset()


@pytest.mark.parametrize("refusal", ["", "not permitted"])
def test_kernels_are_timed_in_a_graph_where_the_device_has_them(refusal: str, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    device = Graphs(refusal)
    monkeypatch.setattr(device, "once", lambda work: (work(), 0.02)[1], raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr(tuning.devices, "get", lambda kind: lambda: device)
    triton = types.SimpleNamespace(testing=types.SimpleNamespace(do_bench=lambda kernel, quantiles: [7.0, 6.0, 8.0]))
    monkeypatch.setitem(sys.modules, "triton", triton)
    before = tuning.spent()
    times = tuning.milliseconds(partial(calls.append, "kernel"), (0.5, 0.2, 0.8))
    assert times == ([7.0, 6.0, 8.0] if refusal else pytest.approx(3 * [2.0]))  # 10 launches took 20 ms
    assert len(calls) == (1 if refusal else 1 + 5 * 10)
    assert before < tuning.spent() < before + 60


def test_without_tuning_the_first_configuration_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch):
    """As Triton's autotuner uses what it is given."""
    given: dict[str, Any] = {}

    def autotune(configs: list[str], key: list[str], **options: Any) -> None:
        given.update(configs=configs, key=key, **options)

    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(autotune=autotune))
    configs = ["large", "middle", "small"]
    tuning.autotuned(configs, ["N"], fits=lambda configs, named, **fixed: configs[named["first"] + fixed["BM"] :])
    assert (given["configs"], given["key"], given["cache_results"]) == (configs, ["N"], True)
    tried = given["prune_configs_by"]["early_config_prune"]
    assert tried(configs, {"first": 1}, BM=0) == ["middle", "small"]
    monkeypatch.setattr(tuning, "enabled", False)
    assert tried(configs, {"first": 1}, BM=0) == ["middle"]
    tuning.autotuned(configs, ["N"])
    assert given["prune_configs_by"]["early_config_prune"](configs, {}) == ["large"]
    before = tuning.spent()
    assert given["do_bench"](lambda: pytest.fail("nothing is timed"), (0.5, 0.2, 0.8)) == [0.0] * 3
    assert tuning.spent() == before


def test_sampling_draws_from_the_distribution():
    made = model("llama")
    ids, _ = prompts(1, False)
    draws = 1500
    config = GenerationConfig(max_new_tokens=1, do_sample=True, top_k=6, temperature=1.7, pad_token_id=0)
    torch.manual_seed(0)
    with torch.inference_mode():
        decoder = Decoder(made, Shape.of(draws, 20, config), config)
        found = decoder.generate(ids.expand(draws, -1), None, 1, lambda: None)[:, -1]
        top = (made(ids).logits[0, -1] / 1.7).topk(6)
    counts = torch.stack([(found == token).sum() for token in top.indices])
    assert counts.sum() == draws
    wanted = top.values.softmax(-1) * draws
    assert float(((counts - wanted) ** 2 / wanted).sum()) < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_scores_that_are_no_numbers_are_seen():
    made = model("llama")
    ids, _ = prompts(1, False)
    for beams in (1, 2):
        config = GenerationConfig(max_new_tokens=3, num_beams=beams, pad_token_id=0)
        decoder = Decoder(made, Shape.of(1, 20, config), config)
        with torch.inference_mode():
            decoder.generate(ids, None, 3, lambda: None)
            assert bool(decoder.choice.finite)
            made.lm_head.weight[7] = torch.nan
            decoder.generate(ids, None, 3, lambda: None)
            assert not bool(decoder.choice.finite)
            made.lm_head.weight[7] = 0.0


def test_a_family_with_other_arguments_to_attention_is_refused():
    with pytest.raises(Unsupported, match="gives its attention position_bias"):
        attention.attend(torch.nn.Linear(1, 1), torch.zeros(1, 1, 1, 8), None, None, None, position_bias=torch.zeros(1))


@pytest.mark.parametrize("latent", [False, True])
def test_accelerators_have_the_kernel(latent: bool, monkeypatch: pytest.MonkeyPatch):
    """Heads of 512, of values or of latents: these get queries with both parts, and what comes of them is expanded."""
    asked: list[torch.Size] = []

    def kernel(query: torch.Tensor, *_: Any) -> torch.Tensor:
        asked.append(query.shape)
        return query.squeeze(2)[..., :512]

    monkeypatch.setattr(attention, "kernel", kernel)
    with torch.device("meta"):
        heads, sizes = (1, (512, 64)) if latent else (2, (512, 512))
        layer = torch.nn.Module()
        layer.kv_b_proj, layer.qk_nope_head_dim, layer.v_head_dim = (
            torch.nn.Linear(512, 8 * (40 + 24), bias=False),
            40,
            24,
        )
        kept = [torch.zeros(rows, heads, length, size) for rows, length in ((4, 1), (2, 64), (4, 64)) for size in sizes]
        ancestry, one, first = (torch.zeros(shape, dtype=torch.int32) for shape in ((4, 64), (1,), (2,)))
        parts = attention.Parts(*kept, ancestry, one, one, first, 8, False, latent=latent)
        query = torch.zeros(4, 8, 1, 40 + 64 if latent else 512)
        found, _ = attention.attend(layer, query, parts, parts, None)
    assert asked == [(4, 8, 1, 512 + 64 if latent else 512)]
    assert found.shape == (4, 1, 8, 24 if latent else 512)


def test_attention_that_is_not_known_reads_the_cache_in_one_piece(monkeypatch: pytest.MonkeyPatch):
    """A family that nobody has looked at."""
    monkeypatch.setattr(own_attention, "REPLACED", {})
    made = model("gptj")
    for batch, beams in ((3, 1), (2, 4)):
        expected, found, decoder = both(made, batch, beams, padded=True)
        assert decoder.cache.whole and not decoder.cache.methods
        assert found == expected


def test_alibi_counts_twice_in_falcons_eager_attention():
    made = model("falcon with alibi")
    once = both(made, 3, 4, padded=True)[0]
    made.config._attn_implementation = "eager"
    expected, found, decoder = both(made, 3, 4, padded=True)
    assert not decoder.cache.whole
    assert found == expected != once


def test_what_has_no_place_in_the_cache_is_refused(monkeypatch: pytest.MonkeyPatch):
    config = GenerationConfig(max_new_tokens=2)
    made = model("llama")
    made.config.layer_types = ["full_attention", "hybrid"]
    with pytest.raises(Unsupported, match=r"no cache for LinearAttentionAndStaticFull.* of llama: use engine=eager"):
        Decoder(made, Shape.of(1, 20, config), config)
    made = model("llama")
    given = made.forward
    monkeypatch.setattr(made, "forward", lambda past_key_values, **others: given(**others))
    with torch.inference_mode(), pytest.raises(Unsupported, match=r"llama does not use the cache.*: use engine=eager"):
        Decoder(made, Shape.of(1, 20, config), config).generate(prompts(1, False)[0], None, 2, lambda: None)
    made = model("llama")
    monkeypatch.setattr(type(made), "_can_compile_fullgraph", False)
    with pytest.raises(Unsupported, match="transformers has no static cache for llama: use engine=eager"):
        Decoder(made, Shape.of(1, 20, config), config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tp": "deepspeed", "world_size": 2}, "engine=compiled runs on one device: use engine=eager with tp"),
        (
            {"workload": Generate(8, 8, num_beams=2, decoding="sample")},
            "engine=compiled does not sample within beam search: use engine=eager",
        ),
        ({}, None),
    ],
)
def test_what_it_cannot_do_is_known_before(changes: dict[str, Any], reason: str | None):
    fields: dict[str, Any] = {"model": Model("tiny", weights="random"), "workload": Generate(8, 8), **changes}
    asked = Cell(engine=Choice("compiled"), **fields)
    assert engines.get("compiled")().unsupported(asked) == reason


@pytest.mark.alone
def test_through_the_command(bench: Any):
    """Compiled once for two lengths of one bucket, which the record says, and hardly at all by the next process."""
    common = ("run", "engine=compiled", "device=cpu", "num_beams=2", "warmup=1", "precision=bf16",
              "model.architecture.num_hidden_layers=1")  # fmt: skip
    done = bench(*common, "lengths=[32/64,40/50]", "iterations=2", "results=out")
    assert done.code == 0, done.stderr
    with (bench.cwd / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert [float(row["compiled_graphs"]) for row in rows] == [1, 0]
    assert [float(row["tuning_s"]) for row in rows] == [0, 0]  # Triton's kernels only
    assert float(rows[0]["compile_s"]) > 10 * float(rows[1]["compile_s"])
    assert float(rows[0]["tpot_over_floor"]) > 1
    assert "× floor" in (bench.cwd / "out" / "report.md").read_text()
    again = bench(*common, "lengths=32/64", "iterations=1", "results=again")
    assert again.code == 0, again.stderr
    with (bench.cwd / "again" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["compile_s"]) < float(rows[0]["compile_s"]) / 2


def test_all_caches_of_compiled_code_are_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Inductor tells Triton where, but not when it finds everything in its own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    engines.get("compiled")().imports()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "bench" / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "bench" / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    engines.get("compiled")().imports()
    assert os.environ["TRITON_CACHE_DIR"] == "elsewhere"


def test_the_compiler_knows_its_assembler_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    class Own(Cpu):
        def compiler_variables(self) -> dict[str, str]:
            return {"TRITON_PTXAS_PATH": "of torch"}

    monkeypatch.setenv("TRITON_PTXAS_PATH", "")  # so that it is put back
    monkeypatch.delenv("TRITON_PTXAS_PATH")
    monkeypatch.setattr(Eager, "load", lambda *_: os.environ["TRITON_PTXAS_PATH"])
    compiled, cell = engines.get("compiled")(), Cell(model=Model("tiny"), workload=Generate(8, 4))
    assert compiled.load(cell, Own()) == "of torch"
    monkeypatch.setenv("TRITON_PTXAS_PATH", "the user's")
    assert compiled.load(cell, Own()) == "the user's"


def test_other_transformers_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "RELEASE", (5, 3))
    with pytest.raises(Unsupported, match=r"needs transformers 5\.4 or newer, found 5\.3"):
        engines.get("compiled")().imports()


@pytest.mark.parametrize("kernel", ["attention", "linear", "int4"])
def test_kernels_in_tritons_interpreter(kernel: str, tmp_path: Path):
    """Against plain torch; runs where Triton is installed, on any machine."""
    pytest.importorskip("triton", reason="needs Triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.triton_kernels", kernel]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
