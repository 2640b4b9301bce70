"""bitsandbytes: the formats of QLoRA and LLM.int8(), on every device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Provider, Support, providers
from .layers import fill, linears, state_in, write_state

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

THRESHOLD = 6.0
"""Activations beyond this are multiplied in floats: the default of transformers, from the paper on LLM.int8()."""


@providers("bitsandbytes")
class BitsAndBytes(Provider):
    """nf4 and fp4 in blocks, and int8 whose activations are rounded as well."""

    library = "bitsandbytes"
    modules = ("bitsandbytes",)
    extra = "bitsandbytes"

    def support(self, format: str, device: str) -> Support | str:
        """The same three formats everywhere."""
        if format not in ("nf4", "fp4", "int8"):
            return f"it has no {format}"
        if device not in ("cpu", "cuda", "xpu"):
            return f"it has no kernels for {device}"
        rank = {"int8": {"cpu": 10}.get(device, 20)}.get(format, 10)
        return Support(rank=rank, note="not run by us yet" if device == "xpu" else "")

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Block sizes and scales that it does not have."""
        if recipe.algorithm != "rtn":
            return f"it knows algorithm=rtn only, not {recipe.algorithm}"
        if recipe.bits == 8:
            if cell.engine.name != "eager" and cell.device.name != "cpu":
                return (
                    "its int8 asks the host in every layer whether there are outliers, which no graph can: engine=eager"
                )
            if recipe.group_size != -1:
                return "its int8 has one scale per row: precision.group_size=-1"
            return None if recipe.scale_dtype in ("auto", "fp32") else "its int8 has fp32 scales"
        if recipe.group_size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            return "its blocks have 32 to 4096 weights: precision.group_size=64"
        return None if recipe.scale_dtype in ("auto", "fp32", "int8") else "its scales are fp32, or int8"

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """Layer by layer; the floats of a layer are freed before the next one."""
        _hush()
        for parent, name, layer in linears(model, recipe, self, device):
            new = _empty(layer, recipe)
            if recipe.bits == 8:
                import bitsandbytes as bnb

                new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False)._quantize(device)
            else:
                new.weight = _params4(layer.weight.data, recipe, new)._quantize(device)
            setattr(parent, name, new)
        return model

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """Blocks have 32 weights at least; on CPU they end with the row, and rows are packed by 32."""
        if recipe.bits == 8:
            return True
        return recipe.group(layer.in_features) >= 32 and (device.type != "cpu" or layer.out_features % 32 == 0)

    def save(self, model: Any, folder: Path) -> None:
        """Only before the first call: on CPU that packs the weights anew, and what is saved then is wrong."""
        write_state(model, folder)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """Packed weights and the state that belongs to each."""
        import bitsandbytes as bnb

        state = state_in(folder, device)
        model = skeleton()
        names = {id(module): name for name, module in model.named_modules()}
        _hush()
        for parent, name, layer in linears(model, recipe, self, device):
            prefix = f"{names[id(layer)]}.weight"
            new = _empty(layer, recipe)
            packed = state.pop(prefix)
            if recipe.bits == 8:
                scales = state.pop(f"{names[id(layer)]}.SCB")
                state.pop(f"{names[id(layer)]}.weight_format", None)
                new.weight = bnb.nn.Int8Params(packed, requires_grad=False, CB=packed, SCB=scales)
            else:
                beside = {key: state.pop(key) for key in list(state) if key.startswith(f"{prefix}.")}
                stats = {key[len(prefix) + 1 :]: value for key, value in beside.items()}
                new.weight = bnb.nn.Params4bit.from_prequantized(packed, stats, device=device, module=new)
            setattr(parent, name, new)
        return fill(model, state)


def _hush() -> None:
    """It says in every call of every layer that activations are cast to fp16."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _empty(layer: torch.nn.Linear, recipe: LowBit) -> Any:
    """A layer of bitsandbytes in the place of a linear one, which keeps its bias and has no weight yet."""
    import bitsandbytes as bnb
    import torch

    rows, columns = layer.out_features, layer.in_features
    with torch.device("meta"):
        if recipe.bits == 8:
            new = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=THRESHOLD)
        else:
            new = bnb.nn.Linear4bit(
                columns, rows, bias=False, compute_dtype=getattr(torch, recipe.dtype), quant_type=recipe.format
            )
    new.bias = layer.bias
    return new.eval()


def _params4(weight: torch.Tensor, recipe: LowBit, module: Any) -> Any:
    import bitsandbytes as bnb

    return bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        blocksize=recipe.group(weight.shape[1]),
        compress_statistics=recipe.scale_dtype == "int8",
        quant_type=recipe.format,
        module=module,
    )
