"""`bench doctor`: what this machine can run, or why not and what to install."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from . import __version__, install
from .cell import Cell, Choice, Generate
from .engines.base import engines
from .errors import ConfigError
from .hardware import probe
from .launchers.base import Launcher, launchers
from .models.spec import Model
from .precisions.base import precisions
from .tensor_parallel import tensor_parallel
from .units import gibibytes, significant

USAGE = """\
usage: bench doctor [--measure] [python=INTERPRETER]

Say which devices, engines, precisions and launchers can be used here, with versions, or why not and what to install.
--measure repeats the bandwidth and FLOP/s probes that MBU and MFU refer to.
"""

INSTALL = {
    "xpu": "install the XPU build of torch: TORCH=xpu ./run_benchmark.sh, or uv pip install --torch-backend=xpu torch",
    "cuda": "install a CUDA build of torch: TORCH=cuda ./run_benchmark.sh, or pip install torch",
}


def main(arguments: list[str]) -> int:
    """Print the report; 0 when at least one real device can be used."""
    measure = False
    python = None
    for argument in arguments:
        if argument == "--measure":
            measure = True
        elif argument.startswith("python="):
            python = argument.partition("=")[2]
        elif argument in ("-h", "--help"):
            sys.stdout.write(USAGE)
            return 0
        else:
            raise ConfigError(f"bench doctor has no argument {argument}: see bench doctor --help")
    found = probe(python, *(["measure"] if measure else []))
    sys.stdout.write("\n".join(_lines(found)) + "\n")
    return 0 if found["devices"].keys() - {"fake"} else 1


def _lines(found: dict[str, Any]) -> Iterable[str]:
    versions = " ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"bench {__version__}, python {found['python']}: {versions}"
    yield ""
    yield "devices"
    for kind, info in found["devices"].items():
        count = f"{info['device_count']} x " if info["device_count"] > 1 else ""
        driver = f", driver {info['driver']}" if info["driver"] else ""
        memory = gibibytes(info["device_memory_bytes"])
        yield _line(kind, True, f"{count}{info['device_name']}, {memory}{driver}")
    for kind, reason in found["unavailable"].items():
        yield _line(kind, False, reason.partition(". `bench doctor`")[0])
        if kind in INSTALL:
            yield f"{'':19}{INSTALL[kind]}"
    usable = [kind for kind in found["devices"] if kind != "fake"]
    for title, axis, registry in (("engines", "engine", engines), ("precisions", "precision", precisions),
                                  ("launchers", "launcher", launchers),
                                  ("tensor parallelism", "tp", tensor_parallel)):  # fmt: skip
        yield ""
        yield title
        for name, cls in registry.items():
            reasons = {kind: cls().unsupported(_cell(kind, axis, name)) for kind in usable}
            works = [kind for kind, reason in reasons.items() if reason is None]
            refusals = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items() if reason)
            about = (cls.__doc__ or "").strip().splitlines()[0]
            version = cls().about() if works and issubclass(cls, Launcher) else ""
            about = f"{version}. {about}" if version else about
            yield _line(name, bool(works), f"{', '.join(works) or refusals}: {about}")
    yield ""
    yield "stacks"
    yield from install.lines()
    for kind, peaks in found.get("peaks", {}).items():
        yield ""
        yield f"peaks of {kind}, measured now"
        for dtype, peak in peaks.items():
            yield (
                f"  {dtype:10} copy {significant(peak['bandwidth'] / 1e9)} GB/s, "
                f"matrix product {significant(peak['flops'] / 1e12)} TFLOP/s"
            )


def _line(name: str, usable: bool, text: str) -> str:
    return f"  {name:12} {'yes' if usable else 'no':3}  {text}"


def _cell(kind: str, axis: str, name: str) -> Cell:
    """A small cell with one axis set, to ask extensions about."""
    choices: dict[str, Any] = {"device": Choice(kind), axis: Choice(name)}
    if axis == "tp":
        choices = {"device": Choice(kind), "tp": name, "world_size": 2}
    return Cell(model=Model("tiny", weights="random"), workload=Generate(1, 1), **choices)
