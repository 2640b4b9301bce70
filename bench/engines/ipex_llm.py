"""ipex-llm, in an environment of its own: `bench stack create ipex-llm-2.2`, `stack=ipex-llm-2.2`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

from .. import preload
from ..cell import Cell, Evaluate, Generate
from ..devices.base import Device
from ..errors import ConfigError, LoadError, NonFinite, Unsupported, did_you_mean
from ..precisions.base import DTYPE_BYTES, precision_of
from ..precisions.lowbit import LowBit
from ..providers.ipex_llm import IpexLlm, last_logits_only, low_bit
from ..providers.layers import asked
from ..record import Weights
from .base import Loaded, engines
from .eager import Eager

APIS = ("auto", "from_pretrained", "optimize_model")
LAST_LM_HEAD = "IPEX_LLM_LAST_LM_HEAD"
"""Unless it is 0, prompts of more than 10 tokens get the logits of their last position only: wrong for accuracy."""
GIVEN = os.environ.get(LAST_LM_HEAD)
OF_OPTIMIZE_MODEL = "bigdl_config.json"
"""What `save_low_bit` writes after `optimize_model`; after `from_pretrained`, config.json has it all."""


@engines("ipex_llm")
@dataclass(frozen=True)
class IpexLlmEngine(Eager):
    """ipex-llm's model with its replaced attention, on CPU and Intel GPUs. Settings are those of its API."""

    library = "ipex-llm"
    stack = "ipex-llm-2.2"

    api: str = "auto"
    """from_pretrained for real weights, optimize_model for random ones: two ways to the same model."""
    speculative: bool = False
    """Self-speculative decoding: a sym_int4 copy drafts. Greedy, one prompt."""
    tcmalloc: str = "auto"
    """Preload tcmalloc: auto (on Intel GPUs, where it is installed), always or never."""

    def __post_init__(self) -> None:
        preload.checked(self.tcmalloc)
        if self.api not in APIS:
            raise ConfigError(did_you_mean("engine.api", self.api, APIS))

    def environment(self, cell: Cell) -> dict[str, str]:
        """What Intel's examples set on GPUs."""
        gpu = {"SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS": "1", "ENABLE_SDP_FUSION": "1"}
        return {**(gpu if cell.device.name == "xpu" else {}), **preload.environment(self.tcmalloc, cell.device.name)}

    def unsupported(self, cell: Cell) -> str | None:
        """Where it has no kernels, and what its speculative decoding does not do."""
        device, precision = cell.device.name, cell.precision.name
        if device not in ("cpu", "xpu", "fake"):
            return f"ipex-llm has no kernels for {device}"
        if cell.tp != "none":
            return "engine=ipex_llm runs one rank here: tp=none"
        if precision == "fp32":
            return "ipex-llm has no fp32: precision=bf16, or engine=eager"
        if precision == "fp16" and device == "cpu":
            return "ipex-llm has fp16 on Intel GPUs only: precision=bf16"
        if self.api == "from_pretrained" and cell.model.weights == "random":
            return "engine.api=from_pretrained reads real weights: engine.api=optimize_model converts random ones"
        return self._no_speculation(cell) or preload.unsupported(self.tcmalloc)

    def _no_speculation(self, cell: Cell) -> str | None:
        work = cell.workload
        if not self.speculative:
            return None
        if isinstance(work, Evaluate):
            return "engine.speculative=true changes how tokens are generated, and no answer: leave it out for accuracy"
        if work.decoding != "greedy":
            return f"engine.speculative=true decodes greedily, not by {work.decoding}"
        if work.batch_size != 1:
            return "engine.speculative=true takes one prompt: batch_size=1"
        if cell.device.name == "cpu" and not _in_fp32(cell):
            return (
                "engine.speculative=true mixes bf16 and fp32 on CPU without IPEX, which fails: "
                "precision=sym_int8 precision.compute_dtype=fp32"
            )
        return None

    def no_chat(self) -> str | None:
        """Speculation streams pieces, without the first token."""
        return "bench chat streams tokens, not pieces: leave engine.speculative out" if self.speculative else None

    def imports(self) -> None:
        """ipex_llm patches transformers, so that comes first."""
        try:
            import ipex_llm.transformers  # noqa: F401
        except ImportError as error:
            raise Unsupported(
                f"engine=ipex_llm needs ipex-llm in the worker's interpreter ({error}): stack=ipex-llm-2.2"
            ) from error
        super().imports()

    def load(self, cell: Cell, device: Device) -> Loaded:
        """Through either API, or from a folder that `save_low_bit` wrote; speculation gets its draft."""
        import torch

        from ..models import build, cost

        place = torch.device(device.torch_type)
        precision = precision_of(cell)
        reads = self.api == "from_pretrained" or (self.api == "auto" and cell.model.weights == "real")
        keeps = isinstance(precision, LowBit) and precision.save  # bench's own cache of converted weights
        if reads and not keeps:
            model, weights = self._from_pretrained(cell, place)
        elif isinstance(precision, LowBit):
            model, weights = precision.load(cell, place)
        else:
            model, weights = self._plain(cell, place)
        if self.speculative:
            if not hasattr(model, "draft_model"):
                _speculate(model, self._draft(cell, place))
            vars(model)["draft_model"] = model._modules.pop("draft_model")  # its weights are not the model's
        _with_cache(model)
        return Loaded(
            handle=model,
            cost=cost.of(cell.model, model, DTYPE_BYTES[precision.dtype]),
            revision=build.revision_of(model) or "",
            weights=weights,
        )

    def _from_pretrained(self, cell: Cell, place: Any) -> tuple[Any, Weights]:
        """`AutoModelForCausalLM.from_pretrained(load_in_low_bit=)` of ipex-llm, or its `load_low_bit`."""
        import torch
        from ipex_llm.transformers import AutoModelForCausalLM

        from ..models import build, cost

        precision = precision_of(cell)
        options: dict[str, Any] = {"torch_dtype": getattr(torch, precision.dtype), "use_cache": True}
        if isinstance(precision, LowBit):
            options["modules_to_not_convert"] = precision.skip.split()
            options["cpu_embedding"] = precision.cpu_embedding
        try:
            source, more = build.origin(cell.model)
            saved = _saved_format(source)
            if saved is None:
                hub = "modelscope" if cell.model.source == "modelscope" else "huggingface"
                model = AutoModelForCausalLM.from_pretrained(
                    source, load_in_low_bit=low_bit(cell), optimize_model=True, speculative=self.speculative,
                    model_hub=hub, **options, **more,
                )  # fmt: skip
            elif saved != low_bit(cell):
                raise LoadError(f"{cell.model.name} was saved as {saved}: precision={saved}")
            elif (Path(source) / OF_OPTIMIZE_MODEL).is_file():
                model = _load_low_bit(source, options["torch_dtype"], cell.model.trust_remote_code)
            else:
                more = {key: value for key, value in more.items() if key == "trust_remote_code"}
                model = AutoModelForCausalLM.load_low_bit(source, optimize_model=True, **options, **more)
        except LoadError:
            raise
        except Exception as error:
            raise build.explain(error, cell.model) from error
        last_logits_only(model, True)
        model = build.ready(model.to(place))
        stored = cost.stored(model)
        if not isinstance(precision, LowBit):
            return model, Weights(packed_bytes=stored)
        return model, Weights(
            provider="ipex_llm",
            version=IpexLlm().version(),
            kernels="real",
            packed_bytes=stored,
            reloaded=saved is not None,
            warnings=_left_out(model, precision),
        )

    def _plain(self, cell: Cell, place: Any) -> tuple[Any, Weights]:
        """`optimize_model` without a change of format."""
        import torch
        from ipex_llm import optimize_model

        from ..models import build, cost

        dtype = getattr(torch, precision_of(cell).dtype)
        model = build.load(cell.model, dtype, torch.device("cpu"), cell.seed)
        model = optimize_model(model, low_bit=low_bit(cell), torch_dtype=dtype)
        last_logits_only(model, True)
        model = build.ready(model.to(place))
        return model, Weights(packed_bytes=cost.stored(model))

    def _draft(self, cell: Cell, place: Any) -> Any:
        """What `from_pretrained(speculative=True)` loads: the same weights in sym_int4."""
        import torch
        from ipex_llm import optimize_model

        from ..models import build

        dtype = getattr(torch, precision_of(cell).dtype)
        model = build.load(cell.model, dtype, torch.device("cpu"), cell.seed)
        model = optimize_model(model, low_bit="sym_int4", torch_dtype=dtype)
        last_logits_only(model, True)
        return build.ready(model.to(place))

    def begin(self, loaded: Loaded, cell: Cell) -> None:
        """All logits for accuracy, those of the last position for latency unless the user says otherwise."""
        for module in loaded.handle.modules():
            if hasattr(module, "optimize_lm_head"):
                known = module.__dict__.setdefault("_bench_optimize_lm_head", module.optimize_lm_head)
                module.optimize_lm_head = known and not isinstance(cell.workload, Evaluate)
        if isinstance(cell.workload, Evaluate):
            os.environ[LAST_LM_HEAD] = "0"  # what that amounts to, for the record
        elif GIVEN is None:
            os.environ.pop(LAST_LM_HEAD, None)
        else:
            os.environ[LAST_LM_HEAD] = GIVEN

    def generate(
        self, loaded: Loaded, inputs: Any, work: Generate, on_step: Callable[[], None], check_finite: bool = False
    ) -> Any:
        """With speculation, all tokens of an accepted piece arrive at once; else as everywhere."""
        if not self.speculative:
            return super().generate(loaded, inputs, work, on_step, check_finite)
        import torch

        model = loaded.handle
        steps = _Pieces(on_step, work.output_tokens, check_finite)
        handle = model.register_forward_hook(steps.forward)
        try:
            with torch.inference_mode():
                output = model.generate(
                    inputs=inputs["input_ids"], attention_mask=inputs["attention_mask"], streamer=steps,
                    max_new_tokens=work.output_tokens, do_sample=False,
                )  # fmt: skip
        finally:
            handle.remove()
        if not steps.finite:
            raise NonFinite("the scores hold NaN or infinity, so the tokens mean nothing: try another precision")
        return output


class _Pieces:
    """A streamer and a forward hook in one. The streamer is given the prompt, then each accepted piece, but never the
    first token: that is there when the first forward pass has returned."""

    def __init__(self, on_step: Callable[[], None], limit: int, check_finite: bool) -> None:
        self._on_step = on_step
        self._left = limit
        self._check = check_finite
        self._prompt = True
        self._first = True
        self.finite = True

    def _step(self, count: int) -> None:
        for _ in range(min(count, self._left)):
            self._on_step()
            self._left -= 1

    def forward(self, module: Any, arguments: Any, output: Any) -> None:
        """After a pass of the model that verifies."""
        if self._first:
            self._first = False
            self._step(1)
        if self._check:
            logits = output["logits"] if "logits" in output else output[0]
            self.finite = self.finite and bool(logits.isfinite().all())

    def put(self, value: Any) -> None:
        """The prompt, or a piece of shape [1, tokens]."""
        if self._prompt:
            self._prompt = False
        else:
            self._step(value.shape[-1])

    def end(self) -> None:
        """Nothing is left to show."""


def _in_fp32(cell: Cell) -> bool:
    return cell.precision.kwargs.get("compute_dtype") == "fp32"


def _left_out(model: Any, recipe: LowBit) -> tuple[str, ...]:
    """What `layers.left_out` says before a conversion, of a model that has been converted while it was loaded."""
    left = [f"{layer.out_features} x {layer.in_features}" for _, _, layer in asked(model, recipe)]
    packed = sum(type(module).__name__ == "LowBitLinear" for module in model.modules())
    shapes = ", ".join(sorted(set(left))[:3])
    if not packed:
        raise Unsupported(f"provider=ipex_llm cannot pack a linear layer of this model: {shapes}")
    whole = f"{len(left)} of {len(left) + packed} linear layers"
    return (f"{whole} stay in {recipe.compute_dtype}: ipex_llm cannot pack {shapes}",) if left else ()


def _saved_format(source: str) -> str | None:
    """The format of a folder that `save_low_bit` wrote; None for any other model."""
    for name in (OF_OPTIMIZE_MODEL, "config.json"):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((Path(source) / name).read_text()).get("bigdl_transformers_low_bit")
            if found:
                return str(found)
    return None


def _load_low_bit(source: str, dtype: Any, trust_remote_code: bool) -> Any:
    """A folder that `save_low_bit` wrote after `optimize_model`: the architecture without weights, then those."""
    from ipex_llm.optimize import load_low_bit, low_memory_init
    from transformers import AutoModelForCausalLM

    with low_memory_init():
        model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=dtype, trust_remote_code=trust_remote_code)
    return load_low_bit(model, source)


def _speculate(model: Any, draft: Any) -> None:
    """What `from_pretrained(speculative=True)` adds to a model."""
    from ipex_llm.transformers import speculative

    model.draft_model = draft
    model.clear_benchmarks = MethodType(speculative.clear_benchmarks, model)
    model.speculative_generate = MethodType(speculative.speculative_generate, model)
    model._crop_past_key_values = MethodType(speculative._crop_past_key_values, model)


def _with_cache(model: Any) -> None:
    """Let `forward` ignore `use_cache=False`, without which the replaced attention fails."""
    forward = model.forward

    @functools.wraps(forward)
    def cached(*arguments: Any, **options: Any) -> Any:
        return forward(*arguments, **{**options, "use_cache": True})

    model.forward = cached
