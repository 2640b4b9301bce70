"""What an interpreter can use: versions and accelerators, as JSON on standard output. Run through `start.py`."""

from __future__ import annotations

import importlib.util
import json
import platform
from importlib import metadata
from typing import Any

from .devices.base import devices
from .fingerprint import ADAPTERS, collect
from .peaks import peaks
from .precisions.base import DTYPE_BYTES


def main(argv: list[str]) -> int:
    """Print the findings of this interpreter; with the argument `measure` also fresh peaks, which are then cached."""
    found = findings()
    if argv == ["measure"]:
        found["peaks"] = {name: measured(name) for name in found["devices"] if name != "fake"}
    print(json.dumps(found))  # noqa: T201
    return 0


def measured(name: str) -> dict[str, dict[str, float]]:
    """Peaks of a device by dtype, measured now: byte/s of a copy and FLOP/s of a matrix product."""
    device = devices.get(name)()
    environment = collect(device)
    found = {}
    for dtype in DTYPE_BYTES:
        peak = peaks(device, dtype, environment, measure_again=True)
        found[dtype] = {"bandwidth": peak.bandwidth_measured, "flops": peak.flops_measured}
    return found


def findings() -> dict[str, Any]:
    """Versions of Python and the libraries, and for every device kind either its `info` or why it is unavailable."""
    found: dict[str, Any] = {"python": platform.python_version(), "versions": {}, "devices": {}, "unavailable": {}}
    for name in ("torch", "transformers", *ADAPTERS):
        try:
            found["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if importlib.util.find_spec("torch") is None:
        found["unavailable"] = dict.fromkeys(devices.names(), "torch is not installed in this interpreter")
        return found
    for name, cls in devices.items():
        device = cls()
        reason = device.unavailable()
        if reason:
            found["unavailable"][name] = reason
        else:
            found["devices"][name] = device.info()
    return found
