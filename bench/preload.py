"""tcmalloc, which Intel's scripts preload: where it is. Standard library only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from functools import cache
from pathlib import Path

from .errors import ConfigError, did_you_mean

CHOICES = ("auto", "always", "never")
"""`auto` preloads it on Intel GPUs where it is installed."""


def checked(value: str) -> str:
    """A setting `tcmalloc`. Raises ConfigError."""
    if value not in CHOICES:
        raise ConfigError(did_you_mean("engine.tcmalloc", value, CHOICES))
    return value


def unsupported(choice: str) -> str | None:
    """Why it cannot be preloaded, in one line, where it has to be."""
    if choice != "always" or tcmalloc():
        return None
    return "engine.tcmalloc=always: there is no libtcmalloc.so here: install google-perftools, or gperftools with conda"


def environment(choice: str, device: str) -> dict[str, str]:
    """LD_PRELOAD with it, after what is preloaded already."""
    library = tcmalloc()
    if library is None or choice == "never" or (choice == "auto" and device != "xpu"):
        return {}
    before = os.environ.get("LD_PRELOAD", "")
    return {"LD_PRELOAD": before if "tcmalloc" in before else f"{before}:{library}".lstrip(":")}


@cache
def tcmalloc() -> str | None:
    """Its path: in the conda environment, or where the linker looks."""
    conda = os.environ.get("CONDA_PREFIX")
    for name in ("libtcmalloc.so", "libtcmalloc.so.4"):
        if conda and (candidate := Path(conda) / "lib" / name).is_file():
            return str(candidate)
    found = ""
    for program in ("ldconfig", "/sbin/ldconfig"):  # the latter for users whose PATH leaves sbin out
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            found += subprocess.run([program, "-p"], capture_output=True, text=True, timeout=10, check=False).stdout
    for line in found.splitlines():
        name, _, path = (part.strip() for part in line.partition("=>"))
        if name.startswith(("libtcmalloc.so", "libtcmalloc_minimal.so")):
            return path
    return None
