"""An input embedding that stays in the memory of the host. Worker side: imports torch."""

from __future__ import annotations

from typing import Any

import torch


class HostEmbedding(torch.nn.Module):
    """Looks ids up on the CPU and sends the rows to where the ids came from.

    The table is no parameter, so that a model is said to be where its layers are, and moving it leaves the table here.
    """

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self._table = table.detach().to("cpu")

    @property
    def weight(self) -> torch.Tensor:
        """The table, on the CPU."""
        return self._table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows on the device of `ids`."""
        return torch.nn.functional.embedding(ids.to("cpu"), self._table).to(ids.device)


def keep_on_host(model: Any) -> None:
    """Replace the input embedding; a tied output layer keeps the table on its device."""
    embedding = model.get_input_embeddings()
    if type(embedding) is torch.nn.Embedding:
        model.set_input_embeddings(HostEmbedding(embedding.weight))
