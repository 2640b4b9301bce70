"""From the command line to checked requests, by Hydra: config groups, overrides, sweeps, help, completion.

Hydra composes; it does not change directories or set up logging here, and its "job" only notes the composed point. All
points of a sweep are planned together afterwards, so that cells of different points which share a model share a job.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

from hydra import main as hydra_main
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config import (
    AXES,
    LISTS,
    WORKLOADS,
    AccuracyConfig,
    BenchConfig,
    ChatConfig,
    Request,
    hub_model,
    local_model,
    request,
    settings_of,
)
from .errors import ConfigError, did_you_mean
from .models.spec import Model
from .stacks import Stack

PACKAGE = Path(__file__).parent
COMPLETION = ("-sc", "--shell-completion", "--shell_completion")
FLAGS_WITH_VALUE = (*COMPLETION, "--cfg", "-c", "--package", "-p", "--info", "-i", "--config-path", "-cp",
                    "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun")  # fmt: skip


def configs_folder() -> Path:
    """`configs/`: inside the package when installed from a wheel, beside it in a clone."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def model_names() -> list[str]:
    """The models that have a YAML."""
    return sorted(path.stem for path in (configs_folder() / "model").glob("*.yaml"))


def compose(arguments: Sequence[str], program: str = "bench run") -> tuple[list[Request], str] | None:
    """The requests of a command line, one per sweep point, and the composed configuration as YAML.

    None when Hydra answered by itself (``--help``, ``--cfg job``, shell completion). Raises ConfigError with one line.
    """
    points: list[DictConfig] = []

    def collect(config: DictConfig) -> None:
        points.append(config)

    _register()
    if any(argument.startswith("python=") for argument in arguments):
        _register_labels(arguments)
    arguments = _flags_first(_settings_of_swept([new for argument in arguments for new in _rewrite(argument)]))
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    with tempfile.TemporaryDirectory() as scratch:  # Hydra insists on writing a multirun.yaml
        sys.argv = [program, *arguments, f"hydra.sweep.dir={scratch}"]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, instead of printing and exiting with 1
        usage = io.StringIO()
        try:
            with contextlib.redirect_stderr(usage):
                hydra_main(version_base="1.3", config_path=str(configs_folder()), config_name="config")(collect)()
            if not points:
                return None
            plain: list[dict[str, Any]] = [
                OmegaConf.to_container(point, resolve=True, throw_on_missing=True)  # type: ignore[misc]
                for point in points
            ]
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: what Hydra's flags raise
            raise ConfigError(_explain(error)) from error
        except SystemExit as error:
            if error.code != 2:
                raise
            raise ConfigError(usage.getvalue().strip().splitlines()[-1].partition("error: ")[2]) from error
        finally:
            sys.argv = before[0]
            del os.environ["HYDRA_FULL_ERROR"]
            if before[1] is not None:
                os.environ["HYDRA_FULL_ERROR"] = before[1]
    for config in plain:
        config.pop("experiment", None)
    yaml = OmegaConf.to_yaml(OmegaConf.create(plain if len(plain) > 1 else plain[0]))
    return [request(config) for config in plain], yaml


def completion(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Shell completion: answer `bench -sc query=bash`, or print what `eval "$(bench run -sc install=bash)"` reads.

    Hydra knows commands of one word, so the subcommand is completed here and hidden from it. Nothing is offered for a
    line that it cannot read.
    """
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    arguments = arguments[next(number for number, word in enumerate(arguments) if word in COMPLETION) :]
    if any(word.startswith("query=") for word in arguments):
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            print(" ".join(commands))  # noqa: T201
            return
        if words[1] not in ("run", "plan", "chat"):
            return
        os.environ["COMP_LINE"] = "bench " + line.partition(words[1])[2].lstrip()
        with contextlib.suppress(ConfigError):
            compose(arguments, "bench")
    else:
        compose(arguments, "bench")


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """The flags with their values, then the overrides, which Hydra wants in one piece."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in FLAGS_WITH_VALUE:
            value = next(words, None)
            if value is None:
                raise ConfigError(f"{word} needs a value: see bench run --help")
            flags.append(value)
    return [*flags, *overrides]


def _register() -> None:
    """Tell Hydra the schema, and the options of each registry as config groups."""
    store = ConfigStore.instance()
    store.store(name="bench_config", node=BenchConfig)
    for name in WORKLOADS:
        store.store(group="workload", name=name, node={"name": name})
    for axis, registry in AXES.items():
        for name, cls in registry.items():
            settings = [(item.name, item.type, default) for item, default in settings_of(cls)]
            node = make_dataclass(f"{cls.__name__}Config", [("name", str, name), *settings])
            store.store(group=axis, name=name, node=node)
    for axis in ("precision", "device"):
        store.store(group=axis, name="auto", node={"name": "auto"})


def _register_labels(arguments: Iterable[str]) -> None:
    """`stack=NAME python=INTERPRETER`: with an interpreter of its own, a stack needs a name and nothing else."""
    known = {path.stem for path in (configs_folder() / "stack").glob("*.yaml")}
    for key, _, value in (argument.partition("=") for argument in arguments):
        for name in value.split(",") if key == "stack" else ():
            if name not in known and re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
                ConfigStore.instance().store(group="stack", name=name, node={"name": name})


def _rewrite(argument: str) -> list[str]:
    """Let people type what they mean: `model=` takes hub ids and folders too, `env.X=` adds a variable."""
    key, equals, value = argument.partition("=")
    if not equals:
        return [argument]
    if value.startswith("[") and key in (*AXES, "model", "workload", "stack"):
        raise ConfigError(f"{key} takes one value: sweep several with -m {key}={value.strip('[]')}")
    if key == "model":
        return [f"model={','.join(_model_option(item) for item in value.split(','))}"]
    if key == "env" or key.startswith(("env.", "stack.env.")):
        return [f"++{argument}"]
    return [argument]


def _settings_of_swept(arguments: Sequence[str]) -> list[str]:
    """`-m precision=nf4,fp4 precision.provider=X`: a setting of an axis that is swept becomes a sweep over one value.

    Hydra first composes what is not swept, and the axis' default need not have that setting.
    """
    swept = {key for key, _, value in (item.partition("=") for item in arguments) if key in AXES and "," in value}
    found = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.partition(".")[0] in swept and "." in key and not re.search(r"[,(\[{]", value):
            argument = f"{key}=choice({value})"
        found.append(argument)
    return found


def _model_option(value: str) -> str:
    """The option of the model group for a name, a hub id or a folder; the latter two are registered on the fly."""
    if "/" not in value and not value.startswith((".", "~")):
        return value
    known = _hub_ids().get(value.lower())
    if known:
        return known
    is_folder = value.startswith((".", "~", "/")) or Path(value).is_dir()
    if not is_folder and value.count("/") != 1:
        raise ConfigError(did_you_mean("model", value, [*model_names(), *_hub_ids()]))
    node = local_model(value) if is_folder else hub_model(value)
    option = re.sub(r"[^A-Za-z0-9_.-]", "-", node["name"])
    if option in model_names():
        option += "-local" if is_folder else "-hub"
    ConfigStore.instance().store(group="model", name=option, node=node)
    return f"'{option}'"  # else Hydra takes a folder called 7 for a number


def _hub_ids() -> dict[str, str]:
    """Name by lower-case hub id, read off the head of each YAML."""
    found = {}
    for name in model_names():
        match = re.search(r"^id: *([^\s#]+)", (configs_folder() / "model" / f"{name}.yaml").read_text(), re.MULTILINE)
        if match and match[1] != "null":
            found[match[1].lower()] = name
    return found


def _explain(error: Exception) -> str:
    """One line for what Hydra and OmegaConf say in several."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group and error.options:
            return did_you_mean(group, option, [name for name in error.options if name != "bench_config"])
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {text.splitlines()[0]}. Quote values with spaces or commas"
    ambiguous = re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if ambiguous:
        key, value = ambiguous.groups()
        a_list = f", or as a list, {key}=[{value}]" if key in LISTS or key.startswith("++env.") else ""
        return f"{key.lstrip('+')}={value} has several values: sweep them with -m{a_list.replace('++', '')}"
    cause = error.__cause__ or error
    message = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    match = re.search(r"full_key: (\S+)", str(cause))
    key = match[1] if match else ""
    unknown = re.match(r"Key '([^']+)' (?:is not in struct|not in '(\w+)')", message)
    if unknown:
        return _unknown_key(key or unknown[1], unknown[2] or "")
    return f"{key}: {message}" if key else message


def _unknown_key(key: str, node: str) -> str:
    """One line for a key that does not exist; `node` is the name of the schema class it was looked for in."""
    parent, _, last = key.rpartition(".")
    everywhere = [item.name for item in fields(BenchConfig)] + ["experiment"]
    if not parent:
        return did_you_mean("key", key, everywhere)
    if parent == "model":
        if last in everywhere:
            return f"unknown key in model '{last}': it is a key of its own, {last}=..."
        return did_you_mean("key in model", last, [item.name for item in fields(Model) if item.name not in everywhere])
    if parent == "stack":
        return did_you_mean("key in stack", last, [item.name for item in fields(Stack)])
    if parent == "accuracy":
        return did_you_mean("key in accuracy", last, [item.name for item in fields(AccuracyConfig)])
    if parent == "chat":
        return did_you_mean("key in chat", last, [item.name for item in fields(ChatConfig)])
    classes = (cls for registry in AXES.values() for _, cls in registry.items())
    cls = next((cls for cls in classes if f"{cls.__name__}Config" == node), None)
    known = [item.name for item, _ in settings_of(cls)] if cls else []
    if not known:
        return f"{key}: {parent} has no settings" if cls or parent in AXES else f"unknown key '{key}'"
    return did_you_mean(f"key in {parent}", last, known)
