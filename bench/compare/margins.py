"""How much worse is too much, per metric and cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .columns import REGISTRY
from .kernels import Array
from .noise import Floor
from .settings import Settings
from .thresholds import Thresholds

DEFAULT = {
    "ttft_s": 0.05,
    "tpot_s": 0.03,
    "e2e_s": 0.03,
    "itl_p50_s": 0.03,
    "itl_p90_s": 0.05,
    "itl_p99_s": 0.10,
    "prefill_tokens_per_s": 0.05,
    "decode_tokens_per_s": 0.03,
    "output_tokens_per_s": 0.03,
    "mbu": 0.03,
    "mbu_datasheet": 0.03,
    "mfu": 0.05,
    "mfu_datasheet": 0.05,
    "peak_memory_bytes": 0.02,
    "peak_reserved_bytes": 0.02,
    "load_s": 0.20,
    "compile_s": 0.20,
    "first_call_s": 0.20,
}
"""As a fraction of the value. A metric that is not listed gets OTHER."""
OTHER = 0.05

ABSOLUTE = {"ttft_s": 2e-4, "tpot_s": 5e-5}
"""In base units: below this a change is the clock and the scheduler, not the model."""

NOISE_FACTOR = 2.0
"""The margin is at least this many calibrated launch SDs."""
NOISE_CAP = 0.10
"""A cell that needs a wider margin than this leaves the gate as `noisy`."""


@dataclass(frozen=True)
class Margins:
    """By cell, as fractions."""

    delta: Array
    source: list[str]
    noisy: Array
    """Whether the cell's noise asks for more than NOISE_CAP."""


def margins(
    metric: str, keys: dict[str, list[str]], value: Array, settings: Settings, rules: Thresholds, floor: Floor | None
) -> Margins:
    """The largest of: the metric's margin, the noise floor's, the absolute floor's share of `value`.

    The metric's margin comes from --delta, else from the first rule of the thresholds file that matches, else from
    DEFAULT. `value` is the geometric mean of both sides, so that swapping the sides swaps the verdicts.
    """
    cells = len(value)
    given = settings.delta.get(metric, settings.delta.get(""))
    if given is not None:
        delta, source = np.full(cells, given), ["--delta"] * cells
    else:
        delta, source = np.full(cells, DEFAULT.get(metric, OTHER)), ["default"] * cells
    absolute = np.full(cells, _absolute(metric, settings))
    for i, rule in rules.matching(metric, keys, cells):
        if rule.delta is not None and given is None:
            delta[i], source[i] = rule.delta, rule.name
        if rule.absolute is not None:
            absolute[i] = rule.absolute
    noisy = np.zeros(cells, bool)
    if floor is not None:
        wanted = NOISE_FACTOR * floor.launch_sd(metric, keys, cells)
        noisy = wanted > NOISE_CAP
        delta = _widen(delta, np.minimum(np.nan_to_num(wanted), NOISE_CAP), source, "noise floor")
    with np.errstate(divide="ignore", invalid="ignore"):
        delta = _widen(delta, np.nan_to_num(absolute / value), source, "absolute floor")
    return Margins(delta, source, noisy)


def _absolute(metric: str, settings: Settings) -> float:
    if metric in settings.abs_floor:
        return settings.abs_floor[metric]
    if "" in settings.abs_floor and REGISTRY[metric].kind == "duration":
        return settings.abs_floor[""]
    return ABSOLUTE.get(metric, 0.0)


def _widen(delta: Array, wanted: Array, source: list[str], name: str) -> Array:
    for i in np.flatnonzero(wanted > delta):
        source[i] = name
    return np.maximum(delta, wanted)
