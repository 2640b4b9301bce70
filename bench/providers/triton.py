"""bench's own 4-bit kernels, in Triton: what `engine=compiled` needs to come near the bandwidth of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Provider, Support, providers
from .integers import nearest
from .layers import fill, linears, state_in, write_state

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

DEVICES = {
    "cuda": Support(rank=5, compute=("bf16", "fp16")),
    "xpu": Support(rank=30, compute=("bf16", "fp16"), note="not run by us yet"),
}


@providers("triton")
class Triton(Provider):
    """Round to nearest, packed as `compiled/int4.py` says; one kernel reads the layers that share an input."""

    library = "triton"
    modules = ("triton",)
    extra = ""

    def support(self, format: str, device: str) -> Support | str:
        """4-bit integers on GPUs."""
        if format not in ("woq_int4", "sym_int4", "asym_int4"):
            return f"it has no {format}"
        return DEVICES.get(device, f"it has no {format} on {device}")

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Algorithms and scales that it does not know."""
        if recipe.algorithm != "rtn":
            return f"it knows algorithm=rtn only, not {recipe.algorithm}"
        if recipe.scale_dtype not in ("auto", recipe.compute_dtype):
            return "its scales have the compute_dtype: set precision.scale_dtype=auto"
        if recipe.group_size not in (32, 64, 128, 256):
            return "its groups have 32, 64, 128 or 256 columns"
        return None

    def missing(self) -> str | None:
        """Triton comes with the builds of torch for the devices that have it."""
        return super().missing() and "triton is missing, which torch for this device brings: reinstall torch"

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """Layer by layer, in place."""
        from ..compiled.int4 import Int4Linear, pack

        for parent, name, layer in list(linears(model, recipe, self, device)):
            group = recipe.group(layer.in_features)
            weight = layer.weight.data
            rounded = nearest(weight, 4, group, recipe.symmetric is not False)
            words = pack((rounded.codes + 8).flatten(1).long(), group)
            scale = rounded.scale.squeeze(-1).to(weight.dtype).contiguous()
            offset = None
            if recipe.symmetric is False:
                offset = (rounded.zero + 8).squeeze(-1).to(weight.dtype).contiguous()
            setattr(parent, name, Int4Linear(words, scale, offset, layer.bias, group))
        return model

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """Columns in groups of 32 at least."""
        return recipe.group(layer.in_features) >= 32

    def save(self, model: Any, folder: Path) -> None:
        """As torch saves tensors."""
        write_state(model, folder)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """Packed layers are put where the file has words for them, then filled."""
        import torch

        from ..compiled.int4 import Int4Linear

        model, state = skeleton(), state_in(folder, device)
        for parent, name, layer in list(linears(model, recipe, self, device)):
            group = recipe.group(layer.in_features)
            rows, columns = layer.weight.shape
            dtype = layer.weight.dtype
            words = torch.empty(rows, columns // 8, dtype=torch.int32, device=device)
            scale = torch.empty(rows, columns // group, dtype=dtype, device=device)
            offset = torch.empty_like(scale) if recipe.symmetric is False else None
            setattr(parent, name, Int4Linear(words, scale, offset, layer.bias, group))
        return fill(model, state)
