"""Rotary embeddings whose frequencies depend on the length of the sequence."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

from .own_attention import Method


def methods(model: Any) -> list[Method]:
    """What is to be replaced in `model` because its own code asks the host for the length in each step.

    Dynamic NTK's frequencies change beyond the model's positions, where bench does not go: the step does not ask.
    """
    found = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}  # one for each type of layers
        if type(module).__name__ == "PhimoeRotaryEmbedding" and kinds == {"longrope"}:
            found.append(Method(module, "forward", types.MethodType(_phimoe(module, model.device), module)))
        elif "dynamic" in kinds and "longrope" not in kinds:
            found.append(Method(module, "forward", types.MethodType(inspect.unwrap(type(module).forward), module)))
    return found


def _phimoe(module: Any, device: torch.device) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The `forward` of PhiMoE's rotary embedding, whose factor depends on the length."""
    frequencies = module.rope_init_fn(module.config)[0].to(device, torch.float32)
    settings = module.config.rope_parameters
    short, long = (torch.tensor(settings[name], device=device) for name in ("short_mscale", "long_mscale"))

    def forward(_: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        is_long = position_ids.max() + 1 > settings["original_max_position_embeddings"]
        angles = (position_ids[..., None].float() * frequencies).repeat(1, 1, 2)
        factor = torch.where(is_long, long, short)
        return (angles.cos() * factor).to(x.dtype), (angles.sin() * factor).to(x.dtype)

    return forward
