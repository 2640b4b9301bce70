"""A model as data: where it comes from and its exact shape. No torch here: plans and tables use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Model:
    """Which model, with which weights."""

    name: str
    """Short name: the model's YAML in configs/model, the last part of a path or of a hub id."""
    id: str | None = None
    """Id on the Hugging Face hub; None for a built-in model."""
    source: str = "hub"
    """Where real weights come from: `hub`, `modelscope`, `path`, or `package` for those that bench brings."""
    path: str | None = None
    """Local folder, with `source=path`; with `source=package` relative to the package."""
    modelscope_id: str | None = None
    """Id on ModelScope where it differs from `id`."""
    revision: str | None = None
    weights: str = "real"
    """`real`, or `random`: the exact architecture with normal(0, 0.02) weights and no download."""
    architecture: str | None = None
    """Canonical JSON of the transformers configuration, `model_type` included. None: read with the weights."""
    parameters: int | None = None
    """Number of parameters, tied embeddings counted once."""
    approximation: str | None = None
    """What stands in, when transformers has no class of this architecture."""
    trust_remote_code: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """The architecture as a dict, empty when it is not known before loading."""
        config: dict[str, Any] = json.loads(self.architecture, object_hook=_special) if self.architecture else {}
        return config


def _special(value: dict[str, Any]) -> Any:
    """What transformers writes for a number that JSON does not have, such as infinity, as a number."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value
