"""`bench doctor`: what this machine can run, or why not and what to install."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from . import __version__, install
from .cell import Cell, Choice, Generate
from .engines.base import Engine, engines
from .errors import ConfigError
from .hardware import probe
from .launchers.base import Launcher, launchers
from .models.spec import Model
from .precisions.base import precisions
from .precisions.lowbit import LowBit
from .providers.base import EMULATED, Support, providers
from .tensor_parallel import tensor_parallel
from .units import gibibytes, significant

USAGE = """\
usage: bench doctor [--measure] [python=INTERPRETER]

Say which devices, engines, precisions, providers of low-bit weights and launchers can be used here, with versions, or
why not and what to install.
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
            if issubclass(cls, LowBit):
                yield _format(name, cls, usable, found["versions"])
                continue
            if issubclass(cls, Engine) and cls.library and cls.library not in found["versions"]:
                yield _line(name, False, f"stack={cls.stack} has {cls.library}, which it needs: {_about(cls)}")
                continue
            reasons = {kind: cls().unsupported(_cell(kind, axis, name)) for kind in usable}
            works = [kind for kind, reason in reasons.items() if reason is None]
            refusals = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items() if reason)
            about = _about(cls)
            version = cls().about() if works and issubclass(cls, Launcher) else ""
            about = f"{version}. {about}" if version else about
            yield _line(name, bool(works), f"{', '.join(works) or refusals}: {about}")
    yield ""
    yield "providers of low-bit precisions"
    for name, each in providers.items():
        installed = _version(name, found["versions"])
        state = (each.source() or "not installed") if installed is None else installed or "built in"
        yield _line(name, installed is not None, f"{state}: {_about(each)}", 22)
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


def _line(name: str, usable: bool, text: str, width: int = 12) -> str:
    return f"  {name:{width}} {'yes' if usable else 'no':3}  {text}"


def _about(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _format(name: str, cls: type[LowBit], kinds: list[str], versions: dict[str, str]) -> str:
    """Who has a low-bit format, by device, and who is not installed; `auto` prefers real kernels that it asks for."""
    parts = []
    works = False
    for kind in kinds:
        found: dict[str, list[str]] = {"": [], "emulated by ": [], "not installed: ": []}
        wanted = False
        for provider, each in providers.items():
            support = each().support(name, kind)
            if not isinstance(support, Support) or "eager" not in each.engines:
                continue
            absent, emulated = _version(provider, versions) is None, support.kernels == EMULATED
            found["not installed: " if absent else "emulated by " if emulated else ""].append(provider)
            wanted |= absent and not emulated
        works |= bool(found[""] or (found["emulated by "] and not wanted))
        told = "; ".join(title + ", ".join(names) for title, names in found.items() if names)
        parts.append(f"{kind}: {told or 'nobody'}")
    return _line(name, works, f"{'. '.join(parts)}: {_about(cls)}")


def _version(provider: str, versions: dict[str, str]) -> str | None:
    """Version of a provider's library in the worker's interpreter, blank for what is built in; None when absent."""
    library = providers.get(provider).library
    return versions.get(library) if library else ""


def _cell(kind: str, axis: str, name: str) -> Cell:
    """A small cell with one axis set, to ask extensions about."""
    choices: dict[str, Any] = {"device": Choice(kind), axis: Choice(name)}
    if axis == "tp":
        choices = {"device": Choice(kind), "tp": name, "world_size": 2}
    return Cell(model=Model("tiny", weights="random"), workload=Generate(1, 1), **choices)
