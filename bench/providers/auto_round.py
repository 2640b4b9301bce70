"""auto-round: integers of 4, 5 and 8 bits in Intel's ARK kernels (auto-round-lib), rounded to nearest or learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..errors import LoadError
from .base import Provider, Support, providers
from .integers import Integers, coded, nearest
from .layers import fill, linears, state_in, write_state

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

CPU = Support(rank=20)
XPU = Support(rank=10, compute=("bf16", "fp16"), note="not run by us yet")
FORMATS: dict[str, dict[str, Support]] = {
    "woq_int4": {"cpu": CPU, "xpu": XPU},
    "sym_int4": {"cpu": CPU, "xpu": XPU},
    "asym_int4": {"cpu": CPU},
    "sym_int5": {"cpu": CPU},
    "asym_int5": {"cpu": CPU},
    "int8": {"cpu": CPU, "xpu": XPU},
    "sym_int8": {"cpu": CPU, "xpu": XPU},
}
SAMPLES, LENGTH = 128, 2048
"""Passages at most that are learned from, and tokens of one: AutoRound's own defaults."""


@providers("auto_round")
class AutoRound(Provider):
    """ARK computes in fp32 on CPU and in int8 on XPU, with its own threads: OMP_NUM_THREADS sets them."""

    library = "auto-round-lib"
    modules = ("auto_round_kernel",)
    extra = "auto-round"

    def support(self, format: str, device: str) -> Support | str:
        """CPU and XPU; elsewhere auto-round leaves the kernels to other libraries."""
        if device not in ("cpu", "xpu"):
            return f"its kernels are for cpu and xpu; on {device} they come with gptqmodel, which bench does not use"
        if format not in FORMATS:
            return f"it has no {format}"
        return FORMATS[format].get(device, f"it has no {format} on {device}")

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Algorithms that are others', and zero points on XPU."""
        if recipe.algorithm not in ("rtn", "autoround"):
            return f"it knows algorithm=rtn and autoround, not {recipe.algorithm}"
        if recipe.algorithm == "autoround" and cell.model.weights == "random":
            return "algorithm=autoround learns from text what random weights do not know: use algorithm=rtn"
        if cell.device.name == "xpu" and recipe.symmetric is False:
            return "it has no zero points on xpu: set precision.symmetric=true"
        scales = "fp16" if cell.device.name == "xpu" else "fp32"
        if recipe.scale_dtype not in ("auto", scales):
            return f"its scales are {scales}"
        return None

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """Groups of 16 columns at least."""
        return recipe.group(layer.in_features) % 16 == 0

    def place(self, device: torch.device) -> torch.device:
        """Weights are packed in the memory of the host."""
        import torch

        return torch.device("cpu")

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """Round, or learn how to round, and pack layer by layer."""
        from ..models.ark import ArkLinear

        learned = _learned(model, cell, recipe, self) if recipe.algorithm == "autoround" else {}
        for parent, name, layer in linears(model, recipe, self, device):
            found = learned.pop(layer, None)
            if found is None:
                group = recipe.group(layer.in_features)
                found = nearest(layer.weight.data, int(recipe.bits), group, recipe.symmetric is not False)
            setattr(parent, name, ArkLinear.of(layer, found, recipe.symmetric is False, device))
        return model

    def save(self, model: Any, folder: Path) -> None:
        """In the layout of this machine's kernels."""
        write_state(model, folder)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """Layers that get their packed weights from the file."""
        from ..models.ark import ArkLinear

        model, state = skeleton(), state_in(folder, device)
        names = {id(module): name for name, module in model.named_modules()}
        for parent, name, layer in linears(model, recipe, self, device):
            group, packed = recipe.group(layer.in_features), state[f"{names[id(layer)]}.packed"]
            setattr(parent, name, ArkLinear(layer, int(recipe.bits), group, recipe.symmetric is False, packed))
        return fill(model, state)


def _learned(model: Any, cell: Cell, recipe: LowBit, provider: Provider) -> dict[torch.nn.Linear, Integers]:
    """The integers that AutoRound finds by training the rounding of each block on the calibration text."""
    try:
        import auto_round
    except ImportError as error:
        raise LoadError(
            "algorithm=autoround needs auto-round in the worker's interpreter: pip install 'bench[auto-round]'"
        ) from error
    import torch

    from ..models import build
    from .calibration import texts

    layers = [layer for _, _, layer in linears(model, recipe, provider, torch.device("cpu"))]
    names = {id(module): name for name, module in model.named_modules()}
    columns = {names[id(layer)]: layer.in_features for layer in layers}
    tokenizer = build.tokenizer(cell.model)
    passages = texts(recipe.calibration)
    length = int(median(len(tokenizer(text)["input_ids"]) for text in passages))  # shorter ones are not used
    tuned, _ = auto_round.AutoRound(
        model,
        tokenizer,
        bits=int(recipe.bits),
        group_size=recipe.group_size,
        sym=recipe.symmetric is not False,
        dataset=passages,
        nsamples=min(SAMPLES, len(passages)),
        seqlen=min(LENGTH, length),
        iters=recipe.steps,
        device_map="cpu",
        enable_torch_compile=False,
        layer_config={name: {"group_size": recipe.group(size)} for name, size in columns.items()
                      if recipe.group_size not in (-1, recipe.group(size))},
    ).quantize()  # fmt: skip
    found = {}
    for layer, (name, size) in zip(layers, columns.items(), strict=True):
        new = tuned.get_submodule(name)
        group, half = recipe.group(size), 2 ** (int(recipe.bits) - 1)
        weight, scale = new.weight.data.float().view(layer.out_features, -1, group), new.scale.float().unsqueeze(-1)
        zero = new.zp.float().unsqueeze(-1) if isinstance(new.zp, torch.Tensor) else torch.full_like(scale, new.zp)
        found[layer] = coded(weight, scale, zero - half, int(recipe.bits))
    return found
