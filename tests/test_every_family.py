"""engine=compiled on every causal LM of transformers that says it has a static cache, as small as it can be made.

`pytest -m slow -rs tests/test_every_family.py` takes a few minutes, and says why families are left out. The loop is not
compiled here: `test_compiled.py` does that for the families that were looked at one by one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bench.compiled.step import Decoder, Shape
from bench.errors import Unsupported
from bench.models import build

SIZES = {
    "vocab_size": 199,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "attention_heads", "n_head", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 128),
    "num_key_value_heads": 2, "head_dim": 16, "rotary_dim": 8, "sliding_window": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""What makes a model small, under the names that configurations have for it."""
LEAVE_OUT: tuple[set[str], ...] = (
    set(), {"head_dim"}, {"num_key_value_heads", "head_dim"}, {"num_hidden_layers"}, {"num_hidden_layers", "head_dim"},
)  # fmt: skip
"""Sizes that do not go together in some families: the first set without which a model can be made is taken."""
NONE_BY_DEFAULT = {"num_key_value_heads", "head_dim"}
MOST_PARAMETERS = 30_000_000
REFUSED = {
    **dict.fromkeys(("deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "diffllama"), "take the cache apart"),
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), "no cache for indexed_attention"),
    **dict.fromkeys(("jamba", "nemotron_h", "olmo_hybrid", "qwen3_5_text"), "no cache for linear_attention"),
    "lfm3": "no cache for conv",
    "llama4_text": "no cache for chunked_attention",
    "mimo_v2_flash": "needs keys and values of one size",
}
"""Families that the engine does not run (transformers 5.23), and a part of what it says. Others are failures."""
WITHOUT_POSITIONS = {"whisper"}
"""`generate` gives these no positions, so padding moves them."""


def small(family: str, kind: Any, **inputs: torch.Tensor) -> Any:
    """A model of the family for which `generate` takes `inputs`; skips with the reason when none is small enough."""
    reason = "no configuration"
    for left_out in LEAVE_OUT:
        try:
            usual = AutoConfig.for_model(family)
            has = {name for name, value in usual.to_dict().items() if value is not None or name in NONE_BY_DEFAULT}
            sizes = {name: size for name, size in SIZES.items() if name in has - left_out}
            config = type(usual)(**sizes | {"pad_token_id": 0, "is_decoder": True})
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in kind(config).parameters())
            if count > MOST_PARAMETERS:
                raise ValueError(f"{count} parameters")
            torch.manual_seed(0)
            made = kind(config).to(torch.float32).requires_grad_(False).eval()
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.15)
            made.generate(**inputs, max_new_tokens=2, pad_token_id=0)
        except Exception as error:  # each family checks its configuration in its own way
            reason = str(error).strip().partition("\n")[0]
            continue
        return made
    pytest.skip(f"{family} cannot be made small: {reason}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # each family has its own
@pytest.mark.parametrize("family", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_tokens_are_those_of_generate_or_the_family_is_refused(family: str):
    try:
        kind = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    except ModuleNotFoundError as error:
        pytest.skip(f"{family}: {error}")
    if not getattr(kind, "_can_compile_fullgraph", False):
        pytest.skip(f"transformers has no static cache for {family}")
    ids = torch.randint(3, SIZES["vocab_size"], (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for number in range(0 if family in WITHOUT_POSITIONS else 3):
        mask[number, : 3 * number] = 0
    ids *= mask
    made = build.ready(small(family, kind, input_ids=ids, attention_mask=mask))
    for batch, beams in ((1, 1), (3, 1), (1, 4), (3, 4)):
        config = GenerationConfig(
            num_beams=beams, do_sample=False, pad_token_id=0, eos_token_id=None, max_new_tokens=12, min_new_tokens=12
        )
        given = ids[:batch], mask[:batch]
        with torch.inference_mode():
            expected = made.generate(input_ids=given[0], attention_mask=given[1], generation_config=config)
            try:
                decoder = Decoder(made, Shape.of(batch, 20, config), config)
                found = [decoder.generate(*given, 12, lambda: None).tolist() for _ in range(2)]
            except Unsupported as error:
                assert family in REFUSED and REFUSED[family] in str(error)
                assert str(error).endswith("use engine=eager")
                pytest.skip(str(error))
        assert found == [expected.tolist()] * 2, (batch, beams)
    assert family not in REFUSED
