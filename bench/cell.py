"""`Cell`: one point of the matrix, a scalar on every axis. It is its own key, row label and resume token."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from .models.spec import Model

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Choice:
    """One option of an axis: a registered name and those of its settings that differ from the defaults.

    `str(Choice("static", (("compile", False),)))` is ``static(compile=False)``: the label in tables and CSV files.
    """

    name: str
    settings: tuple[tuple[str, Scalar], ...] = ()
    hidden: tuple[tuple[str, Scalar], ...] = field(default=(), compare=False)
    """Settings that change no number, and the places on this machine of what `settings` knows by its checksum."""

    def __str__(self) -> str:
        inside = ",".join(f"{key}={value}" for key, value in self.settings)
        return f"{self.name}({inside})" if inside else self.name

    @property
    def kwargs(self) -> dict[str, Any]:
        """The settings as keyword arguments of the registered class."""
        return dict((*self.settings, *self.hidden))


CHOICES = ("engine", "precision", "device", "launcher")
"""The axes that are a `Choice`."""


@dataclass(frozen=True)
class Generate:
    """Generate exactly `output_tokens` after a prompt of exactly `input_tokens`, for `batch_size` prompts at once."""

    input_tokens: int
    output_tokens: int
    batch_size: int = 1
    num_beams: int = 1
    decoding: str = "greedy"
    """`greedy`, `beam` (num_beams > 1) or `sample` (also with beams)."""

    task = "generate"


@dataclass(frozen=True)
class Evaluate:
    """Answer the documents of an accuracy task; `batch_size` of them at once."""

    task: str
    """Name of an lm-eval task, group or tag, or `passages`, which is built in."""
    batch_size: int = 16
    limit: int | None = None
    """Documents, from the first; None is all of them."""
    num_fewshot: int | None = None
    """Worked examples before each document; None is what the task says."""
    data_sha256: str = ""
    """Checksum of the local file that the documents come from; blank when they come from where the task says."""
    include_sha256: str = ""
    """Checksum of the task files in `include`; blank without."""
    data: str | None = field(default=None, compare=False)
    """Path of that file. Two copies of one file are one cell."""
    include: str | None = field(default=None, compare=False)
    """Folder with task files in lm-eval's form, besides lm-eval's own."""
    allow_random: bool = field(default=False, compare=False)
    """Whether random weights may be asked, which tests speed and the instrument and nothing else."""

    decoding = "greedy"
    num_beams = 1
    input_tokens = output_tokens = 0
    """What these axes of results.csv hold for a workload that does not have them."""


Workload = Generate | Evaluate
"""What a cell measures. Another kind of workload is another dataclass with a `task` name."""


@dataclass(frozen=True)
class Cell:
    """What is measured. Two cells are the same if and only if everything that can change their numbers is the same."""

    model: Model
    workload: Workload
    engine: Choice = Choice("eager")
    precision: Choice = Choice("bf16")
    device: Choice = Choice("cpu")
    launcher: Choice = Choice("local")
    world_size: int = 1
    tp: str = "none"
    stack: str = "current"
    python: str | None = None
    """Interpreter of the worker; None is the one that runs the parent."""
    env: tuple[tuple[str, str], ...] = ()
    """Environment variables of the worker, as a sweep axis."""
    stack_env: tuple[tuple[str, str], ...] = ()
    """Those that the stack sets."""
    iterations: int = 10
    warmup: int = 3
    seed: int = 0

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits of a SHA-256 over every field: stable across processes, machines and field order."""
        fields = self.to_json()
        for axis in CHOICES:
            del fields[axis]["hidden"]
        if not self.stack_env:  # so that the cells of earlier runs keep their ids
            del fields["stack_env"]
        for item in dataclasses.fields(self.workload):
            if not item.compare:
                del fields["workload"][item.name]
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @cached_property
    def load_key(self) -> tuple[object, ...]:
        """Cells with the same key share one loaded model, and so one `Job`."""
        return (self.model, self.engine, self.precision, self.device, self.launcher, self.world_size, self.tp,
                self.stack, self.python, self.env, self.stack_env, self.seed)  # fmt: skip

    def axes(self) -> dict[str, Scalar]:
        """The key columns of results.csv, in their order. No path of the user's machine is in it."""
        work = self.workload
        return {
            "model": self.model.name,
            "weights": self.model.weights,
            "engine": str(self.engine),
            "precision": str(self.precision),
            "decoding": work.decoding,
            "num_beams": work.num_beams,
            "batch_size": work.batch_size,
            "input_tokens": work.input_tokens,
            "output_tokens": work.output_tokens,
            "device": str(self.device),
            "launcher": self._launcher(),
            "tp": self.tp,
            "world_size": self.world_size,
            "stack": self.stack,
            "task": work.task,
            "env": " ".join(f"{name}={_without_folder(value)}" for name, value in self.env),
        }

    def _launcher(self) -> str:
        """The launcher, its machines counted rather than named."""
        kept: list[tuple[str, Scalar]] = []
        for key, value in self.launcher.settings:
            if key == "hosts":
                kept.append((key, str(value).count(",") + 1))
            elif key not in ("hostfile", "mpirun", "port"):
                kept.append((key, value))
        return str(Choice(self.launcher.name, tuple(kept)))

    def __str__(self) -> str:
        work = self.workload
        parts = [self.model.name, str(self.precision), str(self.engine), str(self.device)]
        if self.world_size > 1:
            parts.append(f"{self._launcher()} x{self.world_size} {self.tp}")
        if self.stack != "current":
            parts.append(self.stack)
        if isinstance(work, Evaluate):
            parts += [work.task, f"bs{work.batch_size}"]
        else:
            parts += [f"bs{work.batch_size}", f"beams{work.num_beams}", f"{work.input_tokens}/{work.output_tokens}"]
        if work.decoding == "sample":
            parts.append("sample")
        parts += [f"{name}={value}" for name, value in self.env]
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` gives an equal cell back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """The cell that `to_json` wrote."""
        fields = dict(data)
        for axis in CHOICES:
            choice = fields[axis]
            settings, hidden = (tuple((key, value) for key, value in choice[kind]) for kind in ("settings", "hidden"))
            fields[axis] = Choice(choice["name"], settings, hidden)
        fields["model"] = Model(**fields["model"])
        kind = Evaluate if "task" in fields["workload"] else Generate
        fields["workload"] = kind(**fields["workload"])
        for key in ("env", "stack_env"):
            fields[key] = tuple((name, value) for name, value in fields.get(key, ()))
        return cls(**fields)


def _without_folder(value: str) -> str:
    """The value of a variable; of a path the last part only."""
    return f"<path>/{value.rstrip('/').rpartition('/')[2]}" if "/" in value else value


@dataclass(frozen=True)
class Job:
    """Cells that share one loaded model, in one launch (one fresh process)."""

    cells: tuple[Cell, ...]
    launch: int = 1
    name: str = field(default="", compare=False)
    """Folder name under `jobs/`, unique within a run."""
