"""What an accuracy task asks: the built-in one, or a task, group or tag of lm-eval by its name. Worker side.

A task asks documents. A group is a list of tasks, and of groups, with figures over all of them; a tag is a list of
tasks. lm-eval is imported inside functions, here and in `accuracy.py` only.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import passages
from .cell import Evaluate
from .errors import LoadError, Unsupported, first_line

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

EMBEDDED = "passages"
LAMBADA = {
    "output_type": "loglikelihood",
    "test_split": "test",
    "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
    "doc_to_target": "{{' '+text.split(' ')[-1]}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0},
}
"""What the embedded task asks and counts: the same as lm-eval's LAMBADA."""


@dataclass(frozen=True)
class Asked:
    """What a name stands for, with the documents read."""

    tasks: dict[str, Task]
    """A task by itself, or the tasks of a group or tag, by name."""
    groups: dict[str, Group] = field(default_factory=dict)
    """The group of that name and those in it."""
    group_map: dict[str, list[str]] = field(default_factory=dict)
    """lm-eval's: the children of each group."""

    def members(self, group: str) -> list[str]:
        """The names of the tasks of a group, those of its groups included."""
        return [task.task_name for task in self.groups[group].get_all_tasks()]


def read(work: Evaluate, seed: int, on_phase: Callable[[str], None]) -> Asked:
    """What the workload asks, ready to be evaluated.

    Raises Unsupported when lm-eval does not know the name, LoadError when the documents cannot be had.
    """
    asked = _embedded(work) if work.task == EMBEDDED else _of_lm_eval(work, on_phase)
    for task in asked.tasks.values():
        if work.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=work.num_fewshot)
        elif task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
        _compile(task)
    return asked


def source(work: Evaluate, task: Task) -> str:
    """Where the documents come from: a file, a data set of the hub, or this package."""
    if work.task == EMBEDDED:
        return "built in"
    return Path(work.data).name if work.data else str(task.config.dataset_path)


def revision(task: Task) -> str:
    """What the hub calls the version of the data: in the URLs that the data set was downloaded from."""
    try:
        checksums = task.eval_docs.info.download_checksums or {}
    except AttributeError:
        return ""
    revisions = {match[1] for url in checksums for match in [re.search(r"@([0-9a-f]{40})/", str(url))] if match}
    return " ".join(sorted(revisions))


# -- by name -----------------------------------------------------------------------------------------------------------


def _embedded(work: Evaluate) -> Asked:
    from lm_eval.api.task import ConfigurableTask

    rows = [{"text": text} for text in passages.held_out(min(work.limit or passages.COUNT, passages.COUNT))]
    config = {"task": EMBEDDED, "dataset_path": "json", **LAMBADA, **_own_data(rows, "test")}
    return Asked({EMBEDDED: ConfigurableTask(config=config)})


def _of_lm_eval(work: Evaluate, on_phase: Callable[[str], None]) -> Asked:
    manager = _manager(work, on_phase)
    spec: str | dict[str, Any] = work.task
    away = ""
    if work.data is not None:
        if work.task not in manager.all_subtasks:
            raise LoadError(
                f"accuracy.data is the data of one task, and {work.task} stands for several: name one of them"
            )
        rows = _rows(Path(work.data))
        # Inside a group, settings are laid over those of the task's file; by themselves they would replace them.
        spec = {"group": "bench", "task": [{"task": work.task, **_own_data(rows, "test")}]}
    else:
        away = _hub_or_cache()
    try:
        found = manager.load([spec])
    except Exception as error:
        if work.data is not None:
            raise LoadError(f"{Path(work.data).name} does not suit {work.task}: {first_line(error)}") from error
        why = f"are not in the local cache and {away}" if away else f"cannot be had: {first_line(error)}"
        one = "" if work.task in manager.all_subtasks else " for one task, named by itself"
        hint = f"accuracy.data=FILE.jsonl reads a local file{one}"
        raise LoadError(f"the documents of {work.task} {why}; {hint}") from error
    if work.data is not None:
        return Asked(found["tasks"])
    return Asked(found["tasks"], found.get("groups", {}), found.get("group_map", {}))


def _manager(work: Evaluate, on_phase: Callable[[str], None]) -> TaskManager:
    """An index that knows the name and, for a group or tag, all that may belong to it. Raises Unsupported."""
    from lm_eval.tasks import TaskManager

    if work.include is not None:
        own = TaskManager(include_path=work.include, include_defaults=False)
        if _holds(own, work.task):
            return own
    else:
        folder = _folder(work.task)
        if folder:
            return TaskManager(include_path=str(folder), include_defaults=False)
    on_phase("reading lm-eval's index of tasks")
    full = _index(work.include)
    if work.task not in full.all_tasks:
        raise Unsupported(_unknown(work.task, full.all_tasks))
    return full


def _holds(manager: TaskManager, name: str) -> bool:
    """Whether an index has the name and everything that it stands for."""
    if name not in manager.all_groups:
        return name in manager.all_tasks
    members = manager.task_index[name].cfg["task"]
    return all(isinstance(member, str) and _holds(manager, member) for member in members)


@functools.cache
def _index(include: str | None) -> TaskManager:
    """All tasks, groups and tags: takes lm-eval about 9 s."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6) or [item for item in known if name in item][:3]
    hint = f"Did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists all of them"
    return f"lm-eval has no task {name}, nor a group or tag of that name. {hint}"


def _folder(task: str) -> Path | None:
    """The folder of lm-eval's that defines a task, found by reading its files: the full index takes lm-eval 9 s."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent / "tasks"
    defines = re.compile(rf"^task: *['\"]?{re.escape(task)}['\"]? *$", re.MULTILINE)
    for path in (*root.glob(f"*/{task}.yaml"), *sorted(root.rglob("*.yaml"))):
        if defines.search(path.read_text(encoding="utf-8", errors="replace")):
            return path.parent
    return None


# -- documents ---------------------------------------------------------------------------------------------------------


def _compile(task: Task) -> None:
    """Compile the templates of prompt and target once; lm-eval does it four times per document, 2 ms in all."""
    from lm_eval.utils import env

    def renderer(template: str) -> Callable[[dict[str, Any]], str]:
        compiled = env.from_string(template)
        return lambda document: str(compiled.render(**document))

    for key in ("doc_to_text", "doc_to_target"):
        template = getattr(task.config, key)
        if task.OUTPUT_TYPE == "loglikelihood" and isinstance(template, str) and "{{" in template:
            task.set_config(key=key, value=renderer(template))


def _own_data(rows: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """Settings of a task that put rows in the place of its data set, in memory."""
    import datasets

    table = datasets.Dataset.from_list(rows)
    return {
        "custom_dataset": lambda **_: {split: table},
        "test_split": split,
        "validation_split": None,
        "training_split": None,
        "fewshot_split": split,
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path.name} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LoadError(f"{path.name}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise LoadError(f'{path.name}:{number}: an object per line is needed, such as {{"text": "..."}}')
        rows.append(row)
    if not rows:
        raise LoadError(f"{path.name} has no documents")
    return rows


def _hub_or_cache() -> str:
    """Let the data sets library look into its cache only where the hub does not answer: it would try for minutes.

    Returns why the hub is out of reach; blank when it is not.
    """
    from .models.build import hub_answers, offline

    if hub_answers():
        return ""
    why = "HF_HUB_OFFLINE is set" if offline() else "the hub does not answer"
    import datasets
    import huggingface_hub.constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    return why
