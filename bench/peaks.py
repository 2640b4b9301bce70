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
    """Bandwidth and FLOP/s of the device for a torch dtype, per device."""
    name = str(fingerprint["device_name"])
    sheet = lookup(name)
    measured = _measured(device, dtype, fingerprint, measure_again)
    return Peaks(
        bandwidth_measured=measured["bandwidth"],
        flops_measured=measured["flops"],
        bandwidth_datasheet=sheet.bandwidth if sheet else math.nan,
        flops_datasheet=sheet.flops.get(dtype, math.nan) if sheet else math.nan,
        source=sheet.source if sheet else "",
    )


def _measured(device: Device, dtype: str, fingerprint: dict[str, Scalar], measure_again: bool) -> dict[str, float]:
    what = [fingerprint[key] for key in ("device_name", "driver", "hostname_hash", "threads", "cpu_count", "torch")]
    key = hashlib.sha256(json.dumps([dtype, repr(device), *what]).encode()).hexdigest()[:16]
    path = cache_folder() / f"peaks-{key}.json"
    if not measure_again:
        try:
            cached = json.loads(path.read_text())
            return {"bandwidth": float(cached["bandwidth"]), "flops": float(cached["flops"])}
        except (OSError, ValueError, KeyError):
            pass
    measured = {"bandwidth": device.copy_bandwidth(), "flops": device.matmul_flops(dtype)}
    device.release_memory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"device": fingerprint["device_name"], "dtype": dtype, **measured}))
        temporary.replace(path)
    except OSError:
        pass  # a machine without a writable home measures each time
    return measured
