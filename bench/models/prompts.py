"""Prompts of an exact number of tokens. Worker side: imports torch."""

from __future__ import annotations

from importlib import resources

import torch

from ..errors import first_line
from .spec import Model


def prompts(
    model: Model, vocab_size: int, input_tokens: int, batch_size: int, seed: int
) -> tuple[torch.Tensor, list[str]]:
    """Token ids of `batch_size` different prompts, int64 [batch_size, input_tokens] on the CPU, and warnings.

    Real weights read English prose, each row from another place in it, after the BOS token where the tokenizer puts
    one. Random weights, and real ones without a tokenizer (that is the warning), read random ids without special ones.
    """
    if model.weights == "random":
        return _random(model, vocab_size, input_tokens, batch_size, seed), []
    try:
        return _prose(model, input_tokens, batch_size, seed), []
    except Exception as error:  # whatever a tokenizer's files, packages or remote code raise
        warning = f"prompts are random token ids, the tokenizer of {model.name} cannot be loaded: {first_line(error)}"
        return _random(model, vocab_size, input_tokens, batch_size, seed), [warning]


def _random(model: Model, vocab_size: int, input_tokens: int, batch_size: int, seed: int) -> torch.Tensor:
    usable = torch.ones(vocab_size, dtype=torch.bool)
    for field, value in model.config.items():
        if field.endswith("_token_id"):
            for token in value if isinstance(value, list) else [value]:
                if isinstance(token, int) and 0 <= token < vocab_size:
                    usable[token] = False
    ids = usable.nonzero().squeeze(1)
    generator = torch.Generator("cpu").manual_seed(seed)
    return ids[torch.randint(len(ids), (batch_size, input_tokens), generator=generator)]


def _prose(model: Model, input_tokens: int, batch_size: int, seed: int) -> torch.Tensor:
    from .build import tokenizer as tokenizer_of

    tokenizer = tokenizer_of(model)
    text = resources.files(__package__).joinpath("prose.txt").read_text(encoding="utf-8")
    ids: list[int] = tokenizer(text)["input_ids"]
    start = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    special = set(tokenizer.all_special_ids)
    body = torch.tensor([token for token in ids if token not in special], dtype=torch.int64)
    step = max(1, len(body) // batch_size)
    rows = []
    for row in range(batch_size):
        places = (torch.arange(input_tokens - len(start)) + seed + row * step) % len(body)
        rows.append(torch.cat([torch.tensor(start, dtype=torch.int64), body[places]]))
    return torch.stack(rows)
