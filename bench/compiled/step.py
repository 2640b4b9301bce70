"""The compiled step and the loop around it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..devices.base import Device
from ..errors import Unsupported
from ..models.refill import filled_anew
from .cache import Place, SharedPrompt
from .choose import Beams, Choice, Single

CAPTURED = 4096
"""Tokens of prompts up to which filling them is captured: with more, a device takes longer than its host anyway."""


@dataclass(frozen=True)
class Shape:
    """What a graph is made for. Lengths are capacities: any prompt and output that fit use the same graph."""

    batch: int
    beams: int
    prompt: int
    output: int
    choosing: tuple[Any, ...]
    """Settings of the choice that are part of the graph."""

    @classmethod
    def of(cls, batch: int, prompt: int, config: GenerationConfig) -> Shape:
        """The smallest shape that holds `batch` prompts of that length and what `config` asks for."""
        return cls(
            batch,
            config.num_beams or 1,
            _bucket(prompt),
            _bucket(config.max_new_tokens),
            tuple(sorted((name, repr(value)) for name, value in _settings(config).items())),
        )


class Step(torch.nn.Module):
    """One token for every row: forward, choice and bookkeeping, with nothing left to the host but calling it."""

    def __init__(self, model: Any, cache: SharedPrompt, choice: Choice, place: Place) -> None:
        super().__init__()
        self.model, self.cache, self.choice, self.place = model, cache, choice, place

    def forward(self) -> None:
        """Reads and writes only tensors that stay where they are."""
        logits = self.model(
            input_ids=self.choice.tokens, position_ids=self.place.newest(), use_cache=True, **self.cache.arguments()
        ).logits[:, -1]
        self.choose(logits)

    def choose(self, logits: torch.Tensor) -> None:
        """Choose what follows, by logits of shape [rows, vocabulary], and move on."""
        parents = self.choice(logits.float(), self.place.step.long() + 1)
        if parents is not None:
            self.cache.inherit(parents)
        self.place.step.add_(1)


class Decoder:
    """Generates with one model and one shape; its tensors and its graph live as long as it does."""

    noticed: tuple[str, ...] = ()
    """What a record should say of how it runs."""
    unseen_memory = 0.0
    """Bytes that filling the captured prompt uses: the allocator counts them when it is captured, and never again."""

    def __init__(
        self, model: Any, shape: Shape, config: GenerationConfig, compile_options: dict[str, Any] | None = None,
        device: Device | None = None, capture_prompts: bool = False, capture: str = "device",
    ) -> None:  # fmt: skip
        self.model, self.shape = model, shape
        self.device = device or Device()
        units, early = 2 * self.device.processors(), self.device.launches_early()
        self.place = Place(shape.batch, shape.beams, shape.output, model.device, units, early)
        if not getattr(model, "_can_compile_fullgraph", False):
            family = model.config.model_type
            raise Unsupported(f"transformers has no static cache for {family}: use engine=eager")
        self.cache = SharedPrompt(model, self.place, shape.prompt)
        self.choice = _choice(self.place, config)
        self.step = Step(model, self.cache, self.choice, self.place)
        self.run: Callable[[], object] = self.step
        self.capture = capture
        self.captures_prompts = compile_options is not None and capture_prompts and self.device.has_graphs()
        self.prompt: Callable[[], None] | None = None
        self.prompt_length = 0
        if compile_options is not None:
            self.compiled = torch.compile(self.step, fullgraph=True, dynamic=False, options=compile_options)
            self.run = self._first

    def _first(self) -> None:
        """The step that is compiled and tuned. Those after it are one launch each, where the device has graphs.

        torch.compile captures graphs, too, but then each call looks at every tensor of the model.
        """
        before = counters["inductor"]["cudagraph_skips"]
        self.compiled()
        self.run = self.compiled
        if self.capture == "device":
            self.run = self._captured("the step", self.compiled) or self.compiled
        elif self.capture == "torch" and counters["inductor"]["cudagraph_skips"] > before:
            self.noticed += ("torch.compile did not capture the step: the host launches its kernels one by one",)

    def _captured(self, what: str, work: Callable[[], None]) -> Callable[[], None] | None:
        """All launches of `work` as one; None, with a reason in `noticed`, where that cannot be."""
        gc.collect()  # what is freed during a capture may end it
        try:
            return self.device.capture(work)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            self.noticed += (f"{what} could not be captured ({reason}): the host launches its kernels one by one",)
            return None

    def generate(
        self, ids: torch.Tensor, mask: torch.Tensor | None, length: int, on_step: Callable[[], None]
    ) -> torch.Tensor:
        """`length` tokens after prompts `ids` of shape [batch, prompt length]; returns [batch, both lengths].

        `mask`, of the same shape, is 0 for padding on the left; None says that there is none. `on_step` is called after
        each token's computation has been launched. Raises Unsupported where `generate` forgets the prompt.
        """
        refill = filled_anew(self.cache.config, ids.shape[1], length)
        place, choice = self.place, self.choice
        logits = self._fill(ids, mask)
        # What is small comes after what is large, when the device is busy and the host has time.
        place.begin(ids.shape[1], torch.zeros_like(place.pad) if mask is None else ids.shape[1] - mask.sum(-1))
        choice.begin(length)
        choice(logits.float().repeat_interleave(place.beams, dim=0), place.step.long())
        on_step()
        made = 1
        self.cache.decoding(True)
        try:
            while made < length and not (choice.eos is not None and bool(choice.ended)):
                if ids.shape[1] + made == refill:
                    self._fill_anew(ids, mask, made)
                else:
                    self.run()
                on_step()
                made += 1
        finally:
            self.cache.decoding(False)
        return torch.cat([ids, choice.result(made)], dim=1)

    def _fill(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Put the prompts into the cache; returns the logits of their last positions, [batch, vocabulary]."""
        known = self.prompt_length == ids.shape[1]
        one = mask is None and self.captures_prompts and ids.numel() <= CAPTURED
        if one and known and self.prompt is not None:
            self.prompt_ids.copy_(ids)
            self.prompt()
            return self.logits
        logits = self.cache.fill(ids, mask)
        if one and not known:  # after the first call, when libraries have set up what a capture cannot hold
            self._capture_prompt(ids)
            if self.prompt is not None:
                self.prompt()  # may have other kernels, and all iterations of a cell should have the same
                return self.logits
        return logits

    def _fill_anew(self, ids: torch.Tensor, mask: torch.Tensor | None, made: int) -> None:
        """The step after `made` tokens, from all that there are instead of the last."""
        beams = self.place.beams
        ids = torch.cat([ids.repeat_interleave(beams, dim=0), self.choice.so_far(made)], dim=1)
        if mask is not None:
            mask = torch.cat([mask.repeat_interleave(beams, dim=0), mask.new_ones(len(ids), made)], dim=1)
        self.cache.decoding(False)
        logits = self.cache.fill(ids, mask, made)
        self.cache.decoding(True)
        self.place.no_ancestors()
        self.step.choose(logits)

    def _capture_prompt(self, ids: torch.Tensor) -> None:
        """Make filling prompts of this length one launch."""
        self.prompt, self.prompt_length, self.prompt_ids = None, ids.shape[1], ids.clone()

        def work() -> None:
            self.logits = self.cache.fill(self.prompt_ids, None)

        self.device.release_memory()  # what a graph needs is memory of its own
        self.device.reset_peak_memory()
        self.prompt = self._captured("filling the prompt", work)
        used = self.device.peak_memory()[0] - self.device.memory_in_use()
        self.unseen_memory = used if self.prompt is not None else 0.0


def _choice(place: Place, config: GenerationConfig) -> Choice:
    wanted = _settings(config)
    eos, pad = wanted["eos_token_id"], wanted["pad_token_id"]
    if place.beams > 1:
        return Beams(place, eos, pad, wanted["length_penalty"], wanted["early_stopping"])
    if not wanted["do_sample"]:
        return Single(place, eos, pad)
    warpers: list[Any] = []
    if wanted["temperature"] != 1.0:
        warpers.append(TemperatureLogitsWarper(wanted["temperature"]))
    if wanted["top_k"]:
        warpers.append(TopKLogitsWarper(wanted["top_k"]))
    if wanted["top_p"] < 1.0:
        warpers.append(TopPLogitsWarper(wanted["top_p"]))
    if wanted["min_p"] is not None:
        warpers.append(MinPLogitsWarper(wanted["min_p"]))
    return Single(place, eos, pad, warpers)


DEFAULTS = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "length_penalty": 1.0,
    "early_stopping": False,
    "pad_token_id": 0,
}
"""What `generate` takes for settings that a configuration leaves at None (transformers 5)."""


def _settings(config: GenerationConfig) -> dict[str, Any]:
    """What changes the choice."""
    given = {name: getattr(config, name, None) for name in DEFAULTS}
    settings = {name: DEFAULTS[name] if value is None else value for name, value in given.items()}
    eos = config.eos_token_id
    settings["eos_token_id"] = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    return settings


def _bucket(length: int) -> int:
    """The power of two that holds `length`, at least 64: the kernel reads what is filled, so room costs no time."""
    return max(64, 1 << (length - 1).bit_length())
