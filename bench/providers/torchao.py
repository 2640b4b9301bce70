"""torchao: PyTorch's own kernels for packed weights, a format of its own for each device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import EMULATED, Provider, Support, providers
from .integers import coded
from .layers import linears, read_state, write_state

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

INT4 = {
    "cpu": Support(rank=10),
    "cuda": Support(rank=10, compute=("bf16",)),
    "xpu": Support(rank=20, compute=("bf16", "fp16"), note="not run by us yet"),
}
FORMATS: dict[str, dict[str, Support]] = {
    "woq_int4": INT4,
    "sym_int4": {device: INT4[device] for device in ("cpu", "cuda")},
    "asym_int4": INT4,
    "sym_int5": dict.fromkeys(("cpu", "cuda"), Support(EMULATED, rank=60)),
    "asym_int5": dict.fromkeys(("cpu", "cuda"), Support(EMULATED, rank=60)),
    "int8": {"cpu": Support(rank=30), "cuda": Support(rank=10), "xpu": Support(rank=30, note="not run by us yet")},
    "sym_int8": {"cpu": Support(rank=30), "cuda": Support(rank=10), "xpu": Support(rank=30, note="not run by us yet")},
    "fp8": {"cpu": Support(rank=10), "cuda": Support(rank=10), "xpu": Support(rank=10, note="not run by us yet")},
}


@providers("torchao")
class TorchAO(Provider):
    """int4 in the layout that the device's kernel reads; int8 and fp8 with a scale for each row."""

    library = "torchao"
    modules = ("torchao",)
    extra = "torchao"

    def support(self, format: str, device: str) -> Support | str:
        """Integers of 5 bits are stored in 8, so those do not count as real."""
        if format not in FORMATS:
            return f"it has no {format}"
        return FORMATS[format].get(device, f"it has no {format} on {device}")

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Sizes and scales that its kernels do not read."""
        if recipe.algorithm != "rtn":
            return f"it knows algorithm=rtn only, not {recipe.algorithm}"
        if recipe.scale_dtype not in ("auto", recipe.compute_dtype):
            return "its scales have the compute_dtype: set precision.scale_dtype=auto"
        if recipe.bits == 4:
            if recipe.symmetric and cell.device.name == "xpu":
                return "its int4 on xpu has zero points: set precision.symmetric=false"
            sizes = (32, 64, 128) if cell.device.name == "cpu" else (32, 64, 128, 256)
            return None if recipe.group_size in sizes else f"its int4 has groups of {', '.join(map(str, sizes))}"
        if recipe.bits == 5:
            return None if recipe.group_size != -1 else "its int5 needs a precision.group_size"
        return None if recipe.group_size == -1 else "its 8-bit formats have one scale per row: precision.group_size=-1"

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """Layer by layer, in place."""
        import torch
        from torchao.quantization import quantize_

        for _, _, layer in linears(model, recipe, self, device):
            group = recipe.group(layer.in_features)
            if recipe.bits == 4 and recipe.symmetric:
                layer.weight = torch.nn.Parameter(_symmetric(layer.weight.data, group), requires_grad=False)
            else:
                quantize_(layer, _config(recipe, group, device.type))
        return model

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """Its int4 kernels have groups of 32 at least, and on CPU read rows by 16."""
        if recipe.bits != 4:
            return True
        return recipe.group(layer.in_features) >= 32 and (device.type != "cpu" or layer.out_features % 16 == 0)

    def save(self, model: Any, folder: Path) -> None:
        """As torch saves tensors: save_pretrained refuses its int4."""
        write_state(model, folder)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """The tensors in their layout."""
        import torchao.prototype.quantization.int4
        import torchao.quantization  # noqa: F401  # both say which classes may be in the file

        return read_state(skeleton(), folder, device)


def _config(recipe: LowBit, group: int, device: str) -> Any:
    """torchao's name for the format with groups of so many columns."""
    import torch
    from torchao import quantization as ao

    if recipe.format == "fp8":
        return ao.Float8WeightOnlyConfig(set_inductor_config=False)
    if recipe.bits == 8:
        return ao.Int8WeightOnlyConfig(set_inductor_config=False)
    if recipe.bits == 5:
        from torchao.quantization.granularity import PerGroup
        from torchao.quantization.quant_primitives import MappingType

        mapping = MappingType.SYMMETRIC if recipe.symmetric else MappingType.ASYMMETRIC
        return ao.IntxWeightOnlyConfig(getattr(torch, "int5"), PerGroup(group), mapping)  # noqa: B009  # new in 2.6
    if device == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group, set_inductor_config=False)
    packing = {"cuda": "tile_packed_to_4d", "xpu": "plain_int32"}[device]
    return ao.Int4WeightOnlyConfig(group, int4_packing_format=packing, set_inductor_config=False)


def _symmetric(weight: torch.Tensor, group: int) -> Any:
    """Integers around zero in the layout of torchao's int4, which has a float of its own for the middle of a group."""
    import torch
    from torchao.quantization.utils import pack_tinygemm_scales_and_zeros

    rows, columns = weight.shape
    groups = weight.float().view(rows, -1, group)
    scale = (groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 7).to(weight.dtype)
    codes = coded(groups, scale.float(), torch.zeros_like(groups[..., :1]), 4).codes.flatten(1).int() + 8
    scale = scale.squeeze(-1)
    if weight.device.type == "cpu":
        from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        both = pack_tinygemm_scales_and_zeros(scale, torch.zeros_like(scale), scale.dtype)
        return Int4OpaqueTensor(packed, both, [1, group], weight.shape)
    from torchao.quantization.quantize_.workflows.int4.int4_tile_packed_to_4d_tensor import Int4TilePackedTo4dTensor

    # The kernel reads tiles of 8 rows and 1024 columns.
    more = (0, -columns % 1024, 0, -rows % 8)
    codes = torch.nn.functional.pad(codes, more, value=8)
    scale = torch.nn.functional.pad(scale, (0, more[1] // group, 0, more[3]))
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
    both = pack_tinygemm_scales_and_zeros(scale, torch.zeros_like(scale), scale.dtype)
    return Int4TilePackedTo4dTensor(packed, both, [1, group], weight.shape)
