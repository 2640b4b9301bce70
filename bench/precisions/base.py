"""What loading a model needs to know of a precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..record import Weights
from ..registry import Registry

if TYPE_CHECKING:
    import torch

    from ..cell import Cell


class Precision:
    """One format of the weights. Settings are the fields of the subclass, a frozen dataclass."""

    @property
    def bytes_per_parameter(self) -> float:
        """Stored bytes per parameter of a linear layer, scales included; used to predict memory."""
        raise NotImplementedError

    @property
    def dtype(self) -> str:
        """Name in torch of the dtype of activations, KV cache and whatever is not quantised."""
        raise NotImplementedError

    def unsupported(self, cell: Cell) -> str | None:
        """Why this format does not exist on the cell's device, in one line; None when it does. Asked without torch."""
        return None

    def providers(self, cell: Cell) -> tuple[str, ...]:
        """Who can convert the weights, best first, whether or not they are installed; nobody for plain formats."""
        return ()

    def load_kwargs(self, device: str) -> dict[str, Any]:
        """Extra arguments of `from_pretrained`."""
        return {}

    def load(self, cell: Cell, device: torch.device, **kwargs: Any) -> tuple[Any, Weights]:
        """The cell's model in this format on `device`, and how its weights are stored.

        `kwargs` are those of `from_pretrained`. Raises LoadError, OutOfMemory or Unsupported.
        """
        import torch

        from ..models import build, cost

        model = build.load(cell.model, getattr(torch, self.dtype), device, cell.seed, **kwargs)
        model = self.apply(model)
        return model, Weights(packed_bytes=cost.stored(model))

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Convert a model that was loaded in `dtype`; the default leaves it as it is."""
        return model


DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

precisions: Registry[Precision] = Registry("precision", __package__)


def precision_of(cell: Cell) -> Precision:
    """The cell's precision with its settings."""
    return precisions.get(cell.precision.name)(**cell.precision.kwargs)
