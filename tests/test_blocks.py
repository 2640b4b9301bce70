"""engine=compiled on MiniMax M3's sparse layers with left padding: the tokens of `generate`, whatever is padding."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bench.compiled import attention, blocks
from bench.compiled.attention import Blocks
from bench.compiled.step import Decoder, Shape
from tests.test_compiled import FAMILIES, model, prompts


class SameForSameKeys(TorchFunctionMode):
    """Products as in an indexer, that are rounded in one way for all positions: BLAS has other ways at the edges."""

    def __torch_function__(
        self, function: Any, _: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if function is not torch.matmul:
            return function(*arguments, **(named or {}))
        query, key = arguments
        return (query[..., None, :] * key.transpose(-1, -2)[..., None, :, :]).sum(-1)


BLOCKS = [(3, 3, 1), (4, 2, 1), (2, 1, 0), (8, 4, 2)]
"""Size of those of MiniMax M3, how many are chosen, and how many of the latest are always chosen."""


def with_blocks(size: int, best: int, latest: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    names = "index_block_size", "index_topk_blocks", "index_local_blocks"
    settings = dict(zip(names, (size, best, latest), strict=True))
    monkeypatch.setitem(FAMILIES, "minimax_m3_vl_text", FAMILIES["minimax_m3_vl_text"] | settings)
    return model("minimax_m3_vl_text")


def padded_otherwise(padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [2, 20]; the second prompt starts with `padding`."""
    ids, mask = prompts(2, padded=False)
    mask[1, :padding] = 0
    return ids * mask, mask


@pytest.mark.parametrize(("size", "best", "latest"), BLOCKS)
@pytest.mark.parametrize("beams", [1, 3])
def test_left_padding_where_blocks_are_chosen_for_heads(
    size: int, best: int, latest: int, beams: int, monkeypatch: pytest.MonkeyPatch
):
    """Padding has scores, too, and is all that there is for rows that are mostly padding; from none to all but one."""
    made = with_blocks(size, best, latest, monkeypatch)
    config = GenerationConfig(max_new_tokens=14, num_beams=beams, do_sample=False, pad_token_id=0, eos_token_id=None)
    decoder = Decoder(made, Shape.of(2, 20, config), config)
    for padding in range(20):
        ids, mask = padded_otherwise(padding)
        with torch.inference_mode():
            found = decoder.generate(ids, mask, 14, lambda: None)
            with SameForSameKeys():
                expected = made.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        assert found.tolist() == expected.tolist(), padding


@pytest.mark.parametrize("answer", ["mean", "zero", "no mask"])
def test_what_attention_gives_for_nothing_but_padding(answer: str, monkeypatch: pytest.MonkeyPatch):
    """Tried on the device: kernels give the mean of all values, 0, or what they would without a mask."""

    def kernel(_: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **__: Any):
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
        weights = ((query @ key.transpose(-1, -2)) * 0.25).softmax(-1)
        if (mask < -1e9).all():
            weights = {"mean": torch.full_like(weights, 1 / 64), "zero": 0 * weights, "no mask": weights}[answer]
        return (weights @ value).transpose(1, 2), None

    made = model("minimax_m3_vl_text")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", kernel)
    otherwise = blocks.unattended(made)

    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    kept = [draw(rows, 2, length, 16) for rows, length in ((2, 1), (2, 64), (2, 8)) for _ in range(2)]
    ancestry = torch.arange(2, dtype=torch.int32)[:, None].expand(2, 8)
    length, step, first = (torch.tensor(values, dtype=torch.int32) for values in ([40], [3], [38, 0]))
    parts, query = attention.Parts(*kept, ancestry, length, step, first, 8, False), draw(2, 4, 1, 16)
    places = torch.zeros(2, 2, 72, dtype=torch.bool)
    places[:, 0, 39] = places[1, 1, 5] = True  # the first row's second group has nothing
    found, _ = attention.attend(None, query, parts, parts, None, 0.25, block_indices=Blocks(places, otherwise))

    prompt_keys, prompt_values, own_keys, own_values = kept[2:]
    keys = torch.cat([prompt_keys[:, :, :40], own_keys[:, :, :4]], dim=2)
    values = torch.cat([prompt_values[:, :, :40], own_values[:, :, :4]], dim=2)
    every = scaled_dot_product_attention(query, keys, values, scale=0.25, enable_gqa=True)[0, 2:, 0]
    means = values[0, 1].mean(0).expand(2, -1)
    expected = {"mean": means, "zero": torch.zeros(2, 16), "no mask": every}[answer]
    torch.testing.assert_close(found[0, 0, 2:], expected)
    torch.testing.assert_close(found[0, 0, :2], values[0, 0, 39].expand(2, -1))
    torch.testing.assert_close(found[1, 0, 2:], values[1, 1, 5].expand(2, -1))
