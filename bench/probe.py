"""What an interpreter can use: versions and accelerators, as JSON on standard output. Run through `start.py`."""

from __future__ import annotations

import importlib.util
import json
import platform
from importlib import metadata
from typing import Any

from .devices.base import devices
from .fingerprint import ADAPTERS


def main(argv: list[str]) -> int:
    """Print the findings of this interpreter."""
    print(json.dumps(findings()))  # noqa: T201
    return 0


def findings() -> dict[str, Any]:
    """Versions of Python and the libraries, and for every device kind either its `info` or why it is unavailable."""
    found: dict[str, Any] = {"python": platform.python_version(), "versions": {}, "devices": {}, "unavailable": {}}
    for name in ("torch", "transformers", *ADAPTERS):
        try:
            found["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if importlib.util.find_spec("torch") is None:
        found["unavailable"] = {name: "torch is not installed in this interpreter" for name in devices.names()}
        return found
    for name, cls in devices.items():
        device = cls()
        reason = device.unavailable()
        if reason:
            found["unavailable"][name] = reason
        else:
            found["devices"][name] = device.info()
    return found
