"""The two observers that `generate` accepts without being patched: a stopping criterion and a logits processor.

A stopping criterion is called exactly once per output token in greedy search, sampling and beam search, in every
version of transformers since 4.39, after the token has been chosen. (Streamers refuse beams; a hook on forward lands
inside compiled graphs.) In beam search it is called before the step's last bookkeeping, which falls into the next
interval. Before 4.39 it is not asked about the last token, whose step then ends where `generate` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import LogitsProcessor, StoppingCriteria

ASKED_EVERY_TIME = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (4, 39)
"""Whether criteria are asked after the last token, too, and answer for each sequence and not for all."""


class _StepHook(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step
        self._go_on: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor | bool:
        self._on_step()
        if not ASKED_EVERY_TIME:
            return False
        if self._go_on is None or self._go_on.shape[0] != input_ids.shape[0]:
            self._go_on = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return self._go_on


class _Stop(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor | bool:
        if not ASKED_EVERY_TIME:
            return self._asked()
        return torch.full((input_ids.shape[0],), self._asked(), dtype=torch.bool, device=input_ids.device)


class _FiniteWatch(LogitsProcessor):  # type: ignore[misc]
    def __init__(self) -> None:
        self._bad: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = (torch.isnan(scores) | torch.isposinf(scores)).any()
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    def finite(self) -> bool:
        """Whether every score seen was a number; -infinity is what masked tokens have."""
        return self._bad is None or not bool(self._bad)


def step_hook(on_step: Callable[[], None]) -> StoppingCriteria:
    """A criterion that calls `on_step` and never stops anything."""
    return _StepHook(on_step)


def stop_when(asked: Callable[[], bool]) -> StoppingCriteria:
    """A criterion that ends all sequences when `asked` says so."""
    return _Stop(asked)


def finite_watch() -> _FiniteWatch:
    """A processor that remembers, on the device, whether any score was NaN or +infinity."""
    return _FiniteWatch()
