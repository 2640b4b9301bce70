"""Stacks: interpreters with pins of their own, one YAML each in configs/stack. Where they are, and whether they work.

The planning side: standard library and PyYAML only. `install.py` makes the environments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError
from .peaks import cache_folder

CURRENT = "current"
"""The stack of the interpreter that runs bench."""

MARKER = "bench-stack.json"
"""Written into an environment when it is complete: which recipe it was made from and what was found in it."""

_CHECK = """
import importlib, json, platform, sys
from importlib import metadata
names, modules = json.loads(sys.argv[1])
for module in modules:
    importlib.import_module(module)
found = {"python": platform.python_version()}
for name in names:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True)
class Stack:
    """What a YAML of configs/stack says."""

    name: str
    python: str | None = None
    """An interpreter to use instead of the one that `bench stack create` makes."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the worker. Those of the `env` axis win."""
    interpreters: tuple[str, ...] = ()
    """Versions of Python it can be made with, the best first."""
    torch: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is installed first, by kind of device."""
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is installed then, by kind of device."""
    imports: tuple[str, ...] = ()
    """Modules that a working environment can import."""

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Stack:
        """The stack of a YAML or a composed node. Raises ConfigError for a key that stacks do not have."""
        unknown = node.keys() - {item.name for item in dataclasses.fields(cls)}
        if unknown or not isinstance(node.get("name"), str):
            what = f"has no key {min(unknown)}" if unknown else "needs a name"
            raise ConfigError(f"stack={node.get('name')} {what}: see configs/stack")
        env = node.get("env") or {}
        if not isinstance(env, Mapping) or any(isinstance(value, (bool, list, dict)) for value in env.values()):
            raise ConfigError(f"stack.env={env}: texts and numbers are needed; put 'true' and the like in quotes")
        by_kind = {
            key: {kind: tuple(map(str, pins)) for kind, pins in (node.get(key) or {}).items()}
            for key in ("torch", "packages")
        }
        return cls(
            name=node["name"],
            python=node.get("python"),
            env={name: str(value) for name, value in env.items() if value is not None},
            interpreters=tuple(map(str, node.get("interpreters") or ())),
            imports=tuple(node.get("imports") or ()),
            **by_kind,
        )

    @property
    def folder(self) -> Path:
        """Where its environment is, or would be."""
        return stacks_folder() / self.name

    def recipe(self, kind: str) -> str:
        """12 hexadecimal digits that change with what would be installed for a kind of device."""
        what = json.dumps([self.torch.get(kind), self.packages.get(kind)])
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    def interpreter(self) -> str | None:
        """The worker's interpreter, None for the one that runs now. Raises ConfigError when not created."""
        if self.python is not None or self.name == CURRENT:
            return self.python
        state = self.state()
        if state != "ready":
            what = "has not been created here" if state == "absent" else "is not finished"
            raise ConfigError(f"stack={self.name} {what}: run bench stack create {self.name}")
        return str(executable(self.folder))

    def state(self) -> str:
        """`ready`, `unfinished` (what an interrupted creation leaves) or `absent`."""
        if self.made() and executable(self.folder).is_file():
            return "ready"
        return "unfinished" if self.folder.is_dir() else "absent"

    def made(self) -> dict[str, Any]:
        """What the marker says: `recipe`, `kind` and `versions`; empty without one."""
        try:
            found: dict[str, Any] = json.loads((self.folder / MARKER).read_text())
        except (OSError, ValueError):
            return {}
        return found


def stacks_folder() -> Path:
    """`$BENCH_STACKS`, or `stacks` in the cache of bench: one folder per environment."""
    place = os.environ.get("BENCH_STACKS")
    return Path(place).expanduser().absolute() if place else cache_folder() / "stacks"


def stacks() -> dict[str, Stack]:
    """All stacks that have a YAML, the current one first. Raises ConfigError for a YAML that is none."""
    found = [Stack.of(yaml.safe_load(path.read_text())) for path in sorted(configs().glob("*.yaml"))]
    found.sort(key=lambda stack: stack.name != CURRENT)
    return {stack.name: stack for stack in found}


def configs() -> Path:
    """`configs/stack`: inside the package when installed from a wheel, beside it in a clone."""
    package = Path(__file__).parent
    inside = package / "configs"
    return (inside if inside.is_dir() else package.parent / "configs") / "stack"


def executable(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def check(stack: Stack, python: str, kind: str) -> dict[str, str]:
    """Versions of what the stack pins, from its interpreter, after importing what it names.

    Raises ConfigError with the last line of what went wrong.
    """
    pins = [*stack.torch.get(kind, ()), *stack.packages.get(kind, ())]
    names = [pin.partition("==")[0].partition("<")[0].partition("[")[0] for pin in pins]
    try:
        done = subprocess.run(
            [python, "-c", _CHECK, json.dumps([names, stack.imports])],
            capture_output=True, text=True, timeout=600, check=False, cwd="/", env=clean_environment(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"stack={stack.name}: {python} cannot be run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ConfigError(f"stack={stack.name} does not work: {last}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def clean_environment() -> dict[str, str]:
    """The environment without what would bring another environment's packages in."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
