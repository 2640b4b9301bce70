"""neural-compressor's `torch.quantization`: the accuracy reference for what Intel's tools make, on CPU.

Its layers unpack their weights at the first call and compute in floats ever after, so they are emulated. Its
`transformers` module, which has kernels, needs IPEX and an interpreter of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from .base import EMULATED, Provider, Support, providers
from .layers import STATE, asked, read_state, write_state

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

DTYPES = {
    "woq_int4": "int4", "sym_int4": "int4", "asym_int4": "int4", "sym_int5": "int5", "asym_int5": "int5",
    "int8": "int8", "sym_int8": "int8", "nf4": "nf4", "fp4": "fp4_e2m1", "fp8": "fp8_e4m3fn",
}  # fmt: skip
"""What neural-compressor calls the formats."""
LENGTH, SAMPLES = 512, 32
"""Tokens of a passage to calibrate with, and passages at most: GPTQ takes minutes for these on a CPU."""


@providers("neural_compressor")
class NeuralCompressor(Provider):
    """Round to nearest, GPTQ and AWQ."""

    library = "neural-compressor-pt"
    modules = ("neural_compressor",)
    extra = "neural-compressor"

    def support(self, format: str, device: str) -> Support | str:
        """On CPU only: elsewhere `rounding` gives the accuracy of a format."""
        if format not in DTYPES:
            return f"it has no {format}"
        return Support(EMULATED, rank=70) if device == "cpu" else "it is used on cpu only"

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Others' algorithms, and learning where there is nothing to learn."""
        if recipe.algorithm == "autoround":
            return "algorithm=autoround is provider=auto_round's"
        if recipe.algorithm != "rtn" and cell.model.weights == "random":
            return f"algorithm={recipe.algorithm} learns from text what random weights do not know: use algorithm=rtn"
        if recipe.algorithm != "rtn" and recipe.compute_dtype != "fp32":
            return f"its {recipe.algorithm} learns in fp32: set precision.compute_dtype=fp32"
        return None if recipe.scale_dtype in ("auto", "fp32") else "its scales are fp32"

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """Prepare, show it the text where the algorithm wants some, convert."""
        import torch

        work_elsewhere()
        from neural_compressor.torch.quantization import convert, prepare

        passages = _passages(cell, recipe) if recipe.algorithm != "rtn" else []
        shown = {"example_inputs": passages[0]} if recipe.algorithm == "awq" else {}
        prepared = prepare(_cast(model, torch.float32), _config(model, cell, recipe), **shown)  # it packs with numpy
        for tokens in passages:
            with torch.inference_mode(), contextlib.suppress(ValueError):  # how its GPTQ ends each pass
                prepared(tokens)
        return _same_dtype(_cast(convert(prepared), getattr(torch, recipe.dtype)))

    def save(self, model: Any, folder: Path) -> None:
        """By its own means where there are packed layers; the rest is floats."""
        if any(map(_packed, model.modules())):
            from neural_compressor.torch.quantization import save

            save(model, str(folder))
        else:
            write_state(model, folder)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """What `save` wrote. Where something is amiss it calls exit(0); the worker makes that an error."""
        if (folder / STATE).exists():
            return read_state(skeleton(), folder, device)
        import torch

        work_elsewhere()
        from neural_compressor.torch.quantization import load

        model = load(str(folder), original_model=_cast(skeleton(), torch.float32))
        # It takes the packed layers from its file and nothing else, expecting a model that has the rest.
        state = torch.load(folder / "quantized_weight.pt", map_location=device, weights_only=True)
        rest = {name: state[name] for name, _ in model.named_parameters()}
        model.load_state_dict(rest, strict=False)
        model.tie_weights()
        return _same_dtype(_cast(model, getattr(torch, recipe.dtype)))


def work_elsewhere() -> None:
    """Keep the library's `nc_workspace`, which it would make in the user's current folder, among temporary files."""
    from neural_compressor.common import set_workspace

    set_workspace(str(Path(gettempdir()) / "nc_workspace"))


def _config(model: Any, cell: Cell, recipe: LowBit) -> Any:
    """Its configuration, with the layers to leave alone by name. GPTQ asks for the model's folder and reads nothing."""
    from neural_compressor.torch import quantization as inc

    from ..models import build

    kind = {"rtn": inc.RTNConfig, "gptq": inc.GPTQConfig, "awq": inc.AWQConfig}[recipe.algorithm]
    shared = {} if recipe.algorithm == "rtn" else {"use_layer_wise": False, "model_path": build.origin(cell.model)[0]}
    config = kind(
        dtype=DTYPES[recipe.format],
        bits=int(recipe.bits),
        use_sym=recipe.symmetric is not False,
        group_size=recipe.group_size,
        quant_lm_head=True,
        **shared,
    )
    wanted = {id(layer) for _, _, layer in asked(model, recipe)}
    for name, module in model.named_modules():
        if hasattr(module, "in_features") and id(module) not in wanted:
            config.set_local(name, kind(dtype="fp32", **shared))
    return config


def _passages(cell: Cell, recipe: LowBit) -> list[Any]:
    """Token ids of the calibration text."""
    from ..models import build
    from .calibration import texts

    tokenizer = build.tokenizer(cell.model)
    return [
        tokenizer(text, return_tensors="pt")["input_ids"][:, :LENGTH] for text in texts(recipe.calibration)[:SAMPLES]
    ]


def _packed(module: Any) -> bool:
    return type(module).__name__ == "INCWeightOnlyLinear"


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """All that is not packed; buffers such as those of rotary positions stay as they are."""
    for module in model.modules():
        for weight in module.parameters(recurse=False) if not _packed(module) else ():
            weight.data = weight.data.to(dtype)
    return model


def _same_dtype(model: Any) -> Any:
    """Its layers answer in fp32, whatever they are asked in."""

    def cast(module: Any, arguments: Any, output: Any) -> Any:
        return output.to(arguments[0].dtype)

    for module in filter(_packed, model.modules()):
        module.register_forward_hook(cast)
    return model
