"""`bench chat`: a conversation as a user has it, and what the model reads."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from bench import chat, compose, conversation
from bench.cell import Cell, Choice, Generate
from bench.conversation import Conversation, Reply
from bench.engines.compiled import Compiled
from bench.errors import Unsupported
from bench.models.spec import Model

TINY = Path(conversation.__file__).parent / "models" / "tiny_trained"
REPLY = re.compile(
    r"\[TTFT [\d.]+ ms(?:, TPOT [\d.]+ ms, [\d.]+ tokens/s)?, (\d+) tokens? after a prompt of (\d+)([^\]]*)\]"
)


def talk(bench: Any, lines: str, *arguments: str) -> Any:
    """The conversation whose typed lines come from a file."""
    script = bench.cwd / "lines"
    script.write_text(lines)
    with script.open() as stdin:
        process = bench.start("chat", "device=cpu", "precision=fp32", *arguments, stdin=stdin)
        return bench.end(process)


def folder(place: Path, **generation: Any) -> Path:
    """The built-in trained model as a user's own folder."""
    shutil.copytree(TINY, place)
    settings = json.loads((place / "generation_config.json").read_text())
    (place / "generation_config.json").write_text(json.dumps({**settings, **generation}))
    return place


@pytest.fixture(scope="module")
def opened() -> Conversation:
    model = Model("tiny-trained", source="package", path="models/tiny_trained")
    cell = Cell(model, Generate(1, 16, decoding="greedy"), precision=Choice("fp32"))
    try:
        return Conversation.open(cell, None, None)
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture
def talked(opened: Conversation) -> Conversation:
    opened.clear()
    opened.template, opened.templated, opened.system, opened.roles = None, False, None, {}
    return opened


def test_a_conversation(bench: Any):
    """Without arguments the model that bench brings; each prompt holds what was said before, until it is cleared."""
    done = talk(bench, "the silver\nthe silver\n\n/clear\nthe silver\nstop\nnot read\n", "chat.max_new_tokens=12")
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("Loading tiny-trained fp32 eager cpu\nLoaded in ")
    assert "no chat template: the model continues your text" in done.stdout
    assert "\nWarming up\n" in done.stdout
    replies = REPLY.findall(done.stdout)
    first, second, third = (int(prompt) for _, prompt, _ in replies)
    assert first == third == 2 and second > 2 + 12
    assert [int(tokens) for tokens, _, _ in replies] == [12, 12, 12]
    texts = [text.strip() for text in re.split(r"\[TTFT[^\]]*\]|short\.\n", done.stdout)[1:4]]
    assert texts[0] == texts[2] != texts[1]
    assert "not read" not in done.stdout and "Loading weights" not in done.stderr


def test_the_compiled_engine_says_the_same(bench: Any):
    """And its caches are made once, for a long conversation."""
    said = "the silver\nwhere is the\n"
    done = [
        talk(bench, said, "chat.max_new_tokens=20", *engine)
        for engine in ((), ("engine=compiled", "engine.compile=false"))
    ]
    assert [each.code for each in done] == [0, 0], done[1].stderr
    replies = [re.sub(r"TTFT.*tokens/s, ", "", each.stdout).split("short.")[1] for each in done]
    assert replies[0] == replies[1] and replies[0].count("[20 tokens") == 2


def test_the_compiled_engine_ends_where_it_is_told(talked: Conversation, monkeypatch: pytest.MonkeyPatch):
    engine = Compiled(compile=False)
    monkeypatch.setattr(talked, "engine", engine)
    engine.begin(talked.loaded, talked.cell)
    free = talked.say("the silver")
    assert len(free.times_s) == 16
    token = talked.tokenizer(talked.said[1]["content"])["input_ids"][3]
    talked.clear()
    assert len(talked.say("the silver", most=5).times_s) == 5
    decoder = talked.loaded.kept["decoder"]
    talked.clear()
    talked.say("was the")
    assert talked.loaded.kept["decoder"] is decoder
    talked.clear()
    monkeypatch.setitem(talked.settings, "eos_token_id", [token])
    assert 0 < len(talked.say("the silver").times_s) < 16
    monkeypatch.setitem(talked.settings, "repetition_penalty", 1.1)
    with pytest.raises(Unsupported, match="engine=compiled has no repetition_penalty"):
        talked.say("the silver")


def test_what_ends_a_reply_is_what_the_authors_say(bench: Any):
    words = json.loads((TINY / "config.json").read_text())["vocab_size"]
    folder(bench.cwd / "all", eos_token_id=list(range(words)))
    done = talk(bench, "the silver", "model=./all", "warmup=0", f"python={sys.executable}")
    assert done.code == 0, done.stderr
    assert [match[:2] for match in REPLY.findall(done.stdout)] == [("1", "2")]


def test_sampling_draws_the_same_again(bench: Any):
    folder(bench.cwd / "warm", temperature=0.7, top_k=20)
    first, second, other = (
        talk(bench, "the silver\nwhere", "model=./warm", "decoding=sample", "chat.max_new_tokens=20", f"seed={seed}")
        for seed in (1, 1, 2)
    )
    texts = [REPLY.sub("", done.stdout) for done in (first, second, other)]
    assert first.code == 0, first.stderr
    assert texts[0].split("short.")[1] == texts[1].split("short.")[1] != texts[2].split("short.")[1]


@pytest.mark.alone
def test_control_c_cuts_a_reply_short_and_nothing_else(bench: Any, wait_for: Any):
    """Between replies it ends the conversation."""
    shown = bench.cwd / "shown"
    with shown.open("w") as stdout:
        process = bench.start("chat", "device=cpu", "precision=fp32", "chat.max_new_tokens=3000", "warmup=0",
                              stdin=subprocess.PIPE, stdout=stdout)  # fmt: skip
    for number in (1, 2):
        wait_for(lambda: "short.\n" in shown.read_text())
        before = len(shown.read_text())
        process.stdin.write("the silver\n")
        process.stdin.flush()
        wait_for(lambda start=before: len(shown.read_text()) > start + 20)
        process.send_signal(signal.SIGINT)
        replies = wait_for(lambda wanted=number: len(found := REPLY.findall(shown.read_text())) == wanted and found)
        assert replies[-1][2] == ", cut short" and int(replies[-1][0]) < 2900
    assert int(replies[1][1]) > int(replies[0][0])  # it remembers what it had said
    process.send_signal(signal.SIGINT)
    done = bench.end(process)
    assert (done.code, done.stderr) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model=tiny",), "random weights say nothing: weights=real"),
        (("num_beams=4",), "leave num_beams out"),
        (("lengths=32/32",), "leave lengths out"),
        (("engine=static",), "engine=static compiles again"),
        (("world_size=2", "launcher=torchrun"), "one process: launcher=local"),
        (("chat.template=nowhere",), "chat.template=nowhere cannot be read: No such file"),
        (("chat.sistem=x",), "unknown key in chat 'sistem'. Did you mean system?"),
        (("chat.max_new_tokens=0",), "chat.max_new_tokens=0: an integer of at least 1"),
        (("~chat",), "chat has been removed"),
        (("-m", "precision=fp32,bf16"), "bench chat talks to one model"),
    ],
)
def test_mistakes_are_one_line(bench: Any, arguments: tuple[str, ...], said: str):
    done = bench("chat", "device=cpu", *arguments)
    assert done.code == 2
    assert said in done.line


def test_what_cannot_be_loaded_is_one_line(bench: Any):
    place = folder(bench.cwd / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).unlink()
    done = talk(bench, "Hello", "model=./mute")
    assert done.code == 1
    assert "the tokenizer of mute cannot be loaded" in done.line
    done = talk(bench, "Hello", "chat.system=Behave")
    assert done.code == 1
    assert "chat.system needs a chat template" in done.line


@pytest.mark.parametrize(
    ("typed", "system"),
    [("Ann's helper, {be} brief: [yes]?", None), ("'a, b'", "a, b"), ("null", ""), ("one", None), ('"x"', "x")],
)
def test_a_sentence_needs_no_quotes(typed: str, system: str | None):
    composed = compose.compose([chat._quoted(f"chat.system={typed}")], "bench chat")
    assert composed is not None
    assert composed[0][0].chat.system == (typed if system is None else system or None)


def test_a_template_says_what_the_model_reads(talked: Conversation):
    talked.template = (
        "{% for m in messages %}{{ m.role }} was {{ m.content }} . {% endfor %}"
        "{% if add_generation_prompt %}the{% endif %}"
    )
    talked.templated, talked.system = True, "old"
    talked.said = [{"role": "user", "content": "the silver"}]
    assert talked.ids() == talked.tokenizer("system was old . user was the silver . the")["input_ids"]
    talked.template = "{{ raise_exception('no system here') }}"
    with pytest.raises(Unsupported, match="the chat template refuses this conversation: no system here"):
        talked.say("the silver")
    assert len(talked.said) == 1  # what failed was not said


def test_the_tokenizers_own_template_is_taken(talked: Conversation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(talked.tokenizer, "chat_template", "{{ messages[0].content }} was", raising=False)
    again = Conversation(
        talked.engine, talked.device, talked.loaded, talked.cell, talked.tokenizer, GenerationConfig()
    )  # fmt: skip
    again.said = [{"role": "user", "content": "the silver"}]
    assert again.ids() == talked.tokenizer("the silver was")["input_ids"]


def test_tokens_that_begin_a_turn(talked: Conversation):
    """Baichuan 2 has them in its generation_config.json, and no template."""
    shipped = GenerationConfig(user_token_id=195, assistant_token_id=196)
    made = Conversation(
        talked.engine, talked.device, talked.loaded, talked.cell, talked.tokenizer, shipped, system="old"
    )  # fmt: skip
    made.said = [{"role": "user", "content": "silver"}, {"role": "assistant", "content": "was"}]
    made.said.append({"role": "user", "content": "the"})
    old, silver, was, the = (talked.tokenizer(word)["input_ids"] for word in ("old", "silver", "was", "the"))
    assert made.ids() == [*old, 195, *silver, 196, *was, 195, *the, 196]


def test_the_oldest_questions_make_room(talked: Conversation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(talked.loaded.handle.config, "max_position_embeddings", 40)
    first, second, third = (talked.say(line, most=8) for line in ("the silver", "was the", "where the"))
    assert [reply.left_out for reply in (first, second, third)] == [0, 0, 1]
    assert first.prompt_tokens < second.prompt_tokens <= 40 - 16 and third.prompt_tokens <= 40 - 16
    assert [turn["content"] for turn in talked.said if turn["role"] == "user"] == ["was the", "where the"]
    assert "1 earlier question left out for want of room" in str(third)
    with pytest.raises(Unsupported, match=r"\d+ tokens and a reply of 16 exceed the model's 40 positions"):
        talked.say("the silver " * 20, most=8)


def test_sampling_is_the_authors(talked: Conversation):
    sampled = replace(talked.cell, workload=Generate(1, 16, decoding="sample"))
    shipped = GenerationConfig(temperature=0.6, top_p=0.9, eos_token_id=[7, 9])
    made = Conversation(talked.engine, talked.device, talked.loaded, sampled, talked.tokenizer, shipped)
    assert {"temperature": 0.6, "top_p": 0.9}.items() <= made.settings.items()
    assert made.settings["eos_token_id"] == [7, 9, 0]  # and those of the configuration and the tokenizer
    greedy = Conversation(talked.engine, talked.device, talked.loaded, talked.cell, talked.tokenizer, shipped)
    assert greedy.settings.keys() == {"eos_token_id"}


def test_a_reply_in_words():
    assert str(Reply(5, ())) == "no token after a prompt of 5"
    assert str(Reply(5, (0.25,))) == "TTFT 250.0 ms, 1 token after a prompt of 5"
    assert str(Reply(5, (0.25, 0.35, 0.45), cut_short=True)) == (
        "TTFT 250.0 ms, TPOT 100.0 ms, 10.0 tokens/s, 3 tokens after a prompt of 5, cut short"
    )
