"""What this device can do: measured once per machine by a short copy and a matrix product, and the datasheet's word.

Measured peaks are cached, because a probe takes seconds; delete the file, or run `bench doctor --measure`, to repeat.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

from .cell import Scalar
from .devices.base import Device
from .devices.datasheet import lookup
from .record import Peaks


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/bench`, or `~/.cache/bench`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench"


def peaks(device: Device, dtype: str, fingerprint: dict[str, Scalar], measure_again: bool = False) -> Peaks:
    """Bandwidth and FLOP/s of one device, the latter for a torch dtype."""
    what = [fingerprint[key] for key in ("device_name", "driver", "hostname_hash", "threads", "cpu_count", "torch")]
    key = hashlib.sha256(json.dumps([repr(device), *what]).encode()).hexdigest()[:16]
    path = cache_folder() / f"peaks-{key}.json"
    measured = {} if measure_again else _read(path)
    missing = {"bandwidth", dtype} - measured.keys()
    if missing:
        if "bandwidth" in missing:
            measured["bandwidth"] = device.copy_bandwidth()
        if dtype in missing:
            measured[dtype] = device.matmul_flops(dtype)
        device.release_memory()
        _write(path, {**_read(path), **measured})
    sheet = lookup(str(fingerprint["device_name"]))
    return Peaks(
        bandwidth_measured=measured["bandwidth"],
        flops_measured=measured[dtype],
        bandwidth_datasheet=sheet.bandwidth if sheet else math.nan,
        flops_datasheet=sheet.flops.get(dtype, math.nan) if sheet else math.nan,
        source=sheet.source if sheet else "",
    )


def _read(path: Path) -> dict[str, float]:
    """The cached figures: `bandwidth`, and FLOP/s under the name of each dtype; empty without a usable file."""
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(path: Path, measured: dict[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(measured))
        temporary.replace(path)
    except OSError:
        pass  # a machine without a writable home measures each time
