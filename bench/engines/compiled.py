"""bench's own decoding loop around an unmodified transformers model: one graph launch per token, greedy and beams.

Prompts are filled once, by the model as it is, and beams share them. The step after that (forward, choice of tokens,
bookkeeping) is one compiled graph whose tensors stay where they are. See `bench/compiled/`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cell import Cell, Generate
from ..devices import devices
from ..devices.base import Device
from ..errors import ConfigError, NonFinite, Unsupported, did_you_mean
from ..peaks import cache_folder
from .base import Loaded, engines
from .eager import NOT_FINITE, Eager
from .static import compiled_graphs

if TYPE_CHECKING:
    from ..compiled.step import Decoder

CONVERSATION = 4096
"""Positions that a conversation gets at first; a longer one gets more, and is compiled again."""

CAPTURES = ("device", "torch", "none")

LEAST_TRANSFORMERS = (5, 4)
"""Release from which models take the filled length of a cache as a tensor."""


@engines("compiled")
@dataclass(frozen=True)
class Compiled(Eager):
    """bench's own loop: the decoding step as one compiled graph, prompts shared by their beams."""

    compile: bool = True
    """Whether the step is compiled; without, the same loop runs eagerly."""
    capture: str = "device"
    """What makes a step one launch: graphs of the device itself (device), of torch.compile's modes (torch), or none."""
    capture_prompts: bool = True
    """Whether filling a prompt of up to `compiled.step.CAPTURED` tokens is one launch, too: by the device's graphs."""
    tune: bool = True
    """Whether block sizes of bench's kernels are chosen by timing; without, each kernel takes the first it lists."""

    def __post_init__(self) -> None:
        if self.capture not in CAPTURES:
            raise ConfigError(did_you_mean("engine.capture", self.capture, CAPTURES))

    def unsupported(self, cell: Cell) -> str | None:
        """What the loop does not do."""
        if cell.tp != "none":
            return "engine=compiled runs on one device: use engine=eager with tp"
        if cell.workload.decoding == "sample" and cell.workload.num_beams > 1:
            return "engine=compiled does not sample within beam search: use engine=eager"
        return None

    def compiles(self, cell: Cell) -> bool:
        """Unless told not to."""
        return self.compile

    def imports(self) -> None:
        """torch and transformers; compiled code is kept in bench's cache, because /tmp does not outlive a reboot."""
        for name, kind in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
            os.environ.setdefault(name, str(cache_folder() / kind))  # Inductor tells Triton only when it compiles
        super().imports()
        from ..models.build import RELEASE

        if RELEASE < LEAST_TRANSFORMERS:
            least, found = (".".join(map(str, release)) for release in (LEAST_TRANSFORMERS, RELEASE))
            raise Unsupported(f"engine=compiled needs transformers {least} or newer, found {found}")
        from ..compiled import step  # noqa: F401

    def load(self, cell: Cell, device: Device) -> Loaded:
        """As `eager` does; what converts it may be the first that is compiled."""
        for name, value in device.compiler_variables().items():
            os.environ.setdefault(name, value)
        return super().load(cell, device)

    def graphs(self) -> float:
        """As torch counts them."""
        return compiled_graphs() if self.compile else super().graphs()

    def tuning_s(self) -> float:
        """For bench's own kernels; Inductor's are not in it."""
        if not self.compile:
            return super().tuning_s()
        from ..compiled import tuning

        return tuning.spent()

    def begin(self, loaded: Loaded, cell: Cell) -> None:
        """Make the cell's graph and caches, unless those of the cell before have room for it."""
        work = cell.workload
        if not isinstance(work, Generate):
            return  # an evaluation calls the model itself
        from ..compiled import tuning

        tuning.enabled = self.tune
        loaded.kept["device"] = devices.get(cell.device.name)(**cell.device.kwargs)
        config = self.generation_config(loaded, work)
        self._decoder(loaded, work.batch_size, work.input_tokens, config, self.capture_prompts)

    def _decoder(self, loaded: Loaded, batch: int, prompt: int, config: Any, capture_prompts: bool = False) -> Decoder:
        """The one that is kept, if it has room."""
        import torch

        from ..compiled import step

        shape = step.Shape.of(batch, prompt, config)
        kept: Decoder | None = loaded.kept.get("decoder")
        if kept is None or kept.shape != shape:
            device = loaded.kept["device"]
            loaded.kept.pop("decoder", None)
            del kept  # its caches make room
            torch.compiler.reset()
            options = self._options(device) if self.compile else None
            kept = step.Decoder(loaded.handle, shape, config, options, device, capture_prompts, self.capture)
            loaded.kept["decoder"] = kept
        return kept

    def _options(self, device: Device) -> dict[str, Any]:
        """Settings of Inductor."""
        if device.torch_type == "cpu":
            return {}
        import torch

        from ..compiled.linear import Linears

        early = device.launches_early()
        options: dict[str, Any] = {
            "post_grad_custom_pre_pass": Linears(early, device.reads_fp8()),
            "shape_padding": False,  # a copy of the weights in every step
        }
        if early:
            options["triton.enable_pdl"] = True
        if self.capture == "torch":
            options |= torch._inductor.list_mode_options("reduce-overhead")
        return options

    def prompts(self, loaded: Loaded, cell: Cell) -> tuple[Any, list[str]]:
        """Token ids; bench's prompts have no padding, so there is no mask."""
        inputs, warnings = super().prompts(loaded, cell)
        return inputs["input_ids"], warnings

    def unseen_memory(self, loaded: Loaded) -> float:
        """What a captured prompt needs while it is filled."""
        decoder: Decoder | None = loaded.kept.get("decoder")
        return decoder.unseen_memory if decoder else 0.0

    def noticed(self, loaded: Loaded) -> tuple[str, ...]:
        """Whether the step is one launch."""
        decoder: Decoder | None = loaded.kept.get("decoder")
        return decoder.noticed if decoder else ()

    def generate(
        self, loaded: Loaded, inputs: Any, work: Generate, on_step: Callable[[], None], check_finite: bool = False
    ) -> Any:
        """One pass of the loop; returns the ids, shape [batch_size, input_tokens + output_tokens]."""
        decoder: Decoder = loaded.kept["decoder"]
        output = _traced(loaded, lambda: decoder.generate(inputs, None, work.output_tokens, on_step))
        if check_finite and not bool(decoder.choice.finite):
            raise NonFinite(NOT_FINITE)
        return output

    def reply(self, loaded: Loaded, inputs: Any, work: Generate, settings: dict[str, Any], **observers: Any) -> None:
        """Through the same loop, with room for a long conversation, so that it compiles once."""
        config = self.generation_config(loaded, work)
        config.update(**{"min_new_tokens": None, **settings})
        unknown = [name for name in ("repetition_penalty", "typical_p") if settings.get(name, 1.0) != 1.0]
        if unknown:
            raise Unsupported(f"engine=compiled has no {unknown[0]}, with which the model samples: use engine=eager")
        ids, streamer = inputs["input_ids"], observers["streamer"]
        decoder = self._decoder(loaded, 1, max(ids.shape[1], CONVERSATION), config)
        streamer.put(ids.cpu())

        def on_step() -> None:
            streamer.put(decoder.choice.tokens[0].cpu())
            if any(bool(ask(ids, None)) for ask in observers["stopping_criteria"]):
                raise _Enough

        with contextlib.suppress(_Enough):
            _traced(loaded, lambda: decoder.generate(ids, None, work.output_tokens, on_step))
        streamer.end()


class _Enough(Exception):
    """A reply has been cut short."""


def _traced(loaded: Loaded, work: Callable[[], Any]) -> Any:
    """What `work` returns. Raises Unsupported where torch.compile cannot trace the model."""
    import torch

    try:
        with torch.inference_mode():
            return work()
    except torch._dynamo.exc.Unsupported as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise Unsupported(
            f"torch.compile cannot trace {type(loaded.handle).__name__}: {reason}: use engine=eager"
        ) from error
