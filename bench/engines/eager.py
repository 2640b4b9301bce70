"""transformers' own `generate` with its dynamic cache, nothing compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..cell import Cell, Generate
from ..devices.base import Device
from ..errors import NonFinite, Unsupported
from ..precisions.base import DTYPE_BYTES, precision_of
from ..tensor_parallel import tensor_parallel
from .base import Engine, Loaded, engines

NOT_FINITE = "the scores hold NaN or infinity, so the tokens mean nothing: try another precision, or check the weights"


@engines("eager")
@dataclass(frozen=True)
class Eager(Engine):
    """The plain call that most users make."""

    attention: str = "auto"
    """`attn_implementation` of transformers: sdpa, eager, ...; auto is sdpa where the family has it."""

    def unsupported(self, cell: Cell) -> str | None:
        """`generate` runs every decoding there is."""
        return None

    def imports(self) -> None:
        """torch and transformers."""
        from .. import hooks  # noqa: F401
        from ..models import build, cost  # noqa: F401

    def prepare(self, cell: Cell) -> None:
        """The library that splits the model."""
        if cell.tp != "none":
            tensor_parallel.get(cell.tp)().prepare()

    def load(self, cell: Cell, device: Device) -> Loaded:
        """Build or download the model and let the precision convert it."""
        import torch

        from ..models import build, cost

        precision = precision_of(cell)
        kwargs = precision.load_kwargs(device.torch_type)
        if self.attention != "auto":
            kwargs = {"attn_implementation": self.attention, **kwargs}
        if cell.tp != "none":
            place = torch.device(device.torch_type)
            if place.type != "cpu":  # with its number, because libraries load in threads, which start on device 0
                place = torch.device(place.type, torch.accelerator.current_device_index())
            split = tensor_parallel.get(cell.tp)()
            dtype = getattr(torch, precision.dtype)
            sharded = split.load(cell.model, dtype, place, cell.seed, DTYPE_BYTES[precision.dtype], **kwargs)
            return Loaded(sharded.model, sharded.cost, build.revision_of(sharded.model) or "", sharded.warnings)
        model, weights = precision.load(cell, torch.device(device.torch_type), **kwargs)
        return Loaded(
            handle=model,
            cost=cost.of(cell.model, model, DTYPE_BYTES[precision.dtype]),
            revision=build.revision_of(model) or "",
            weights=weights,
        )

    def prompts(self, loaded: Loaded, cell: Cell) -> tuple[Any, list[str]]:
        """Token ids and an all-ones mask on the model's device."""
        import torch

        from ..models.prompts import prompts
        from ..models.refill import filled_anew

        work = cell.workload
        model = loaded.handle
        config = model.config.get_text_config(decoder=True)
        ids, warnings = prompts(cell.model, config.vocab_size, work.input_tokens, work.batch_size, cell.seed)
        try:
            filled_anew(config, work.input_tokens, work.output_tokens)
        except Unsupported as reason:  # what comes then is measured without the prompt
            warnings.append(str(reason))
        ids = ids.to(model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, warnings

    def seed(self, seed: int) -> None:
        """torch's generators on every device."""
        import torch

        torch.manual_seed(seed)

    def generate(
        self, loaded: Loaded, inputs: Any, work: Generate, on_step: Callable[[], None], check_finite: bool = False
    ) -> Any:
        """One call of `model.generate`; returns the ids, shape [batch_size, input_tokens + output_tokens]."""
        import torch

        from ..hooks import ASKED_EVERY_TIME, finite_watch, step_hook

        watch = finite_watch() if check_finite else None
        with torch.inference_mode():
            output = loaded.handle.generate(
                **inputs,
                generation_config=self.generation_config(loaded, work),
                stopping_criteria=[step_hook(on_step)],
                logits_processor=[watch] if watch else [],
            )
        if not ASKED_EVERY_TIME:
            on_step()
        if watch and not watch.finite():
            raise NonFinite(NOT_FINITE)
        return output

    def no_chat(self) -> str | None:
        """It streams."""
        return None

    def reply(self, loaded: Loaded, inputs: Any, work: Generate, settings: dict[str, Any], **observers: Any) -> None:
        """One call of `model.generate`."""
        import torch

        config = self.generation_config(loaded, work)
        config.update(**{"min_new_tokens": None, **settings})
        with torch.inference_mode():
            loaded.handle.generate(**inputs, generation_config=config, **observers)

    def generation_config(self, loaded: Loaded, work: Generate) -> Any:
        """Exactly `output_tokens` more tokens: the model's own configuration, from which EOS has been removed."""
        import copy

        config = copy.copy(loaded.handle.generation_config)
        config.update(
            max_new_tokens=work.output_tokens,
            min_new_tokens=work.output_tokens,
            num_beams=work.num_beams,
            do_sample=work.decoding == "sample",
            use_cache=True,
        )
        return config

    def tokens(self, output: Any) -> list[list[int]]:
        """From the tensor of ids."""
        rows: list[list[int]] = output.tolist()
        return rows
