"""What the machine has, for the planning side, which never imports torch.

A machine without accelerator device nodes is a CPU machine, and nothing has to be started to know it. Otherwise a probe
runs once under the worker's interpreter, because whether a GPU is usable depends on the torch in there; its answer is
cached until the machine boots or the interpreter's packages change.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cell import Scalar
from .devices.cpu import Cpu
from .devices.fake import FakeDevice
from .errors import ConfigError
from .launchers.base import module_argv
from .peaks import cache_folder

ACCELERATORS = ("xpu", "cuda")
"""Device kinds that `device=auto` prefers to the processor, in this order."""

_NODES = ("/dev/dri", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/accel")


@dataclass(frozen=True)
class Hardware:
    """The devices that one interpreter can use."""

    devices: dict[str, dict[str, Scalar]]
    """`Device.info()` by kind."""
    unavailable: dict[str, str]
    """Why not, by kind."""

    def best(self) -> str:
        """What `device=auto` means here."""
        return next((kind for kind in ACCELERATORS if kind in self.devices), "cpu")

    def memory(self, kind: str) -> float | None:
        """Bytes of memory of one device of a kind, None when unknown."""
        value = self.devices.get(kind, {}).get("device_memory_bytes")
        return float(value) if isinstance(value, (int, float)) else None


def hardware(python: str | None = None) -> Hardware:
    """The devices usable from `python` (None: this interpreter). Raises ConfigError when it cannot be run."""
    if not any(Path(node).exists() for node in _NODES):
        reason = "this machine has no such device"
        return Hardware({"cpu": Cpu().info(), "fake": FakeDevice().info()}, dict.fromkeys(ACCELERATORS, reason))
    path = cache_folder() / f"probe-{_key(python)}.json"
    try:
        return _read(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError):
        pass
    found = probe(python)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    except OSError:
        pass  # without a writable home the probe runs each time
    return _read(found)


def _read(found: dict[str, Any]) -> Hardware:
    return Hardware(found["devices"], found["unavailable"])


def probe(python: str | None, *arguments: str) -> dict[str, Any]:
    """What `bench.probe` prints under an interpreter. Raises ConfigError when it cannot be run."""
    argv = module_argv(python, "bench.probe", *arguments)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"python={argv[0]} cannot be run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ConfigError(f"python={argv[0]} cannot run bench: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _key(python: str | None) -> str:
    """Changes with the interpreter, its installed packages, the boot, and what hides devices."""
    executable = Path(python or sys.executable)
    packages = sorted(executable.parent.parent.glob("lib/python3*/site-packages"))
    what = [
        str(executable),
        *[str(folder.stat().st_mtime_ns) for folder in packages],
        _boot(),
        *[os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR")],
    ]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""
