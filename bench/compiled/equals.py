"""Which of equal scores an indexer takes: on CPU, those that it takes in `generate`.

Scores are sums of what ReLU leaves, so with few heads several are exactly 0. Which of them topk takes depends on what
else it is given, on CPU; on an H200 it did not. The step has room for more positions than there are: here, topk is
given those that there are, as with transformers' dynamic cache. It looks at values, as only the CPU may.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("bench::best_of_each", mutates_args=())
def best_of_each(found: torch.Tensor, there: torch.Tensor, most: int) -> torch.Tensor:
    """The `most` best of each row's scores that are `there`, both of shape [rows, all]: bool of that shape."""
    chosen = torch.zeros_like(there)
    for row, here in enumerate(there):
        at = here.nonzero().flatten()
        chosen[row, at[found[row, at].topk(min(most, len(at))).indices]] = True
    return chosen


@best_of_each.register_fake
def _(found: torch.Tensor, there: torch.Tensor, most: int) -> torch.Tensor:
    return torch.empty_like(there)


class _Given(TorchFunctionMode):
    """In an indexer that scores all places of the cache, `topk` is given those that are `filled`, bool [places]."""

    def __init__(self, filled: torch.Tensor) -> None:
        super().__init__()
        self.filled = filled

    def __torch_function__(
        self, function: Any, _: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if function is not torch.Tensor.topk:
            return function(*arguments, **(named or {}))
        found, most = arguments
        scores = found.squeeze(1)
        chosen = best_of_each(scores, self.filled.expand_as(scores), most)
        indices = chosen.byte().topk(most).indices.unsqueeze(1)  # where there are fewer, then some that are not filled
        return torch.return_types.topk((found.gather(-1, indices), indices))


def as_generate(self: Any, *arguments: Any, past_key_values: Any, **named: Any) -> Any:
    """The `forward` of an indexer that scores all places."""
    with _Given(past_key_values.layers[self.layer_idx].filled()):
        return type(self).forward(self, *arguments, past_key_values=past_key_values, **named)


def indexers(model: Any) -> list[Any]:
    """Those of `model` to which this applies: of positions, on CPU."""
    if model.device.type != "cpu":
        return []
    return [module for module in model.modules() if hasattr(module, "index_topk")]
