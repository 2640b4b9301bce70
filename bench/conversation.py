"""The process that `bench chat` becomes: loads one model, reads lines, streams replies and says how long they took.

Like the worker it imports the standard library, torch, transformers and the adapter's own library only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .cell import Cell, Generate
from .devices.base import Device, devices
from .engines.base import Engine, Loaded, engines
from .errors import BenchError, CellError, OutOfMemory, Unsupported, first_line
from .measure import Stopwatch
from .units import duration, milliseconds, significant

STOP, CLEAR = "stop", "/clear"
"""Lines that are not for the model."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
"""What is taken from the model's own generation_config.json with decoding=sample."""


def main(argv: list[str]) -> int:
    """Hold the conversation that the file `argv[0]` describes, which is removed. Returns 1 when something failed."""
    place = Path(argv[0])
    task = json.loads(place.read_text())
    place.unlink()
    cell = Cell.from_json(task["cell"])
    try:
        conversation = Conversation.open(cell, task["chat"]["system"], task["chat"]["template"])
        if task["warmup"]:
            conversation.warm_up()
        return _terminal(conversation)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130


def _terminal(conversation: Conversation) -> int:
    """Lines from standard input, replies to standard output; a prompt only where a person types."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and history in input()
    print(f'\n"{STOP}" or Ctrl-D ends, {CLEAR} forgets what was said, Ctrl-C cuts a reply short.\n', flush=True)
    status = 0
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            line = STOP
            if typed:
                print()
        if line == STOP:
            return status
        if line == CLEAR:
            conversation.clear()
        elif line:
            try:
                reply = conversation.say(line)
                print(f"\n[{reply}]\n", flush=True)
            except CellError as error:
                print(f"bench: {error}", file=sys.stderr)
                status = 1


@dataclass(frozen=True)
class Reply:
    """How a reply went, as seen from the host: tokens count from the call of `generate` until they are there."""

    prompt_tokens: int
    times_s: tuple[float, ...]
    """Until each token, from the call."""
    left_out: int = 0
    """Earlier questions, with their answers, that there was no room for."""
    cut_short: bool = False

    def __str__(self) -> str:
        if not self.times_s:
            return f"no token after a prompt of {self.prompt_tokens}"
        tokens, last = len(self.times_s), self.times_s[-1]
        parts = [f"TTFT {milliseconds(self.times_s[0])}"]
        if tokens > 1:
            tpot = (last - self.times_s[0]) / (tokens - 1)
            parts += [f"TPOT {milliseconds(tpot)}", f"{significant(1 / tpot, 3)} tokens/s"]
        parts.append(f"{tokens} token{'s' * (tokens > 1)} after a prompt of {self.prompt_tokens}")
        if self.left_out:
            parts.append(f"{self.left_out} earlier question{'s' * (self.left_out > 1)} left out for want of room")
        if self.cut_short:
            parts.append("cut short")
        return ", ".join(parts)


class Conversation:
    """A loaded model and what was said so far."""

    def __init__(
        self, engine: Engine, device: Device, loaded: Loaded, cell: Cell, tokenizer: Any, shipped: Any,
        system: str | None = None, template: str | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.device, self.loaded, self.cell, self.tokenizer = engine, device, loaded, cell, tokenizer
        self.system = system
        self.template = template
        self.templated = bool(template or getattr(tokenizer, "chat_template", None))
        assert isinstance(cell.workload, Generate)
        self.work = cell.workload
        self.settings = _settings(shipped, loaded.handle.config, tokenizer, self.work.decoding == "sample")
        roles = {role: getattr(shipped, f"{role}_token_id", None) for role in ("user", "assistant")}
        self.roles: dict[str, int] = {role: token for role, token in roles.items() if token is not None}
        """Tokens that begin a turn, where a model has those instead of a template (Baichuan 2)."""
        self.said: list[dict[str, str]] = []

    @classmethod
    def open(cls, cell: Cell, system: str | None, template: str | None) -> Conversation:
        """Load the model, and say what and how. Raises CellError."""
        device: Device = devices.get(cell.device.name)(**cell.device.kwargs)
        engine: Engine = engines.get(cell.engine.name)(**cell.engine.kwargs)
        print(f"Loading {cell.model.name} {cell.precision} {cell.engine} {cell.device}", flush=True)
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # libraries advise their developers
        try:
            engine.imports()
            reason = device.unavailable()
            if reason:
                raise Unsupported(reason)
            if not sys.stderr.isatty():
                _no_progress_bars()
            engine.prepare(cell)
            watch = Stopwatch()
            loaded = engine.load(cell, device)
            device.synchronize()
            print(f"Loaded in {duration(watch.seconds())}", flush=True)
            from .models import build

            try:
                tokenizer = build.tokenizer(cell.model)
                shipped = build.shipped(cell.model, loaded.handle.config)
            except CellError:
                raise
            except Exception as error:  # whatever a tokenizer's files, packages or remote code raise
                raise Unsupported(
                    f"the tokenizer of {cell.model.name} cannot be loaded: {first_line(error)}"
                ) from error
        except Exception as error:
            raise _explained(error, device) from error
        engine.begin(loaded, cell)
        engine.seed(cell.seed)
        conversation = cls(engine, device, loaded, cell, tokenizer, shipped, system, template)
        if not conversation.templated and not conversation.roles:
            if system:
                raise Unsupported("chat.system needs a chat template, and the tokenizer has none: chat.template=FILE")
            print("The tokenizer has no chat template: the model continues your text (chat.template=FILE gives one)")
        return conversation

    def warm_up(self) -> None:
        """The first call compiles and allocates, which no reply should contain."""
        print("Warming up", flush=True)
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            self.say("Hello", most=8)
        self.clear()
        self.engine.seed(self.cell.seed)

    def clear(self) -> None:
        """Forget what was said."""
        self.said.clear()

    def say(self, line: str, most: int | None = None) -> Reply:
        """Print what the model answers, and remember both. A failed reply is forgotten. Raises CellError."""
        import torch

        from .hooks import stop_when

        self.said.append({"role": "user", "content": line})
        try:
            ids, left_out = self._fitting()
            inputs = torch.tensor([ids], device=self.loaded.handle.device)
            with _interruptible() as interrupted:
                printer = _printer(self.tokenizer)

                def enough() -> bool:
                    return bool(interrupted()) or len(printer.times_s) == most

                self.engine.reply(
                    self.loaded, {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}, self.work,
                    self.settings, streamer=printer, stopping_criteria=[stop_when(enough)],
                )  # fmt: skip
        except BaseException as error:
            self.said.pop()
            if not isinstance(error, Exception):
                raise
            raise _explained(error, self.device) from error
        self.said.append({"role": "assistant", "content": "".join(printer.text)})
        return Reply(len(ids), tuple(printer.times_s), left_out, interrupted())

    def _fitting(self) -> tuple[list[int], int]:
        """Ids of as much of the conversation as the model has positions for, and how many questions that leaves out."""
        room = getattr(self.loaded.handle.config, "max_position_embeddings", None)
        most = self.work.output_tokens
        left_out = 0
        while True:
            ids = self.ids()
            if room is None or len(ids) + most <= room:
                return ids, left_out
            if len(self.said) == 1:
                raise Unsupported(
                    f"{len(ids)} tokens and a reply of {most} exceed the model's {room} positions: "
                    f"say less, or lower chat.max_new_tokens"
                )
            del self.said[:2]
            left_out += 1

    def ids(self) -> list[int]:
        """The conversation as the model reads it, up to where its reply begins. Raises Unsupported."""
        found: list[int]
        if self.templated:
            begin = [{"role": "system", "content": self.system}] if self.system else []
            try:
                text = self.tokenizer.apply_chat_template(
                    [*begin, *self.said], chat_template=self.template, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # of Jinja, which templates also raise on purpose
                raise Unsupported(f"the chat template refuses this conversation: {first_line(error)}") from error
            found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        elif self.roles:
            found = self.tokenizer(self.system, add_special_tokens=False)["input_ids"] if self.system else []
            for turn in self.said:
                found = [*found, self.roles[turn["role"]], *self.tokenizer(turn["content"])["input_ids"]]
            found = [*found, self.roles["assistant"]]
        else:
            found = self.tokenizer("\n".join(turn["content"] for turn in self.said))["input_ids"]
        return found


def _settings(shipped: Any, config: Any, tokenizer: Any, sampled: bool) -> dict[str, Any]:
    """What `generate` is told beside the engine's configuration: what ends a reply, and the authors' sampling."""
    ends: list[int] = []
    for source in (shipped, config, tokenizer):
        found = getattr(source, "eos_token_id", None)
        ends += found if isinstance(found, list) else [] if found is None else [found]
    settings: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends)) or None}
    if sampled:
        known = {name: getattr(shipped, name, None) for name in SAMPLING}
        settings |= {name: value for name, value in known.items() if value is not None}
    return settings


def _printer(tokenizer: Any) -> Any:
    """A streamer of transformers that also remembers the text, and when each token came."""
    from transformers import TextStreamer

    class Printer(TextStreamer):  # type: ignore[misc]  # transformers has no types
        def __init__(self) -> None:
            super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
            self.text: list[str] = []
            self.times_s: list[float] = []
            self.watch = Stopwatch()
            self.asked = False

        def put(self, value: Any) -> None:
            """The prompt, then tokens, which are on the host by now."""
            if self.asked:
                self.times_s += [self.watch.seconds()] * value.numel()
            self.asked = True
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            """Whole words."""
            self.text.append(text)
            print(text, end="\n" if stream_end else "", flush=True)

    return Printer()


@contextlib.contextmanager
def _interruptible() -> Iterator[Any]:
    """Whether Ctrl-C has been pressed; the second time it ends the process."""
    pressed = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _no_progress_bars() -> None:
    """Of loading weights, where nobody looks."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _explained(error: Exception, device: Device) -> CellError:
    """What the user can act on. Anything else is a bug, and raised again."""
    if isinstance(error, CellError):
        return error
    if isinstance(error, ImportError):
        return Unsupported(f"{first_line(error)}: install it into the interpreter of bench chat")
    if device.out_of_memory(error):
        return OutOfMemory(f"out of memory: {first_line(error)}")
    raise error
