"""What an engine needs of tensor parallelism: every rank loads its part, and the whole answers like one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cell import Cell
from ..errors import Unsupported
from ..models.shape import Shape
from ..record import ModelCost
from ..registry import Registry

if TYPE_CHECKING:
    import torch

    from ..models.spec import Model

WEIGHTS = ("fp32", "bf16", "fp16")
"""Precisions that can be split: formats that pack their weights are not."""


@dataclass(frozen=True)
class Sharded:
    """A model of which every rank holds a part. Calling it, `generate` included, is a collective operation."""

    model: Any
    """A transformers model; all ranks have to call it with the same arguments, and get the same answer."""
    cost: ModelCost
    """Of the whole model."""
    warnings: tuple[str, ...] = ()


class TensorParallel:
    """One way to split a model."""

    name: str
    """What `tp=` calls it."""

    def unsupported(self, cell: Cell) -> str | None:
        """Why the cell cannot be split this way, in one line; None when it can. Asked while planning, without torch."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Import and build what `load` needs, so that `load_s` does not contain it; the ranks have met."""

    def load(
        self, model: Model, dtype: torch.dtype, device: torch.device, seed: int, kv_bytes: int, **kwargs: Any
    ) -> Sharded:
        """This rank's part of the model on `device`; every rank of the default process group calls it.

        `kwargs` are those of `from_pretrained`. Raises LoadError, OutOfMemory or Unsupported.
        """
        raise NotImplementedError


tensor_parallel: Registry[TensorParallel] = Registry("tp", __package__)


def unsupported(cell: Cell) -> str | None:
    """Why the cell's ranks and its `tp` do not go together, in one line; None when they do."""
    if cell.tp == "none":
        several = f"world_size={cell.world_size} needs tp=deepspeed or tp=transformers"
        return several if cell.world_size > 1 else None
    if cell.world_size == 1:
        return f"tp={cell.tp} splits a model over several ranks: set world_size=2 or more"
    if cell.engine.name != "eager":
        return f"tp={cell.tp} works with engine=eager only"
    if cell.precision.name not in WEIGHTS:
        return f"tp={cell.tp} splits plain weights only: {', '.join(WEIGHTS)}"
    shape = Shape.of(cell.model)
    if shape is not None and shape.num_heads % cell.world_size:
        return f"{shape.num_heads} attention heads of {cell.model.name} cannot be dealt out to {cell.world_size} ranks"
    return tensor_parallel.get(cell.tp)().unsupported(cell)


def layers(model: Any) -> int:
    """Parameters that this rank holds, without the tables at both ends, which need not be split."""
    from torch.distributed.tensor import DTensor

    ends = [model.get_input_embeddings().weight]
    if model.get_output_embeddings() is not None:
        ends.append(model.get_output_embeddings().weight)
    held = [item for item in model.parameters() if not any(item is end for end in ends)]
    return sum((item.to_local() if isinstance(item, DTensor) else item).numel() for item in held)


def check(name: str, whole: int, local: int, ranks: int) -> tuple[str, ...]:
    """Warnings about a model of whose `whole` parameters in layers this rank holds `local`.

    Raises Unsupported when nothing is split: some releases of the libraries load such a model on every rank without a
    word.
    """
    share = local / whole if whole else 0.0
    if share > 0.97:
        raise Unsupported(f"tp={name} does not split this model: each rank holds {share:.0%} of its layers")
    if share > 1.5 / ranks:
        return (f"tp={name} splits this model in part: each rank holds {share:.0%} of its layers",)
    return ()
