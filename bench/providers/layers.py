"""Walk over a model's linear layers, and its tensors on disk. Worker side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoadError, Unsupported

if TYPE_CHECKING:
    import torch

    from ..precisions.lowbit import LowBit
    from .base import Provider

STATE = "weights.pt"


def linears(
    model: Any, recipe: LowBit, provider: Provider, device: torch.device
) -> Iterator[tuple[Any, str, torch.nn.Linear]]:
    """The linear layers to convert: (the module that holds it, its name there, the layer).

    Each is on the device when it comes, unless the provider wants its floats elsewhere.
    """
    place = provider.place(device)
    for parent, name, layer in asked(model, recipe):
        if provider.fits(layer, recipe, device):
            yield parent, name, layer.to(place)


def asked(model: Any, recipe: LowBit) -> list[tuple[Any, str, torch.nn.Linear]]:
    """The linear layers that the recipe names, whether or not a provider can convert them."""
    import torch

    return [
        (parent, name, layer)
        for prefix, parent in model.named_modules()
        for name, layer in parent.named_children()
        if type(layer) is torch.nn.Linear and not recipe.skipped(f"{prefix}.{name}".lstrip("."))
    ]


def move(model: Any, device: torch.device) -> Any:
    """Bring what is still elsewhere to the device; packed tensors are there, and tied ones stay tied."""
    import torch

    moved: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or tensor.device.type == device.type:
                    continue
                if id(tensor) not in moved:
                    there = tensor.data.to(device)
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    moved[id(tensor)] = torch.nn.Parameter(there, requires_grad=False) if is_weight else there
                held[name] = moved[id(tensor)]
    return model


def left_out(model: Any, recipe: LowBit, name: str, provider: Provider, device: torch.device) -> tuple[str, ...]:
    """A warning when some layers stay as they are. Raises Unsupported when all of them would."""
    layers = [layer for _, _, layer in asked(model, recipe)]
    left = [layer for layer in layers if not provider.fits(layer, recipe, device)]
    if not left:
        return ()
    sizes = sorted({(layer.out_features, layer.in_features) for layer in left})
    shapes = ", ".join(f"{rows} x {columns}" for rows, columns in sizes[:3])
    if len(left) == len(layers):
        raise Unsupported(f"provider={name} cannot pack a linear layer of this model: {shapes}")
    return (f"{len(left)} of {len(layers)} linear layers stay in {recipe.compute_dtype}: {name} cannot pack {shapes}",)


def write_state(model: Any, folder: Path) -> None:
    """All parameters and buffers, packed ones included, as torch saves them."""
    import torch

    torch.save(model.state_dict(), folder / STATE)


def read_state(skeleton: Any, folder: Path, device: torch.device) -> Any:
    """Give a skeleton the tensors that `write_state` wrote, without running any code that the file may hold."""
    return fill(skeleton, state_in(folder, device))


def state_in(folder: Path, device: torch.device) -> dict[str, Any]:
    """What `write_state` wrote, on the device."""
    import torch

    state: dict[str, Any] = torch.load(folder / STATE, map_location=device, weights_only=True)
    return state


def fill(model: Any, state: dict[str, Any]) -> Any:
    """Make the tensors of `state` the model's own; what is already packed and not in `state` stays."""
    import torch

    missing, unexpected = model.load_state_dict(state, assign=True, strict=False)
    parameters = dict(model.named_parameters())
    stray = [name for name in missing if type(parameters.get(name)) is torch.nn.Parameter]
    if stray or unexpected:
        raise LoadError(f"saved weights do not fit the model: {(stray + list(unexpected))[0]} is missing or unknown")
    model.tie_weights()
    model.requires_grad_(False)
    return model
