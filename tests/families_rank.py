"""One rank of the family test: every family whole and split, on the CPU in fp32. The first rank writes what it found.

Usage, under a launcher of ranks: families_rank.py TP OUT FAMILY...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from bench.devices.cpu import Cpu
from bench.errors import Unsupported
from bench.models import build, noise
from bench.models.spec import Model
from bench.ranks import Ranks
from bench.tensor_parallel import tensor_parallel
from bench.tensor_parallel.base import layers

COMMON = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GATED = {**COMMON, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
         "intermediate_size": 256, "max_position_embeddings": 256, "tie_word_embeddings": False}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "mistral": {**GATED, "sliding_window": None},
    "qwen2": GATED,
    "qwen3": {**GATED, "head_dim": 16},
    "phi3": GATED,
    "glm": {**GATED, "head_dim": 16},
    "gptj": {**COMMON, "n_embd": 128, "n_layer": 2, "n_head": 8, "n_positions": 256, "rotary_dim": 8,
             "tie_word_embeddings": False},
    "opt": {**COMMON, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "ffn_dim": 256,
            "max_position_embeddings": 256, "word_embed_proj_dim": 128},
    "bloom": {**COMMON, "hidden_size": 128, "n_layer": 2, "n_head": 8},
}  # fmt: skip
TOKENS = 12


def model(family: str) -> Model:
    """A tiny model of a family, with random weights."""
    architecture = json.dumps({"model_type": family, **FAMILIES[family]})
    return Model(family, weights="random", architecture=architecture)


@torch.inference_mode()
def answers(loaded: Any) -> tuple[torch.Tensor, list[Any], list[Any]]:
    """Logits of two prompts, and the tokens that greedy and beam search make of them."""
    ids = torch.randint(3, 512, (2, 12), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    loaded.generation_config.update(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    greedy = loaded.generate(input_ids=ids, attention_mask=mask, num_beams=1)
    beams = loaded.generate(input_ids=ids, attention_mask=mask, num_beams=4)
    return loaded(ids, attention_mask=mask).logits, greedy.tolist(), beams.tolist()


def compare(family: str, tp: str) -> dict[str, Any]:
    """The family split in two against itself whole."""
    device = torch.device("cpu")
    whole = build.load(model(family), torch.float32, device, seed=3)
    logits, greedy, beams = answers(whole)
    sharded = tensor_parallel.get(tp)().load(model(family), torch.float32, device, seed=3, kv_bytes=4)
    split_logits, split_greedy, split_beams = answers(sharded.model)
    return {
        "difference": float((split_logits - logits).abs().max()),
        "scale": float(logits.abs().max()),
        "greedy": split_greedy == greedy,
        "beams": split_beams == beams,
        "distinct": len({token for row in greedy for token in row[12:]}),
        "share": layers(sharded.model) / layers(whole),
    }


def main(tp: str, out: str, *families: str) -> None:
    """Run the families one after the other, in one process group."""
    noise.STD = 0.1  # at 0.02 the layers of so small a model would have no say in its answers
    ranks = Ranks.of("mpirun", Path(out).parent, os.environ)
    ranks.begin()
    ranks.join(Cpu())
    tensor_parallel.get(tp)().prepare()
    found = {}
    for family in families:
        try:
            found[family] = compare(family, tp)
        except Unsupported as error:
            found[family] = {"unsupported": str(error)}
    if ranks.rank == 0:
        Path(out).write_text(json.dumps(found, indent=1))
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
