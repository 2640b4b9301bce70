"""What the worker needs of an engine: load a model, make prompts, generate with a hook on every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..record import ModelCost, Weights
from ..registry import Registry

if TYPE_CHECKING:
    from ..cell import Cell, Generate
    from ..devices.base import Device


@dataclass(frozen=True)
class Loaded:
    """A model that is ready on its device."""

    handle: Any
    """The engine's own object, usually a transformers model."""
    cost: ModelCost
    revision: str = ""
    """Commit of the checkpoint, blank when there is none."""
    warnings: tuple[str, ...] = field(default=())
    weights: Weights = field(default=Weights())
    kept: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the engine keeps from one call to the next, such as graphs."""


class Engine:
    """One way to produce tokens. Settings are the fields of the subclass, a frozen dataclass.

    `unsupported` and `compiles` are asked while planning, without torch; everything else runs in the worker.
    """

    library: ClassVar[str] = ""
    """Distribution that it needs beside torch and transformers; blank for none."""
    stack: ClassVar[str] = ""
    """The stack that has it."""

    def unsupported(self, cell: Cell) -> str | None:
        """Why this engine cannot run the cell, in one line; None when it can."""
        raise NotImplementedError

    def environment(self, cell: Cell) -> dict[str, str]:
        """Variables that the worker's process needs from its start; those that the user or the stack set win."""
        return {}

    def compiles(self, cell: Cell) -> bool:
        """Whether the cell's first calls compile, so that `compile_s` means something."""
        return False

    def imports(self) -> None:
        """Import what `load` needs, so that `load_s` does not contain it."""

    def prepare(self, cell: Cell) -> None:
        """The same for what needs the other ranks, which have met when this is called."""

    def load(self, cell: Cell, device: Device) -> Loaded:
        """The cell's model on the device. Raises LoadError, OutOfMemory or Unsupported."""
        raise NotImplementedError

    def graphs(self) -> float:
        """Graphs that torch.compile has made in this process so far; NaN for engines that do not compile."""
        return math.nan

    def tuning_s(self) -> float:
        """Seconds spent on choosing kernels' block sizes in this process so far; NaN for engines that do not."""
        return math.nan

    def begin(self, loaded: Loaded, cell: Cell) -> None:
        """Forget what earlier cells of the job left behind (caches, compiled graphs), so that order does not matter."""

    def prompts(self, loaded: Loaded, cell: Cell) -> tuple[Any, list[str]]:
        """Prompts of exactly `input_tokens` on the device, and warnings about them."""
        raise NotImplementedError

    def seed(self, seed: int) -> None:
        """Seed whatever draws random numbers; called before each iteration, outside the timed region."""

    def generate(
        self, loaded: Loaded, inputs: Any, work: Generate, on_step: Callable[[], None], check_finite: bool = False
    ) -> Any:
        """Generate, with `on_step` called once per output token when the token's computation has been launched.

        `on_step` must not be called inside a compiled graph, and nothing else may synchronise the device. With
        `check_finite`, raises NonFinite after generating if the scores of any step held NaN or +infinity.
        """
        raise NotImplementedError

    def no_chat(self) -> str | None:
        """Why `bench chat` cannot use this engine, in one line; None when it can. Asked without torch."""
        return "bench chat needs an engine that generates by transformers' `generate`: engine=eager"

    def reply(self, loaded: Loaded, inputs: Any, work: Generate, settings: dict[str, Any], **observers: Any) -> None:
        """Generate at most `output_tokens` for `bench chat`.

        `settings` change the generation configuration, such as what ends a reply; `observers` are `generate`'s
        streamer and stopping criteria.
        """
        raise NotImplementedError

    def unseen_memory(self, loaded: Loaded) -> float:
        """Bytes that generating needs besides what is allocated, and that the device's peak does not show."""
        return 0.0

    def noticed(self, loaded: Loaded) -> tuple[str, ...]:
        """What the record should say of how the engine ran the cell, asked after measuring."""
        return ()

    def tokens(self, output: Any) -> list[list[int]]:
        """Prompt and generated ids of each sequence, from what `generate` returned; outside the timed region."""
        raise NotImplementedError


engines: Registry[Engine] = Registry("engine", __package__)
