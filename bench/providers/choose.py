"""Which provider converts a cell's weights, or why none does. `refusal` is asked while planning, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..cell import Cell
from ..errors import Unsupported
from .base import EMULATED, REAL, Provider, Support, providers

if TYPE_CHECKING:
    from ..precisions.lowbit import LowBit


@dataclass(frozen=True)
class Chosen:
    """A provider that has the cell's format."""

    name: str
    provider: Provider
    support: Support


def choose(cell: Cell, recipe: LowBit) -> Chosen:
    """The provider to use, in the worker. Raises Unsupported with what to install, or with why there is none."""
    found = candidates(cell, recipe)
    if isinstance(found, str):
        raise Unsupported(found)
    reasons = {item.name: item.provider.missing() for item in found}
    usable = next((item for item in found if reasons[item.name] is None), None)
    if usable is None:
        near = [item.name for item in found if item.provider.extra] or list(reasons)  # a stack is the longer way
        raise Unsupported("; or ".join(f"provider={name}: {reasons[name]}" for name in near))
    return usable


def refusal(cell: Cell, recipe: LowBit) -> str | None:
    """Why no provider has the cell's format with these settings on its device, in one line; None when one does."""
    found = candidates(cell, recipe)
    return found if isinstance(found, str) else None


def candidates(cell: Cell, recipe: LowBit) -> list[Chosen] | str:
    """The providers that can take the cell, best first, all real or all emulated; or why there are none."""
    names = providers.names() if recipe.provider == "auto" else [recipe.provider]
    found: list[Chosen] = []
    reasons: dict[str, str] = {}
    for name in names:
        provider = providers.get(name)()
        answer = _asked(provider, cell, recipe)
        if isinstance(answer, Support):
            found.append(Chosen(name, provider, answer))
        else:
            reasons[name] = answer
    if not found and recipe.provider != "auto":
        return f"provider={recipe.provider}: {reasons[recipe.provider]}"
    real = [item for item in found if item.support.kernels == REAL]
    if real or (found and (cell.workload.task != "generate" or recipe.force)):

        def order(item: Chosen) -> tuple[bool, int, str]:
            return cell.engine.name not in item.provider.favoured, item.support.rank, item.name

        return sorted(real or found, key=order)
    format, device = cell.precision.name, cell.device.name
    # What has the format on this device says what is in the way; the others only that they do not have it.
    near = [f"{name}: {reason}" for name, reason in reasons.items() if _has(name, cell)]
    serving = [name for name in names if cell.engine.name in providers.get(name).engines]
    if not near and len(serving) == 1:  # an engine with a library of its own
        near = [f"{name}: {reasons[name]}" for name in serving if name in reasons]
    if near or not found:
        why = f". {'; '.join(near)}" if near else ""
        return f"no provider has precision={format} on {device} with engine={cell.engine.name} and these settings{why}"
    return (
        f"{format} on {device} is emulated by {found[0].name}, so its latency would be that of floats: "
        f"workload=accuracy takes it, precision.force=true measures it all the same"
    )


def _has(name: str, cell: Cell) -> bool:
    """Whether a provider has real kernels for the cell's format, engine and device, leaving settings aside."""
    cls = providers.get(name)
    support = cls().support(cell.precision.name, cell.device.name)
    return isinstance(support, Support) and support.kernels == REAL and cell.engine.name in cls.engines


def _asked(provider: Provider, cell: Cell, recipe: LowBit) -> Support | str:
    if cell.engine.name not in provider.engines:
        return f"it works with engine={' or '.join(provider.engines)}, not {cell.engine.name}"
    support = provider.support(cell.precision.name, cell.device.name)
    if not isinstance(support, Support):
        return support
    if recipe.compute_dtype not in support.compute:
        return f"it computes in {' or '.join(support.compute)}: set precision.compute_dtype"
    return provider.refuses(cell, recipe) or support


__all__ = ["EMULATED", "REAL", "Chosen", "candidates", "choose", "refusal"]
