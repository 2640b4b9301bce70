"""bench's own 4-bit kernels for NVIDIA GPUs: what `engine=compiled` needs to come near the bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import devices
from ..errors import Unsupported
from .base import Provider, Support, providers
from .integers import nearest
from .layers import fill, linears, state_in, write_state

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

GROUPS = (32, 64, 128)
LEAST = (3, 6)
"""Release of Triton whose Gluon the kernels are written in."""
CAPABILITY = (8, 0)
"""Compute capability from which tensor cores have the instructions."""


@providers("triton")
class Triton(Provider):
    """Round to nearest, packed as `compiled/int4.py` says; one kernel reads the layers that share an input."""

    library = "triton"
    modules = ("triton",)
    favoured = ("compiled",)  # a launch costs the host more than that of others' kernels, and nothing within a graph

    def support(self, format: str, device: str) -> Support | str:
        """4-bit integers around zero, on NVIDIA GPUs."""
        if format not in ("woq_int4", "sym_int4"):
            return f"it has no {format}"
        return Support(rank=15, compute=("bf16", "fp16")) if device == "cuda" else f"it has no {format} on {device}"

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Algorithms, zero points and scales that it does not know."""
        if recipe.algorithm != "rtn":
            return f"it knows algorithm=rtn only, not {recipe.algorithm}"
        if recipe.symmetric is False:
            return "it has no zero points: precision.symmetric=true"
        if recipe.scale_dtype not in ("auto", recipe.compute_dtype):
            return "its scales have the compute_dtype: set precision.scale_dtype=auto"
        sizes = ", ".join(map(str, GROUPS))
        return None if recipe.group_size in GROUPS else f"its groups have {sizes} columns: set precision.group_size"

    @classmethod
    def source(cls) -> str:
        """No extra of bench."""
        return "builds of torch for NVIDIA GPUs bring it"

    def missing(self) -> str | None:
        """Triton comes with torch."""
        found = self.version()
        if not found:
            return f"triton is missing: {self.source()}"
        if tuple(int(part) for part in found.split(".")[:2]) < LEAST:
            return f"it needs triton {LEAST[0]}.{LEAST[1]} or newer, as torch 2.11 brings it, found {found}"
        return None

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """Layer by layer, in place."""
        from ..compiled.int4 import Int4Linear, pack

        if device.type == "cuda":
            found = devices.get(cell.device.name)(**cell.device.kwargs).capability()
            if found < CAPABILITY:
                wanted, other = (".".join(map(str, each)) for each in (CAPABILITY, found))
                raise Unsupported(
                    f"provider=triton: it needs an NVIDIA GPU of compute capability {wanted} or newer, found {other}"
                )
        for parent, name, layer in list(linears(model, recipe, self, device)):
            weight = layer.weight.data
            rounded = nearest(weight, 4, recipe.group(layer.in_features), True)
            words = pack((rounded.codes + 8).flatten(1))
            setattr(parent, name, Int4Linear(words, rounded.scale.squeeze(-1).to(weight.dtype), layer.bias))
        return model

    def variant(self, cell: Cell) -> str:
        """The layout of words: an earlier one had single rows."""
        return "+16rows"

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """It packs blocks of 128 columns."""
        return layer.in_features % 128 == 0

    def save(self, model: Any, folder: Path) -> None:
        """As torch saves tensors."""
        write_state(model, folder)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """Packed layers are put where the recipe has them, then filled."""
        import torch

        from ..compiled.int4 import ROWS, Int4Linear

        model, state = skeleton(), state_in(folder, device)
        for parent, name, layer in list(linears(model, recipe, self, device)):
            rows, columns = layer.weight.shape
            words = torch.empty(-(-rows // ROWS) * ROWS, columns // 8, dtype=torch.int32, device=device)
            scale = torch.empty(rows, columns // recipe.group(columns), dtype=layer.weight.dtype, device=device)
            setattr(parent, name, Int4Linear(words, scale, layer.bias))
        return fill(model, state)
