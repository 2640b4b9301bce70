"""`BenchConfig`: the schema of what a user may write, and `Request`: one checked point of it.

Everything a user can get wrong is caught here or in `compose.py`, before anything is launched, as a ConfigError.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cell import Cell, Choice, Evaluate, Generate, Scalar, Workload
from .devices.base import devices
from .engines.base import engines
from .errors import ConfigError, did_you_mean
from .launchers.base import launchers
from .models.spec import Model
from .precisions.base import precisions
from .registry import Registry
from .stacks import CURRENT, Stack
from .tensor_parallel import tensor_parallel
from .values import environments, integer, integers, interpreter, lengths, listed, one_of, run_name, seconds

AXES: dict[str, Registry[Any]] = {
    "engine": engines,
    "precision": precisions,
    "device": devices,
    "launcher": launchers,
}
"""Config groups whose options are registered classes."""

LISTS = ("num_beams", "batch_size", "lengths")
"""Inner axes: keys that take a list."""

DECODINGS = ("greedy", "beam", "sample")

WORKLOADS = ("generate", "accuracy")

EMBEDDED = "passages"
"""The accuracy task that is built in: `passages.py`."""


@dataclass
class AccuracyConfig:
    """Settings of `workload=accuracy`."""

    task: Any = "auto"
    """Name of an lm-eval task, group or tag, or a list; auto is `passages` for tiny-trained, else lambada_standard."""
    limit: int | None = None
    """Documents, from the first."""
    num_fewshot: int | None = None
    batch_size: int = 16
    data: str | None = None
    """Local .jsonl file with the task's documents, instead of the hub's."""
    include: str | None = None
    """Folder with task files in lm-eval's form, besides lm-eval's own."""
    allow_random: bool = False
    """Evaluate random weights, too."""


@dataclass
class ChatConfig:
    """Settings of `bench chat`."""

    system: str | None = None
    """What the model is told before the conversation."""
    max_new_tokens: int = 256
    """Longest reply."""
    template: str | None = None
    """File with a chat template (Jinja), instead of the tokenizer's."""


@dataclass
class BenchConfig:
    """What `bench run` accepts. Inner axes take one value or a list; every combination is a cell."""

    model: Any = None
    """Option of configs/model, a hub id or a local folder."""
    engine: Any = None
    precision: Any = None
    device: Any = None
    launcher: Any = None
    workload: Any = None
    """generate measures latency, accuracy evaluates tasks."""
    accuracy: AccuracyConfig = field(default_factory=AccuracyConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    weights: str | None = None
    """real or random; by default what the model's YAML says."""
    decoding: str = "greedy"
    """greedy (beam search where num_beams > 1) or sample."""
    num_beams: Any = field(default_factory=lambda: [1, 4])
    batch_size: Any = 1
    lengths: Any = "1024/128"
    """input/output tokens."""
    iterations: int = 10
    warmup: int = 3
    launches: int = 1
    seed: int = 0
    world_size: int = 1
    tp: str = "none"
    stack: Any = None
    """Option of configs/stack: the worker's environment. With `python`, a label; by default its environment's name."""
    python: str | None = None
    """Interpreter of the worker, instead of the stack's."""
    env: Any = field(default_factory=dict)
    """Environment variables of the worker; a list of values is an axis."""
    check_memory: bool = True
    """Report cells that cannot fit into the device's memory as unsupported instead of trying them."""
    results: str | None = None
    """Results folder; by default results/<date>-<name>."""
    name: str | None = None
    """Part of the default results folder's name."""
    retry_failed: bool = False
    timeout_s: float = 1800.0
    """For one cell, compilation and warm-up included."""
    load_timeout_s: float = 3600.0
    """For importing libraries and loading a model."""


@dataclass(frozen=True)
class Chat:
    """`ChatConfig`, checked; the template has been read."""

    system: str | None
    max_new_tokens: int
    template: str | None


@dataclass(frozen=True)
class Request:
    """One point of a sweep, checked: the cells it asks for and how to run them. `device` may still be `auto`."""

    cells: tuple[Cell, ...]
    chat: Chat
    launches: int
    results: str | None
    name: str | None
    retry_failed: bool
    timeout_s: float
    load_timeout_s: float
    check_memory: bool


def request(config: Mapping[str, Any]) -> Request:
    """The checked request of a composed configuration (plain containers). Raises ConfigError."""
    options = dict(config)
    names = [item.name for item in dataclasses.fields(BenchConfig)]
    _known("key", options, names)
    for name in names:  # what ~name leaves behind
        if name not in options or (options[name] is None and name in (*AXES, "model", "workload", "stack")):
            raise ConfigError(f"{name} has been removed: give it a value with {name}=")
    workload = one_of("workload", options["workload"]["name"], WORKLOADS)
    stack, python = _stack(options["stack"], options["python"])
    model = _model(options["model"], options["weights"])
    shared: dict[str, Any] = {
        "model": model,
        **{axis: _choice(axis, options[axis]) for axis in AXES},
        "world_size": integer("world_size", options["world_size"], 1),
        "tp": one_of("tp", options["tp"], ["none", *tensor_parallel.names()]),
        "stack": stack.name,
        "python": python,
        "stack_env": tuple(sorted(stack.env.items())),
        "iterations": integer("iterations", options["iterations"], 1),
        "warmup": integer("warmup", options["warmup"], 0),
        "seed": integer("seed", options["seed"], 0, maximum=2**63 - 1),
    }
    works: Sequence[Workload]
    if workload == "generate":
        works = _generations(options)
    else:
        works = _evaluations(options["accuracy"], model)
        shared |= {"iterations": 1, "warmup": 0}  # of generating: changing them changes no answer
    cells = [Cell(workload=work, env=env, **shared) for env in environments(options["env"]) for work in works]
    return Request(
        cells=tuple(cells),
        chat=_chat(options["chat"]),
        launches=integer("launches", options["launches"], 1),
        results=options["results"],
        name=run_name(options["name"]),
        retry_failed=bool(options["retry_failed"]),
        timeout_s=seconds("timeout_s", options["timeout_s"]),
        load_timeout_s=seconds("load_timeout_s", options["load_timeout_s"]),
        check_memory=bool(options["check_memory"]),
    )


def _generations(options: Mapping[str, Any]) -> list[Workload]:
    """Every combination of lengths, batch size and beams."""
    return [
        Generate(inputs, outputs, batch, beams, _decoding(str(options["decoding"]), beams))
        for (inputs, outputs), batch, beams in itertools.product(
            lengths(options["lengths"]),
            integers("batch_size", options["batch_size"]),
            integers("num_beams", options["num_beams"]),
        )
    ]


def _evaluations(node: Any, model: Model) -> list[Workload]:
    """One workload per task."""
    if not isinstance(node, Mapping):
        raise ConfigError("accuracy has been removed: its keys are given one by one, such as accuracy.task=")
    _known("key in accuracy", node, [item.name for item in dataclasses.fields(AccuracyConfig)])
    tasks = list(dict.fromkeys(listed(node["task"])))
    for task in tasks:
        if not isinstance(task, str) or not re.fullmatch(r"[A-Za-z0-9_.+-]+", task):
            raise ConfigError(f"accuracy.task={task}: the name of an lm-eval task is needed, or {EMBEDDED}")
    if not tasks:
        raise ConfigError("accuracy.task is empty: give at least one task, such as accuracy.task=lambada_standard")
    limit, shots, data = node["limit"], node["num_fewshot"], node["data"]
    if data is not None and (len(tasks) > 1 or EMBEDDED in tasks):
        raise ConfigError("accuracy.data is the data of one lm-eval task: give one with accuracy.task=")
    include = node["include"]
    if include is not None and not Path(include).expanduser().is_dir():
        raise ConfigError(f"accuracy.include={include} is no folder: give one with task files in lm-eval's form")
    return [
        Evaluate(
            task=(EMBEDDED if model.source == "package" else "lambada_standard") if task == "auto" else task,
            batch_size=integer("accuracy.batch_size", node["batch_size"], 1),
            limit=None if limit is None else integer("accuracy.limit", limit, 1),
            num_fewshot=None if shots is None else integer("accuracy.num_fewshot", shots, 0),
            data_sha256=_checksum("accuracy.data", data) if data else "",
            data=str(Path(data).expanduser().absolute()) if data else None,
            include_sha256=_checksum_of_tasks(Path(include).expanduser()) if include is not None else "",
            include=str(Path(include).expanduser().absolute()) if include is not None else None,
            allow_random=bool(node["allow_random"]),
        )
        for task in tasks
    ]


def _chat(node: Any) -> Chat:
    if not isinstance(node, Mapping):
        raise ConfigError("chat has been removed: its keys are given one by one, such as chat.system=")
    _known("key in chat", node, [item.name for item in dataclasses.fields(ChatConfig)])
    template = node["template"]
    if template is not None:
        try:
            template = Path(template).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"chat.template={template} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"chat.template={template} is not text in UTF-8") from error
    return Chat(node["system"], integer("chat.max_new_tokens", node["max_new_tokens"], 1), template)


def _checksum(key: str, file: str) -> str:
    try:
        return hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{key}={file} cannot be read: {error.strerror}") from error


def _checksum_of_tasks(folder: Path) -> str:
    """Of the task files in a folder: another prompt or metric is another cell."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".py"))
    if not files:
        raise ConfigError(
            f"accuracy.include={folder} has no .yaml file: give a folder with task files in lm-eval's form"
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _model(node: Mapping[str, Any], weights: str | None) -> Model:
    fields = dict(node)
    fields.pop("validated", None)
    architecture = fields.pop("architecture", None)
    _known("key in model", fields, [item.name for item in dataclasses.fields(Model)])
    fields["architecture"] = json.dumps(architecture, sort_keys=True) if architecture else None
    if weights:
        fields["weights"] = one_of("weights", weights, ("real", "random"))
    if architecture is not None and not isinstance(architecture, Mapping):
        raise ConfigError(f"model.architecture={architecture}: a mapping is needed, as in the YAMLs of configs/model")
    for key, value in fields.items():
        kind = {"parameters": int, "trust_remote_code": bool}.get(key, str)
        if type(value) is not kind and (value is not None or key in ("name", "weights", "trust_remote_code")):
            what = {int: "an integer", bool: "true or false", str: "a text"}[kind]
            raise ConfigError(f"model.{key}={value}: {what} is needed")
    model = Model(**fields)
    one_of("model.weights", model.weights, ("real", "random"))
    if model.source is not None:
        one_of("model.source", model.source, ("hub", "modelscope", "path", "package"))
    if model.weights == "real" and not (model.path if model.source in ("path", "package") else model.id):
        raise ConfigError(f"model={model.name} has no published weights: use weights=random")
    if model.weights == "random" and not model.architecture:
        raise ConfigError(
            f"weights=random needs an architecture, and model={model.name} has none before it is downloaded: "
            f"give a local folder with a config.json, or one of the models in configs/model"
        )
    return model


_OFTEN_SET = {"revision": None, "trust_remote_code": False}
"""Keys of a model without a YAML that overrides such as model.trust_remote_code=true need to find."""


def local_model(folder: str) -> dict[str, Any]:
    """The `model` node of a local folder. Raises ConfigError when it holds no model."""
    path = Path(folder).expanduser().resolve()
    try:
        architecture = json.loads((path / "config.json").read_text())
    except OSError:
        raise ConfigError(
            f"model={folder}: no config.json there. A model folder is what save_pretrained writes"
        ) from None
    except ValueError as error:
        raise ConfigError(f"model={folder}: config.json is not JSON: {error}") from None
    return {"name": path.name, "source": "path", "path": str(path), "architecture": architecture, **_OFTEN_SET}


def hub_model(model_id: str) -> dict[str, Any]:
    """The `model` node of a hub id that has no YAML: its shape is known after loading only."""
    return {"name": model_id.rpartition("/")[2].lower(), "id": model_id, "source": "hub", **_OFTEN_SET}


def _choice(axis: str, node: Mapping[str, Any]) -> Choice:
    settings = dict(node)
    name = settings.pop("name")
    if name == "auto":
        return Choice(name)
    cls = AXES[axis].get(name)
    defaults = {item.name: default for item, default in settings_of(cls)}
    _known(f"key in {axis}", settings, defaults)
    changed: dict[str, Scalar] = {key: value for key, value in settings.items() if value != defaults[key]}
    hidden: dict[str, Scalar] = {}
    for item, _ in settings_of(cls):
        if item.name not in changed:
            continue
        if "file" in item.metadata:  # known by what is in it, wherever it lies
            path = str(changed[item.name])
            hidden[item.name] = str(Path(path).expanduser().absolute())
            changed[item.name] = _checksum(f"{axis}.{item.name}", path)[:12]
        elif "hidden" in item.metadata:
            hidden[item.name] = changed.pop(item.name)
    return Choice(name, tuple(sorted(changed.items())), tuple(sorted(hidden.items())))


def settings_of(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """The settings of a registered class with their defaults; none for a class that is no dataclass."""
    if not dataclasses.is_dataclass(cls):
        return []
    return [(item, item.default) for item in dataclasses.fields(cls) if item.init]


def _known(what: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Hydra refuses unknown keys, but a key added with + passes it."""
    for key in given.keys() - set(known):
        raise ConfigError(did_you_mean(what, key, known))


def _stack(node: Mapping[str, Any], python: str | None) -> tuple[Stack, str | None]:
    """The stack, and the interpreter of its worker: `python`, or what the stack says; None is the current one."""
    _known("key in stack", node, [item.name for item in dataclasses.fields(Stack)])
    stack = Stack.of(node)
    if python is None:
        own = stack.interpreter()
        return stack, interpreter("python" if stack.python is None else "stack.python", own) if own else None
    path = interpreter("python", python)
    if stack.name == CURRENT:
        stack = dataclasses.replace(stack, name=Path(path).parent.parent.name)
    return stack, path


def _decoding(decoding: str, beams: int) -> str:
    one_of("decoding", decoding, DECODINGS)
    if decoding == "beam" and beams == 1:
        raise ConfigError("decoding=beam needs num_beams greater than 1")
    return "beam" if decoding == "greedy" and beams > 1 else decoding
