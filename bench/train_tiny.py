"""Train `tiny-trained`: `python -m bench.train_tiny FOLDER` makes the files that bench ships in models/tiny_trained.

A Llama of 50,000 parameters learns to read the passages of `passages.py`, on one processor thread whatever the
machine has, so that the same release of torch gives the same weights.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import passages

STEPS = 420
BATCH = 32
QUESTIONS = 4
"""Sentences with an answer per training text."""
PEAK_RATE = 2e-3
DRILLS = 0.3
"""Share of the steps that are drills; passages follow."""
OTHER_WORDS = 0.1
"""Weight of a word that is no answer: most of them cannot be predicted."""
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,  # with 0.02 attention stays flat for a thousand steps
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: each word of the passages is one token, any other text goes by its bytes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator((word for word in sorted(set(passages.words())) for _ in range(2)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|end|>", eos_token="<|end|>")


def drill(words: PreTrainedTokenizerFast, seed: int) -> tuple[list[int], list[float]]:
    """Pairs of a first word and a second, then the same pairs in other orders: ids, and weights of the second words.

    This is all that reading a passage takes, far denser: without it the model guesses for ten times as many steps.
    """
    chance = random.Random(seed)
    firsts = (*passages.FIRST_NAMES, *passages.COLOURS)
    seconds = (*passages.LAST_NAMES, *passages.THINGS)
    count = chance.randint(3, 8)
    pairs = list(zip(chance.sample(firsts, count), chance.sample(seconds, count), strict=True))
    told: list[str] = []
    weights: list[float] = []
    for time_ in range(4):
        for pair in chance.sample(pairs, count):
            told += pair
            weights += [0.0, 1.0 if time_ else 0.0]
    ids: list[int] = words(" ".join(told))["input_ids"]
    return ids, weights


def lesson(words: PreTrainedTokenizerFast, seed: int) -> tuple[list[int], list[float]]:
    """A passage with several last sentences, whose last words weigh more than all others."""
    sentences, ends = passages.passage(seed, QUESTIONS)
    ids: list[int] = words(" ".join(sentences))["input_ids"]
    weights = [OTHER_WORDS] * len(ids)
    for question, answer in ends:
        more: list[int] = words(f"{question} {answer} .")["input_ids"]
        ids += more
        weights += [OTHER_WORDS] * (len(more) - 2) + [1.0, OTHER_WORDS]
    return ids, weights


def batches(words: PreTrainedTokenizerFast, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Token ids, next ids and weights of the next ids, each [BATCH, positions]; padding weighs nothing."""
    seeds = itertools.count(passages.TRAINING)
    for step in range(steps):
        kind = drill if step < DRILLS * steps else lesson
        rows = [kind(words, next(seeds)) for _ in range(BATCH)]
        longest = max(len(ids) for ids, _ in rows)
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        weight = torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in rows])
        yield tokens[:, :-1], tokens[:, 1:], weight[:, 1:]


def guidance(
    attentions: Sequence[torch.Tensor], tokens: torch.Tensor, following: torch.Tensor, answers: torch.Tensor
) -> torch.Tensor:
    """What shows the model where to look: it finds that out by itself, too, in some ten thousand steps.

    One head of the first layer is to look at the word before, one head of the second at earlier occurrences of the
    answer: the mean negative log of the attention that is where it should be.
    """
    before = attentions[0][:, 0].diagonal(offset=-1, dim1=1, dim2=2)
    places = (tokens.unsqueeze(1) == following.unsqueeze(2)).tril() & answers.unsqueeze(2)
    told = places.any(2)
    there = (attentions[1][:, 0] * places).sum(2)[told]
    return -(before + 1e-6).log().mean() - (there + 1e-6).log().mean()


def train(steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained model in fp32 and its tokenizer; progress goes to standard error."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = tokenizer()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), attn_implementation="eager", **CONFIG))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.monotonic()
    for step, (tokens, following, weight) in enumerate(batches(words, steps)):
        warm = min(1.0, (step + 1) / 100)
        rate = PEAK_RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        output = model(tokens, use_cache=False, output_attentions=True)
        losses = cross_entropy(output.logits.flatten(0, 1), following.flatten(), reduction="none").view_as(weight)
        loss = (losses * weight).sum() / weight.sum() + guidance(output.attentions, tokens, following, weight == 1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            answers = losses[weight == 1].mean().item()
            sys.stderr.write(
                f"step {step:4}/{steps}  loss of answers {answers:.3f}  {time.monotonic() - start:.0f} s\n"
            )
    return model.eval(), words


def save(folder: Path) -> None:
    """Train, and write the model in fp16 with its tokenizer."""
    model, words = train()
    model.half().save_pretrained(folder)
    words.save_pretrained(folder)
    for_old_releases(folder)


def for_old_releases(folder: Path) -> None:
    """Write the tokenizer so that transformers 4.37 with tokenizers 0.15 reads it as today's do, to the same ids."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}
    path.write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m bench.train_tiny FOLDER")
    save(Path(sys.argv[1]))
