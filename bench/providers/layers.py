"""Walk over a model's linear layers, and its tensors on disk. Worker side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..precisions.lowbit import LowBit

STATE = "weights.pt"


def linears(model: Any, recipe: LowBit) -> Iterator[tuple[Any, str, torch.nn.Linear]]:
    """The linear layers that the recipe converts: (the module that holds it, its name there, the layer)."""
    import torch

    found = []
    for prefix, parent in model.named_modules():
        for name, layer in parent.named_children():
            if type(layer) is torch.nn.Linear and not recipe.skipped(f"{prefix}.{name}".lstrip(".")):
                found.append((parent, name, layer))
    yield from found


def write_state(model: Any, folder: Path) -> None:
    """All parameters and buffers, packed ones included, as torch saves them."""
    import torch

    torch.save(model.state_dict(), folder / STATE)


def read_state(skeleton: Any, folder: Path, device: torch.device) -> Any:
    """Give a skeleton the tensors that `write_state` wrote, without running any code that the file may hold."""
    import torch

    state = torch.load(folder / STATE, map_location=device, weights_only=True, mmap=device.type != "cpu")
    skeleton.load_state_dict(state, assign=True)
    skeleton.tie_weights()
    return skeleton
