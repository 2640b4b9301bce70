"""neural-compressor's `transformers` API with the kernels of IPEX, in an environment of its own (`stack=ipex-2.8`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from ..errors import LoadError
from .base import Provider, Support, providers
from .neural_compressor import work_elsewhere

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

FORMATS = ("woq_int4", "sym_int4", "asym_int4")


@providers("neural_compressor_ipex")
class NeuralCompressorIpex(Provider):
    """`RtnConfig(weight_dtype="int4_fullrange")` and WeightOnlyQuantizedLinear of IPEX, as in Intel's GPU examples."""

    library = "neural-compressor-pt"
    modules = ("neural_compressor", "intel_extension_for_pytorch")
    stack = "ipex-2.8"
    engines = ("eager", "ipex")

    def support(self, format: str, device: str) -> Support | str:
        """4-bit integers on CPU and Intel GPUs."""
        if format not in FORMATS:
            return f"its kernels have 4-bit integers only, no {format}"
        if device == "cpu":
            return Support(rank=70, compute=("bf16", "fp32"))
        if device == "xpu" and format != "asym_int4":
            return Support(rank=40, compute=("fp16",), note="not run by us yet")
        return f"it has no {format} on {device}"

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Its learning algorithms take a data set of the hub, no local text."""
        if recipe.algorithm != "rtn":
            return f"algorithm={recipe.algorithm} would take a data set from the hub and no local text"
        if recipe.cpu_embedding:
            return "it has no cpu_embedding"
        scales = ("auto", "fp32", "bf16", "fp16") if cell.device.name == "cpu" else ("auto", "fp16")
        return None if recipe.scale_dtype in scales else f"its scales are {' or '.join(scales[1:])}"

    def version(self) -> str:
        """With that of IPEX, whose kernels they are."""
        return f"{metadata.version(self.library)}+ipex{metadata.version('intel-extension-for-pytorch')}"

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """On CPU, IPEX packs several groups in a row, or all of it as one with -1."""
        return device.type != "cpu" or recipe.group_size < layer.in_features

    def place(self, device: torch.device) -> torch.device:
        """It converts on the host."""
        import torch

        return torch.device("cpu")

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """What its `from_pretrained(quantization_config=RtnConfig(...))` does to a loaded model."""
        left = [
            prefix
            for prefix, layer in model.named_modules()
            if _is_linear(layer) and not self.fits(layer, recipe, device)
        ]
        with _no_exit():
            import intel_extension_for_pytorch  # noqa: F401  # before neural-compressor, which looks for it

            work_elsewhere()
            from neural_compressor.transformers import RtnConfig
            from neural_compressor.transformers.quantization.utils import convert_to_quantized_model, save_low_bit

            compute = "fp16" if device.type == "xpu" else recipe.compute_dtype
            config = RtnConfig(
                compute_dtype=compute,
                weight_dtype="int4_fullrange",
                scale_dtype=_scales(recipe, device),
                group_size=recipe.group_size,
                sym=recipe.symmetric is not False,
                use_layer_wise=False,
                quant_lm_head="lm_head" not in recipe.skip.split(),
            )
            config.modules_to_not_convert = [*recipe.skip.split(), *left]
            if device.type == "xpu":
                config.update(device="xpu")
                config.post_init_xpu()
            else:
                config.post_init_cpu()
            model = convert_to_quantized_model(model, config, device=device.type)
            config.remove_redundant_parameters()
        model.config.quantization_config = model.quantization_config = config
        model.device_map = device.type
        model.save_pretrained = MethodType(save_low_bit, model)
        return _counted(model.to(device))

    def save(self, model: Any, folder: Path) -> None:
        """Its `save_pretrained`, a checkpoint like those of GPTQ, which on CPU leaves unpacked layers in the model."""
        model.save_pretrained(str(folder))
        if model.device.type == "cpu":
            for name, layer in _read(folder, model.dtype, model.device).named_modules():
                if hasattr(layer, "_op_context"):
                    model.set_submodule(name, layer)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """Its `from_pretrained`, which calls exit(0) when the folder does not suit it."""
        import torch

        return _read(folder, getattr(torch, recipe.dtype), device)


def _read(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    with _no_exit():
        import intel_extension_for_pytorch  # noqa: F401

        work_elsewhere()
        from neural_compressor.transformers import AutoModelForCausalLM

        return _counted(AutoModelForCausalLM.from_pretrained(str(folder), device_map=device.type, torch_dtype=dtype))


@contextmanager
def _no_exit() -> Iterator[None]:
    """neural-compressor ends the process with status 0 where others raise."""
    try:
        yield
    except SystemExit as error:
        raise LoadError(
            f"neural-compressor called exit({error.code}), which it does when a saved model does not suit it: "
            f"its reason is in the log"
        ) from error


def _is_linear(module: Any) -> bool:
    import torch

    return type(module) is torch.nn.Linear


def _scales(recipe: LowBit, device: torch.device) -> str:
    if recipe.scale_dtype != "auto":
        return recipe.scale_dtype
    return "fp16" if device.type == "xpu" else "fp32"


def _counted(model: Any) -> Any:
    """Note how many bytes each layer keeps where no parameter shows them: in the operator's own context."""
    for module in model.modules():
        context = getattr(module, "_op_context", None)
        if context is not None:
            kept = (context.get_weight(), context.get_scales(), context.get_zero_points(), context.get_bias())
            module.hidden_bytes = sum(item.numel() * item.element_size() for item in kept if item is not None)
    return model
