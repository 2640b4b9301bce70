"""Built in: floats rounded to the values of a format. What accuracy needs where no library has the format."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import EMULATED, Provider, Support, providers
from .integers import nearest
from .layers import linears, read_state, write_state

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution. Source: QLoRA, appendix E."""
FLOATS = {"fp4": (2, 1), "fp6": (3, 2)}
"""Exponent and mantissa bits; all codes are numbers, as in the OCP microscaling formats."""
INTEGERS = {
    "woq_int4": 4, "sym_int4": 4, "asym_int4": 4, "sym_int5": 5, "asym_int5": 5, "int8": 8, "sym_int8": 8,
}  # fmt: skip
MIXED = {"mixed_fp4": ("sym_int4", "fp4"), "mixed_fp8": ("sym_int8", "fp8")}


@providers("rounding")
class Rounding(Provider):
    """Needs no library, runs on every device, and computes in floats: right for accuracy, wrong for latency."""

    def support(self, format: str, device: str) -> Support | str:
        """Every format on every device."""
        return Support(EMULATED, rank=90)

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """It rounds to nearest, with scales as exact as the sums."""
        if recipe.algorithm != "rtn":
            return f"it knows algorithm=rtn only, not {recipe.algorithm}"
        return None if recipe.scale_dtype in ("auto", "fp32") else "its scales are fp32: set precision.scale_dtype=fp32"

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """Round every weight in place."""
        for _, _, layer in linears(model, recipe, self, device):
            group = recipe.group(layer.in_features)
            layer.weight.data.copy_(rounded(layer.weight.data, recipe.format, group, recipe.symmetric))
        return model

    def save(self, model: Any, folder: Path) -> None:
        """The floats."""
        write_state(model, folder)

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """The floats."""
        return read_state(skeleton(), folder, device)


def rounded(weight: torch.Tensor, format: str, group: int, symmetric: bool | None = None) -> torch.Tensor:
    """The values that a format has for a weight [rows, columns], with a scale for `group` columns each; in fp32.

    Mixed formats take the better of two for the whole layer.
    """
    import torch

    if format in MIXED:
        tried = [rounded(weight, name, group, symmetric) for name in MIXED[format]]
        return min(tried, key=lambda item: float((item - weight.float()).square().sum()))
    groups = weight.float().view(weight.shape[0], -1, group)
    if format in INTEGERS:
        return nearest(weight, INTEGERS[format], group, symmetric is not False).values()
    if format == "fp8":
        scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448.0
        found = (groups / scale).to(torch.float8_e4m3fn).float() * scale
    else:
        found = _levels(groups, format)
    return found.view(weight.shape)


def _levels(groups: torch.Tensor, format: str) -> torch.Tensor:
    """The nearest of the format's values, which are scaled to reach the largest weight of a group."""
    import torch

    levels = torch.tensor(_values(format), device=groups.device)
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / levels[-1]
    found = torch.bucketize(groups / scale, (levels[1:] + levels[:-1]) / 2)
    return levels[found] * scale


@cache
def _values(format: str) -> tuple[float, ...]:
    """All numbers of a small format, in order."""
    if format == "nf4":
        return NF4
    exponents, mantissas = FLOATS[format]
    bias, steps = 2 ** (exponents - 1) - 1, 2**mantissas
    positive = [
        (fraction / steps) * 2.0 ** (1 - bias) if power == 0 else (1 + fraction / steps) * 2.0 ** (power - bias)
        for power in range(2**exponents)
        for fraction in range(steps)
    ]
    return tuple(sorted({*positive, *(-value for value in positive)}))
