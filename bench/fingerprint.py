"""The environment a number was measured in: columns `FINGERPRINT` of results.csv. No secrets, no user paths."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from . import __version__
from .cell import Scalar
from .devices.base import Device
from .devices.cpu import processor_name

ADAPTERS = (
    "accelerate", "deepspeed", "auto-round", "auto-round-lib", "bitsandbytes", "torchao", "neural-compressor-pt",
    "neural-compressor", "intel-extension-for-pytorch", "ipex-llm", "lm-eval", "triton", "pytorch-triton-xpu",
)  # fmt: skip
"""Libraries that can change a number when a worker has imported them."""
MODULES = {"neural-compressor-pt": "neural_compressor", "pytorch-triton-xpu": "triton"}
"""What they are imported as, where that is not the name with underscores."""

_VARIABLES = re.compile(
    r"^(SYCL|ONEAPI|ZE|ZEL|CCL|ONECCL|IPEX|BIGDL|OMP|KMP|MKL|GOMP|ONEDNN|DNNL|TORCH|TORCHINDUCTOR|PYTORCH|CUDA|NCCL|UR|I_MPI|FI|"
    r"DS|BENCH_DS|ENABLE_SDP|USE_XETLA|INC|LD_PRELOAD|MALLOC|UMF|TRITON)(_|$)"
)
_PRIVATE = re.compile(r"TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", re.IGNORECASE)


def collect(device: Device, revision: str = "") -> dict[str, Scalar]:
    """Every fingerprint column, for this process. Unknown is blank."""
    torch = sys.modules.get("torch")
    return {
        "clock": device.clock,
        **device.info(),
        "model_revision": revision,
        "threads": torch.get_num_threads() if torch else "",
        "torch": torch.__version__ if torch else "",
        "transformers": _version("transformers") if "transformers" in sys.modules else "",
        "adapters": " ".join(f"{name}={version}" for name, version in _adapters()),
        "python": platform.python_version(),
        "bench": __version__,
        "git": git_commit(),
        "os": _os(),
        "kernel": platform.release(),
        "cpu": processor_name(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "hostname_hash": hashlib.sha256(platform.node().encode()).hexdigest()[:8],
        "variables": " ".join(f"{name}={value}" for name, value in variables().items()),
    }


def variables() -> dict[str, str]:
    """The set variables that steer the libraries below; what looks like a path is replaced by `<path>`."""
    return {
        name: _public(name, value)
        for name, value in sorted(os.environ.items())
        if _VARIABLES.match(name) and not _PRIVATE.search(name)
    }


def git_commit() -> str:
    """Commit of the working directory's repository, with + when tracked files differ; blank outside of one."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
        if commit.returncode:
            return ""
        dirty = subprocess.run(["git", "diff", "--quiet", "HEAD"], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() + ("+" if dirty.returncode else "")


def _adapters() -> list[tuple[str, str]]:
    """The adapters that were imported, with their versions."""
    imported = [name for name in ADAPTERS if MODULES.get(name, name.replace("-", "_")) in sys.modules]
    return [(name, version) for name in imported if (version := _version(name))]


def _public(name: str, value: str) -> str:
    """A value without paths; of a preloaded library the name stays."""
    if name == "LD_PRELOAD":
        return ":".join(re.sub(r"^.*/", "<path>/", part) for part in re.split(r"[: ]", value) if part)
    return "<path>" if "/" in value or "\\" in value else value


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _os() -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    return match[1] if match else platform.system()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
