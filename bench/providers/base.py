"""What a low-bit precision needs of the library that converts the weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..registry import Registry

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

REAL, EMULATED = "real", "emulated"
"""Real kernels read packed weights in every step; emulated ones compute with floats that were rounded to the format, so
the accuracy is the format's and the latency is not."""


@dataclass(frozen=True)
class Support:
    """How a provider has a format on a kind of device."""

    kernels: str = REAL
    rank: int = 50
    """`provider=auto` takes the lowest that is installed, and an emulated one only where no real one exists."""
    compute: tuple[str, ...] = ("bf16", "fp16", "fp32")
    """The `compute_dtype` it takes."""
    note: str = ""
    """What a reader of `bench doctor` should know, such as that nobody has run this yet."""


class Provider:
    """One library. `support` and `refuses` are asked without torch, everything else in the worker.

    A converted model is saved and reloaded by the same class, and then gives the same logits, bit for bit.
    """

    library: ClassVar[str] = ""
    """Distribution whose version is recorded; blank for what bench has built in."""
    modules: ClassVar[tuple[str, ...]] = ()
    """What has to be importable."""
    extra: ClassVar[str] = ""
    """Optional dependency of bench that installs it; blank when only a stack has it."""
    stack: ClassVar[str] = ""
    """The stack that has it, then."""
    engines: ClassVar[tuple[str, ...]] = ("eager", "static", "compiled")
    """Engines that run what it converts."""
    favoured: ClassVar[tuple[str, ...]] = ()
    """Engines for which it comes first, whatever its rank."""

    def support(self, format: str, device: str) -> Support | str:
        """How it has a format on a kind of device, or why it does not, in one line."""
        raise NotImplementedError

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Which setting of the recipe it cannot honour, in one line; asked where `support` said yes."""
        return None

    def missing(self) -> str | None:
        """Why this interpreter cannot use it and what to do, in one line; None when it can."""
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if not absent:
            return None
        how = f": {self.source()}" if self.source() else ""
        return f"{' and '.join(absent)} cannot be imported in the worker's interpreter{how}"

    @classmethod
    def source(cls) -> str:
        """What to do to have it; blank where nothing is known that helps."""
        if cls.extra:
            return f"pip install 'bench[{cls.extra}]'"
        return f"stack={cls.stack} has it" if cls.stack else ""

    def version(self) -> str:
        """Version of the library; blank for what is built in, or not installed as a distribution."""
        try:
            return metadata.version(self.library) if self.library else ""
        except metadata.PackageNotFoundError:
            return ""

    def variant(self, cell: Cell) -> str:
        """What else decides the saved weights, such as the engine that they are for."""
        return ""

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """The model, converted, on `device`; it came in `recipe.dtype` on `self.place(device)` and may be used up.

        Raises Unsupported or LoadError.
        """
        raise NotImplementedError

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """Whether its kernels take a layer of this size; others stay as they are, and the record says how many."""
        return True

    def place(self, device: torch.device) -> torch.device:
        """Where it wants the floating-point model."""
        return device

    def save(self, model: Any, folder: Path) -> None:
        """Write a model that has been converted and not yet called into an empty folder."""
        raise NotImplementedError

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """The model that `save` wrote. `skeleton()` builds the architecture on `device`, its weights not yet filled."""
        raise NotImplementedError


providers: Registry[Provider] = Registry("provider", __package__)
