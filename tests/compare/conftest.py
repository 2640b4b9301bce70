from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

KEY = {
    "model": "llama3-8b", "weights": "real", "engine": "eager", "precision": "bf16", "decoding": "greedy",
    "num_beams": 1, "batch_size": 1, "input_tokens": 1024, "output_tokens": 128, "device": "xpu",
    "launcher": "local", "tp": "none", "world_size": 1, "stack": "current", "task": "generate", "env": "",
}  # fmt: skip
ENVIRONMENT = {
    "schema": 1,
    "clock": "event",
    "device_name": "Arc B580",
    "device_count": 1,
    "torch": "2.8.0",
    "driver": "25.18",
}


def rows(
    launches: Iterable[dict[str, Any]], run: str = "run-a", axes: dict[str, list[Any]] | None = None, **fixed: Any
) -> pd.DataFrame:
    """One row per combination of `axes` and launch; a launch is a mapping of metrics."""
    axes = axes or {}
    found = []
    for values in itertools.product(*axes.values()):
        for number, metrics in enumerate(launches, 1):
            axis = dict(zip(axes, values, strict=True))
            found.append(
                {**KEY, **axis, "launch": number, "status": "ok", "run": run, **metrics, **ENVIRONMENT, **fixed}
            )
    return pd.DataFrame(found)


def noisy(
    cells: int, launches: int, seed: int, sd: float = 0.005, factor: float = 1.0, run: str = "run-a", **fixed: Any
) -> pd.DataFrame:
    """Cells with different batch sizes and TTFT near 100 ms, TPOT near 20 ms, with log-normal launch noise."""
    random = np.random.default_rng(seed)
    frames = []
    for cell in range(cells):
        metrics = [
            {
                "ttft_s": 0.1 * (1 + cell) * factor * np.exp(sd * random.standard_normal()),
                "tpot_s": 0.02 * factor * np.exp(sd * random.standard_normal()),
            }
            for _ in range(launches)
        ]
        frames.append(rows(metrics, run, batch_size=cell + 1, **fixed))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[pd.DataFrame, str], str]:
    """Write a frame as a CSV and return its path."""

    def write(frame: pd.DataFrame, name: str) -> str:
        path = tmp_path / f"{name}.csv"
        frame.to_csv(path, index=False)
        return str(path)

    return write
