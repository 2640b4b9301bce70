"""engine=compiled on every causal LM of transformers that says it has a static cache, as small as it can be made.

`pytest -m slow -rs -k loop tests/test_every_family.py` takes a few minutes, and says why families are left out;
`-k compiled` takes more than an hour. `tests/hardware` compares the same on an accelerator.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bench.compiled.step import Decoder, Shape
from bench.devices.base import Device
from bench.devices.cpu import Cpu
from bench.models import build, cost, kept
from bench.models.spec import Model

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SIZES = {
    "vocab_size": 199, "vocab_size_per_layer_input": 199,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "decoder_layers", "encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "attention_heads", "n_head", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    "num_key_value_heads": 2, "head_dim": 16, "rotary_dim": 8, "sliding_window": 8, "num_experts_per_tok": 2,
    "attention_chunk_size": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 16, "qk_nope_head_dim": 24, "v_head_dim": 16,
    "index_topk": 8, "index_head_dim": 16, "index_n_heads": 2,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_num_heads": 4, "mamba_head_dim": 32,
    "use_sliding_window": True, "ssm_state_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""What makes a model small, under the names that configurations have for it; windows, chunks and choices matter."""
PARTICULAR: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 48, "swa_kv_lora_rank": 32,
        "swa_head_dim": 40, "swa_qk_nope_head_dim": 24, "swa_v_head_dim": 16, "shared_experts_intermediate_size": 32,
    },
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
    },
    "gemma4_text": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": [2, 2]},
    "kimi_linear": {"num_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"], "index_block_size": 3, "index_topk_blocks": 3,
    },
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 2, "ple_layer_ids": [1], "ple_embed_dim": 32, "ngram_vocab_size_base": 100,
        "heads_per_ngram": 2, "eos_token_id": 2,
    },
}  # fmt: skip
"""What a family needs beside them."""
WINDOWED = {"cohere_compass_text", "dots1", "laguna", "mellum", "qwen2", "qwen2_moe", "qwen3", "smollm3"}
"""Families whose code knows windows, and whose configuration has none unless told."""
LEAVE_OUT: tuple[set[str], ...] = (
    set(), {"head_dim"}, {"num_key_value_heads"}, {"num_key_value_heads", "head_dim"},
    {"num_hidden_layers", "layer_types"}, {"num_hidden_layers", "layer_types", "head_dim"},
)  # fmt: skip
"""Sizes that do not go together in some families: the first set without which a model can be made is taken."""
NONE_BY_DEFAULT = {"num_key_value_heads", "head_dim"}
MOST_PARAMETERS = 30_000_000
PICTURES = {"gemma3n": 300_000_000}
"""Parameters of a part for pictures that cannot be made smaller."""
NOT_MADE = {"gemma3n", "gemma4_assistant", "gemma4_unified_assistant"}
"""The first needs timm for its pictures (`gemma3n_text` does not); the others draft for another model."""
WITHOUT_POSITIONS = {"whisper"}
"""`generate` gives these no positions, so padding moves them."""


def shrunk(usual: Any, left_out: set[str]) -> Any:
    """A configuration like `usual`, of a small model with a layer of each kind."""
    has = {name for name, value in usual.to_dict().items() if value is not None or name in NONE_BY_DEFAULT}
    sizes = {name: size for name, size in SIZES.items() if name in has}
    if "kv_lora_rank" in has:
        sizes["num_key_value_heads"] = SIZES["num_attention_heads"]
    kinds = list(dict.fromkeys(getattr(usual, "layer_types", None) or ()))
    if len(kinds) > 1 and "num_hidden_layers" in has:
        sizes |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    if usual.model_type in WINDOWED:
        sizes |= {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, "sliding_window": 8}
    sizes |= PARTICULAR.get(usual.model_type, {}) | {"pad_token_id": 0, "is_decoder": True}
    for name in has:
        if name.endswith("_config") and isinstance(getattr(usual, name), transformers.PreTrainedConfig):
            sizes[name] = shrunk(getattr(usual, name), left_out).to_dict()
    return type(usual)(**{name: size for name, size in sizes.items() if name not in left_out})


def model_class(family: str) -> Any:
    """The class of the family's models; skips those without a static cache."""
    try:
        of = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    except ModuleNotFoundError as error:
        pytest.skip(f"{family}: {error}")
    if not getattr(of, "_can_compile_fullgraph", False):
        pytest.skip(f"transformers has no static cache for {family}")
    return of


def small(family: str, kind: Any, **inputs: torch.Tensor) -> Any:
    """A model of the family for which `generate` takes `inputs`; skips `NOT_MADE` with the reason."""
    reasons = []
    for left_out in LEAVE_OUT:
        try:
            usual = AutoConfig.for_model(family)
            if not isinstance(usual, kind.config_class):  # that of a model for pictures, too
                usual = usual.get_text_config(decoder=True)
            config = shrunk(usual, left_out)
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in kind(config).parameters())
            if count > MOST_PARAMETERS + PICTURES.get(family, 0):
                raise ValueError(f"{count} parameters")
            torch.manual_seed(0)
            made = kind(config).to(torch.float32).requires_grad_(False).eval()
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.15)
            made.generate(**inputs, max_new_tokens=2, pad_token_id=0)
        except Exception as error:  # each family checks its configuration in its own way
            reasons.append(" ".join(str(error).split()))
            continue
        return made
    reason = f"{family} cannot be made small: {reasons[0]}"
    assert family in NOT_MADE, reason
    pytest.skip(reason)


LEAST_AND_MOST, OTHERS = ((1, 1), (3, 4)), ((3, 1), (1, 4))
WAYS = {"loop": (False, LEAST_AND_MOST + OTHERS), "compiled": (True, LEAST_AND_MOST), "compiled-others": (True, OTHERS)}
"""Whether the step is compiled, and for which batches and beams: two at a time, because compiling takes long."""


def compare(
    family: str, kind: str, ways: tuple[tuple[int, int], ...], options: dict[str, Any] | None, device: Device
) -> None:
    """fp32 on that kind of device, batches with padding, greedy and beams as in `ways`; skips what cannot be compared.

    With `options` the step is compiled.
    """
    of = model_class(family)
    ids = torch.randint(3, SIZES["vocab_size"], (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for number in range(0 if family in WITHOUT_POSITIONS else 3):
        mask[number, : 3 * number] = 0
    ids *= mask
    made = build.ready(small(family, of, input_ids=ids, attention_mask=mask)).to(kind)
    for batch, beams in ways:
        torch.compiler.reset()
        config = GenerationConfig(
            num_beams=beams, do_sample=False, pad_token_id=0, eos_token_id=None, max_new_tokens=12, min_new_tokens=12
        )
        given = ids[:batch].to(kind), mask[:batch].to(kind)
        with torch.inference_mode():
            expected = made.generate(input_ids=given[0], attention_mask=given[1], generation_config=config)
            decoder = Decoder(made, Shape.of(batch, 20, config), config, options, device)
            found = [decoder.generate(*given, 12, lambda: None).tolist() for _ in range(2)]
        assert found == [expected.tolist()] * 2, (batch, beams)
        assert not decoder.noticed
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # each family has its own
@pytest.mark.parametrize(("compiled", "ways"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate(family: str, compiled: bool, ways: tuple[tuple[int, int], ...]):
    compare(family, "cpu", ways, {} if compiled else None, Cpu())


@pytest.mark.filterwarnings("ignore")  # each family has its own
@pytest.mark.parametrize("family", FAMILIES)
def test_the_floor_is_known(family: str):
    """A copy without data says what the model itself leaves in transformers' cache after one token.

    Weights are all but tables of which a token reads rows, and experts that it is not sent to: here half of them.
    """
    of = model_class(family)
    ids = torch.full((1, 1), 7)
    made = small(family, of, input_ids=ids, attention_mask=torch.ones_like(ids))
    cache = transformers.DynamicCache(config=made.config)
    name = "cache_params" if "cache_params" in inspect.signature(made.forward).parameters else "past_key_values"
    with torch.inference_mode():
        made(input_ids=ids, use_cache=True, **{name: cache})
    parts = [getattr(layer, part, None) for layer in cache.layers for part in (*kept.PARTS, *kept.INDEX)]
    states = [state for layer in cache.layers for kind in ("conv_states", "recurrent_states")
              for state in getattr(layer, kind, {}).values()]  # fmt: skip
    found = kept.of(made)
    assert found is not None
    assert found.values_per_token == sum(part.numel() for part in parts if part is not None)
    assert found.state_bytes == sum(state.nbytes for state in states if state is not None)
    assert found.values_per_token or found.state_bytes

    costs = cost.of(Model(name=family), made, 4)
    assert (costs.kv_bytes_per_token, costs.state_bytes) == (4 * found.values_per_token, found.state_bytes)
    text = [made] if made.config is made.config.get_text_config(decoder=True) else [made.get_decoder(), made.lm_head]
    weights = {id(each): (name, each.nbytes) for model in text for name, each in model.named_parameters()}
    experts = sum(size for name, size in weights.values() if ".experts." in name)
    looked_up = [each.weight for each in made.modules() if isinstance(each, torch.nn.Embedding)]
    tables = {id(table) for table in looked_up if table is not made.get_output_embeddings().weight}
    assert costs.weight_bytes == sum(size for number, (_, size) in weights.items() if number not in tables)
    assert (costs.expert_bytes, costs.chosen_experts) == (experts, 0.5 if experts else 1)
