"""Rotary embeddings whose frequencies depend on the length of the sequence."""

from __future__ import annotations

import inspect
import types
from typing import Any

from ..errors import Unsupported
from .own_attention import Method

FILLED_ANEW = {"phi3", "phi4_multimodal", "phimoe"}
"""Families with LongRoPE (Ding et al. 2024) whose `generate` drops the cache where other frequencies begin."""


def fixed(model: Any) -> list[Method]:
    """Dynamic NTK's frequencies change beyond the model's positions, where bench does not go: the step does not ask."""
    return [
        Method(module, "forward", types.MethodType(inspect.unwrap(type(module).forward), module))
        for module in model.modules()
        if getattr(module, "rope_type", None) == "dynamic"
    ]


def refuse_change(config: Any, prompt: int, length: int) -> None:
    """Raise Unsupported if `generate` fills the cache anew before the last of `length` tokens after the prompt."""
    if config.model_type not in FILLED_ANEW or config.rope_parameters["rope_type"] != "longrope":
        return
    limit = config.original_max_position_embeddings
    if prompt <= limit < prompt + length - 1:
        raise Unsupported(
            f"generate() fills the cache anew when {config.model_type} passes {limit} positions, engine=compiled does "
            "not: use engine=eager, or lengths on one side"
        )
