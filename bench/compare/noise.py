"""The noise floor: how far launches of one and the same build scatter on this machine, cell by cell."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from .kernels import Array

KIND = "bench noise floor"
VERSION = 1
FEWEST = 5
"""Launches below which a standard deviation is not worth writing down."""


@dataclass(frozen=True)
class Floor:
    """What `bench compare noise` wrote."""

    cells: list[dict[str, Any]]
    fingerprint: dict[str, str]
    created: datetime.date
    self_check: dict[str, Any] | None

    def launch_sd(self, metric: str, keys: dict[str, list[str]], cells: int) -> Array:
        """Calibrated launch SD (log) by cell, NaN where the floor has none."""
        return self._column("launch_sd", metric, keys, cells)

    def launches(self, metric: str, keys: dict[str, list[str]], cells: int) -> Array:
        """Launches behind it, NaN where there are none."""
        return self._column("k", metric, keys, cells)

    def _column(self, name: str, metric: str, keys: dict[str, list[str]], cells: int) -> Array:
        # Keys that only one of the two files has do not matter: a floor may be older than a column.
        shared = [key for key in keys if self.cells and key in self.cells[0]["key"]]
        known = {
            tuple(entry["key"].get(key, "") for key in shared): entry[name]
            for entry in self.cells
            if entry["metric"] == metric
        }
        values = [known.get(tuple(keys[key][i] for key in shared), math.nan) for i in range(cells)]
        return np.array(values, float)


def read_floor(path: str) -> Floor:
    """Read a noise floor. Raises ConfigError when the file is something else."""
    try:
        data = json.loads(Path(path).read_text())
        if data["kind"] != KIND or data["version"] != VERSION:
            raise KeyError("kind")
        created = datetime.date.fromisoformat(data["created"])
        return Floor(data["cells"], data["fingerprint"], created, data.get("self_check"))
    except OSError as error:
        raise ConfigError(f"cannot read the noise floor {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no noise floor: make one with bench compare noise RESULTS… --out {path}"
        ) from error
