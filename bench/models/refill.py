"""Where `generate` drops its cache on the way, because other rotary frequencies begin."""

from __future__ import annotations

from typing import Any

from ..errors import Unsupported
from .build import RELEASE

FILLED_ANEW: dict[str, tuple[int, int] | None] = {"phi3": (5, 20), "phimoe": (5, 20), "phi4_multimodal": None}
"""Families with LongRoPE (Ding et al. 2024) whose `generate` drops the cache where other frequencies begin, and the
transformers since which it fills it anew then: without that, each token follows from the last alone (None: in 5.23)."""


def filled_anew(config: Any, prompt: int, length: int) -> int | None:
    """At how many tokens, padding included, the cache is filled anew while `length` tokens follow the prompt, if ever.

    Raises Unsupported where `generate` drops the cache then and does not fill it.
    """
    rotation = getattr(config, "rope_parameters", None) or {}  # transformers 4 has another name for it
    if rotation.get("rope_type") != "longrope" or config.model_type not in FILLED_ANEW:
        return None
    limit: int = config.original_max_position_embeddings
    if not prompt <= limit < prompt + length - 1:
        return None
    since = FILLED_ANEW[config.model_type]
    if since is None or since > RELEASE:
        release = ".".join(map(str, RELEASE))
        newer = "" if since is None else f"a newer transformers ({'.'.join(map(str, since))}), or "
        raise Unsupported(
            f"generate() of transformers {release} forgets the prompt when {config.model_type} passes {limit} "
            f"positions: use {newer}lengths on one side"
        )
    return limit + 1
