"""Intel Extension for PyTorch: `ipex.llm.optimize`, in an environment of its own (`stack=ipex-2.8`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from .. import preload
from ..cell import Cell, Evaluate, Generate
from ..devices.base import Device
from ..errors import ConfigError, Unsupported, did_you_mean
from ..precisions.base import DTYPE_BYTES, precision_of
from ..precisions.lowbit import LowBit
from .base import Loaded, engines
from .eager import Eager

CACHES = ("auto", "dynamic", "static")
COMPUTE_ENGINES = ("auto", "recommend", "basic", "onednn", "onemkl", "xetla")
"""Values of IPEX_COMPUTE_ENG, 0 to 4, on Intel GPUs; auto leaves it alone."""


@engines("ipex")
@dataclass(frozen=True)
class Ipex(Eager):
    """IPEX' fused layers and attention, on CPU and Intel GPUs; INT4 through neural-compressor."""

    library = "intel-extension-for-pytorch"
    stack = "ipex-2.8"

    deployment_mode: bool = False
    """Trace the model, as IPEX does by default. Accuracy needs it untraced."""
    cache: str = "auto"
    """KV cache of `generate`: dynamic, static, or auto, which is static on Intel GPUs, as in Intel's examples."""
    compute_engine: str = "auto"
    """Kernels of low-bit layers on Intel GPUs: recommend, basic, onednn, onemkl, xetla (IPEX_COMPUTE_ENG)."""
    tcmalloc: str = "auto"
    """Preload tcmalloc: auto (on Intel GPUs, where it is installed), always or never."""

    def __post_init__(self) -> None:
        preload.checked(self.tcmalloc)
        for name, known in (("cache", CACHES), ("compute_engine", COMPUTE_ENGINES)):
            if getattr(self, name) not in known:
                raise ConfigError(did_you_mean(f"engine.{name}", getattr(self, name), known))

    def environment(self, cell: Cell) -> dict[str, str]:
        """What Intel's examples set on GPUs."""
        found = preload.environment(self.tcmalloc, cell.device.name)
        if cell.device.name == "xpu":
            found |= {"SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS": "1", "ENABLE_SDP_FUSION": "1"}
            if self.compute_engine != "auto":
                found["IPEX_COMPUTE_ENG"] = str(COMPUTE_ENGINES.index(self.compute_engine) - 1)
        return found

    def unsupported(self, cell: Cell) -> str | None:
        """Where it has no kernels, and what a traced model cannot do."""
        device = cell.device.name
        if device not in ("cpu", "xpu", "fake"):
            return f"IPEX has no kernels for {device}"
        if cell.tp != "none":
            return "engine=ipex runs one rank here: tp=none"
        if device == "xpu" and cell.precision.name in ("fp32", "bf16"):
            return "ipex.llm.optimize takes fp16 only on Intel GPUs: precision=fp16"
        if self.deployment_mode and isinstance(cell.workload, Evaluate):
            return "engine.deployment_mode=true traces the model for generate: leave it out for accuracy"
        if self.compute_engine != "auto" and device == "cpu":
            return "engine.compute_engine is for Intel GPUs"
        return preload.unsupported(self.tcmalloc)

    def imports(self) -> None:
        """IPEX patches torch, so that comes before the model's code."""
        try:
            import intel_extension_for_pytorch  # noqa: F401
        except ImportError as error:
            raise Unsupported(
                f"engine=ipex needs Intel Extension for PyTorch in the worker's interpreter ({error}): stack=ipex-2.8"
            ) from error
        super().imports()

    def load(self, cell: Cell, device: Device) -> Loaded:
        """Load or convert, then `ipex.llm.optimize` in the form for the device."""
        import intel_extension_for_pytorch as ipex
        import torch

        from ..models import build, cost

        precision = precision_of(cell)
        kwargs = {} if self.attention == "auto" else {"attn_implementation": self.attention}
        model, weights = precision.load(cell, torch.device(device.torch_type), **kwargs)
        counted = cost.of(cell.model, model, DTYPE_BYTES[precision.dtype])
        revision = build.revision_of(model) or ""
        if model.config.architectures is None:  # which IPEX asks for
            model.config.architectures = [type(model).__name__]
        packed = isinstance(precision, LowBit)
        if device.torch_type == "xpu":
            model = model.to(memory_format=torch.channels_last)
            options = {"quantization_config": model.quantization_config} if packed else {"dtype": torch.float16}
            model = ipex.llm.optimize(model.eval(), device="xpu", inplace=True, **options)
        else:
            # Its own INT4 layers are refused in any other dtype, and left as they are in this one.
            dtype = torch.float32 if packed else getattr(torch, precision.dtype)
            model = ipex.llm.optimize(model.eval(), dtype=dtype, inplace=True, deployment_mode=self.deployment_mode)
        if not any(type(module).__module__.startswith("intel_extension_for_pytorch") for module in model.modules()):
            raise Unsupported(f"ipex.llm.optimize left {type(model).__name__} as it is: engine=eager")
        return Loaded(build.ready(model), counted, revision, weights=weights)

    def begin(self, loaded: Loaded, cell: Cell) -> None:
        """What lm-eval calls is `forward`, which needs autocast as `generate` does."""
        model = loaded.handle
        forward = vars(model).setdefault("_bench_forward", model.forward)
        model.forward = forward if isinstance(cell.workload, Generate) else _cast(model, forward)

    def generate(
        self, loaded: Loaded, inputs: Any, work: Generate, on_step: Callable[[], None], check_finite: bool = False
    ) -> Any:
        """Under autocast, as IPEX' examples do."""
        with _autocast(loaded.handle):
            return super().generate(loaded, inputs, work, on_step, check_finite)

    def reply(self, loaded: Loaded, inputs: Any, work: Generate, settings: dict[str, Any], **observers: Any) -> None:
        """Under autocast, too."""
        with _autocast(loaded.handle):
            super().reply(loaded, inputs, work, settings, **observers)

    def generation_config(self, loaded: Loaded, work: Generate) -> Any:
        """With the cache of the device."""
        config = super().generation_config(loaded, work)
        static = self.cache == "static" or (self.cache == "auto" and loaded.handle.device.type == "xpu")
        if static:
            config.cache_implementation = "static"
        return config


def _cast(model: Any, forward: Any) -> Any:
    """`forward` under autocast."""

    @functools.wraps(forward)
    def cast(*arguments: Any, **options: Any) -> Any:
        with _autocast(model):
            return forward(*arguments, **options)

    return cast


def _autocast(model: Any) -> AbstractContextManager[Any]:
    """On CPU, for models in half precision."""
    import torch

    if model.device.type != "cpu" or model.dtype == torch.float32:
        return nullcontext()
    return torch.autocast("cpu", dtype=model.dtype)
