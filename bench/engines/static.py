"""`generate` with a static cache, its decoding step compiled where transformers compiles it: cuda and xpu, no beams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..cell import Cell, Generate
from .base import Loaded, engines
from .eager import Eager


@engines("static")
@dataclass(frozen=True)
class Static(Eager):
    """A cache allocated once for the whole length, so that the step has fixed shapes."""

    compile: bool = True
    """Whether the decoding step may be compiled. Beam search never is."""

    def compiles(self, cell: Cell) -> bool:
        """What `generate` does by itself."""
        return self.compile and cell.device.name in ("cuda", "xpu") and cell.workload.num_beams == 1

    def no_chat(self) -> str | None:
        """Its cache has a length, which conversations outgrow."""
        return "engine=static compiles again whenever a conversation has grown: use engine=eager with bench chat"

    def graphs(self) -> float:
        """As torch counts them."""
        return compiled_graphs() if self.compile else super().graphs()

    def begin(self, loaded: Loaded, cell: Cell) -> None:
        """Drop compiled graphs and the remembered cache length.

        `generate` makes the cache as long as the longest it ever made, so a short cell would be slower after a long
        one; and torch gives up compiling after a few recompilations of one function, silently.
        """
        import torch

        torch.compiler.reset()
        loaded.handle.__dict__.pop("_previous_max_cache_length", None)  # transformers 5
        loaded.handle.__dict__.pop("_cache", None)  # transformers 4
        loaded.handle.__dict__.pop("_compiled_call", None)

    def generation_config(self, loaded: Loaded, work: Generate) -> Any:
        """The eager one with a static cache."""
        config = super().generation_config(loaded, work)
        config.cache_implementation = "static"
        config.disable_compile = not self.compile
        return config


def compiled_graphs() -> float:
    """Graphs that torch.compile has made in this process so far."""
    from torch._dynamo.utils import counters

    return float(counters["stats"]["unique_graphs"])
