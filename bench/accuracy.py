"""Evaluate one task with lm-eval on a model that is loaded already. Worker side, and the only file that knows lm-eval.

Documents, prompts, targets and metrics are the task's own. The answers are computed by `Answers`, lm-eval's interface
to transformers with a faster path for tasks like LAMBADA. lm-eval is imported inside functions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from . import passages
from .cell import Cell, Evaluate
from .errors import CellError, LoadError, NonFinite, Unsupported
from .measure import Stopwatch
from .record import Score

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)

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
class Result:
    """What evaluating a task gives; the fields are those of `record.Evaluation`."""

    scores: tuple[Score, ...]
    n: int
    seconds: float
    task_version: str
    num_fewshot: int
    data: str
    data_sha256: str
    dataset_revision: str
    documents: list[dict[str, Any]]
    """One per document, in their order: what the file `samples` holds."""
    warnings: tuple[str, ...]


def unsupported(cell: Cell) -> str | None:
    """Why the cell's task cannot be evaluated, in one line; None when it can. Asked while planning, without torch."""
    work = cell.workload
    if not isinstance(work, Evaluate):
        return None
    if cell.device.name == "fake":
        return "device=fake has no model that could answer: workload=accuracy needs a real device"
    if cell.model.weights == "random" and not work.allow_random:
        return "random weights know nothing: accuracy needs weights=real (accuracy.allow_random=true asks all the same)"
    if cell.python is None and importlib.util.find_spec("lm_eval") is None:
        return "lm-eval is not installed: pip install 'bench[accuracy]'"
    return None


def evaluate(cell: Cell, model: Any, on_phase: Callable[[str], None]) -> Result:
    """Evaluate the cell's task with a transformers model. On several ranks every one calls this and gets the result.

    Raises LoadError when the documents or the tokenizer cannot be had, Unsupported when lm-eval is missing or does not
    know the task, NonFinite, or CellError when the model does not give one row of logits per position.
    """
    work = cell.workload
    assert isinstance(work, Evaluate)
    on_phase("reading the task")
    try:
        import lm_eval
    except ImportError as error:
        raise Unsupported(f"accuracy needs lm-eval in the worker's interpreter: {error}") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer, warnings = _tokenizer(cell)
    task = _task(work)
    if work.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=work.num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=cell.seed)
    _compile(task)
    answers = _answers(model, tokenizer, work.batch_size, on_phase)
    on_phase("evaluating")
    watch = Stopwatch()
    found = lm_eval.evaluate(
        answers,
        {"tasks": {work.task: task}},
        limit=work.limit,
        bootstrap_iters=0,  # standard errors are computed here: lm-eval draws 100,000 samples, in processes of its own
        log_samples=True,
    )
    seconds = watch.seconds()
    documents = found["samples"][work.task]
    if answers.truncated:
        warnings.append(
            f"{answers.truncated} passages were longer than the model's {answers.max_length} positions: "
            f"their beginning was cut off"
        )
    numbers = [answer for document in documents for answer in _numbers(document["filtered_resps"])]
    if not all(map(math.isfinite, numbers)):
        bad = sum(not math.isfinite(number) for number in numbers)
        raise NonFinite(f"{bad} log-likelihoods are not finite: try another precision, or check the weights")
    scores = _scores(found["results"][work.task], documents)
    ids = {document["doc_id"] for document in documents}
    return Result(
        scores=scores,
        n=len(ids),
        seconds=seconds,
        task_version=str(found["versions"].get(work.task, "")),
        num_fewshot=int(found["n-shot"].get(work.task, 0)),
        data=_source(work, task),
        data_sha256=_checksum(documents),
        dataset_revision=_revision(task),
        documents=[_plain(document) for document in documents],
        warnings=tuple(warnings),
    )


# -- what is asked -----------------------------------------------------------------------------------------------------


def _task(work: Evaluate) -> Task:
    """The task, with its documents read."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    if work.task == EMBEDDED:
        rows = [{"text": text} for text in passages.held_out(min(work.limit or passages.COUNT, passages.COUNT))]
        return ConfigurableTask(config={"task": EMBEDDED, "dataset_path": "json", **LAMBADA, **_own_data(rows, "test")})
    folder = _folder(work.task)
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else TaskManager()
    if work.task not in manager.all_subtasks:
        near = [name for name in manager.all_subtasks if work.task in name][:5]
        hint = f": one of {', '.join(near)}?" if near else ""
        raise Unsupported(f"lm-eval has no task {work.task}{hint or ': `lm_eval ls tasks` lists all of them'}")
    spec: str | dict[str, Any] = work.task
    away = ""
    if work.data is not None:
        rows = _rows(Path(work.data))
        # Inside a group, settings are laid over those of the task's file; by themselves they would replace them.
        spec = {"group": "bench", "task": [{"task": work.task, **_own_data(rows, "test")}]}
    else:
        away = _hub_or_cache()
    try:
        found: Task = manager.load([spec])["tasks"][work.task]
    except Exception as error:
        if work.data is not None:
            raise LoadError(f"{Path(work.data).name} does not suit {work.task}: {_line(error)}") from error
        why = f"are not in the local cache and {away}" if away else f"cannot be had: {_line(error)}"
        raise LoadError(f"the documents of {work.task} {why}; accuracy.data=FILE.jsonl reads a local file") from error
    return found


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


def _tokenizer(cell: Cell) -> tuple[Any, list[str]]:
    """The model's tokenizer, and warnings. Random weights without one read by that of tiny-trained."""
    from .models import build
    from .models.spec import Model

    try:
        return build.tokenizer(cell.model), []
    except Exception as error:
        if cell.model.weights == "real":
            raise build.explain(error, cell.model) from error
        stand_in = build.tokenizer(Model("tiny-trained", source="package", path="models/tiny_trained"))
        return stand_in, [f"the tokenizer of tiny-trained stands in for that of {cell.model.name}: {_line(error)}"]


# -- who answers -------------------------------------------------------------------------------------------------------


def _answers(model: Any, tokenizer: Any, batch_size: int, on_phase: Callable[[str], None]) -> Any:
    """lm-eval's interface to a transformers model, as a class that exists only where lm-eval does."""
    import torch
    from lm_eval.models.huggingface import HFLM

    class Answers(HFLM):  # type: ignore[misc]
        """Batches by length; the output layer is applied to the positions that are asked for only."""

        def __init__(self) -> None:
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
            self.truncated = 0
            self.keeps = self._check_rows()

        def _check_rows(self) -> bool:
            """Whether the model can leave out rows of its logits, after a look at what it does without being asked."""
            tokens = torch.arange(1, 9, device=self.device).unsqueeze(0) % model.config.vocab_size
            with torch.inference_mode():
                logits = model(tokens, use_cache=False).logits
                if logits.dim() != 3 or logits.shape[1] != 8:
                    raise CellError(
                        f"the model gives {logits.shape[1] if logits.dim() > 1 else 0} rows of logits for 8 positions, "
                        f"accuracy needs them all: switch off what keeps the last one only (such as LAST_LM_HEAD)"
                    )
                if "logits_to_keep" not in inspect.signature(model.forward).parameters:
                    return False
                kept = model(tokens, use_cache=False, logits_to_keep=2).logits
            close = kept.shape[1] == 2 and torch.allclose(kept.float(), logits[:, -2:].float(), rtol=1e-2, atol=1e-2)
            return bool(close)

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            pairs: list[tuple[str, str]] = [request.args for request in requests]
            contexts = [context for context, _ in pairs]
            special = tokenizer.decode(self.prefix_token_id)
            if not tokenizer.is_fast or any(not text or text.startswith(special) for text in contexts):
                plain: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
                return plain
            whole = tokenizer([context + target for context, target in pairs])["input_ids"]
            heads = tokenizer([context.rstrip() for context in contexts])["input_ids"]
            positions = self.max_length + 1
            self.truncated += sum(len(row) > positions for row in whole)
            lengths = [len(row) - len(head) for row, head in zip(whole, heads, strict=True)]
            if len(set(contexts)) == len(contexts):
                return self._score([row[-positions:] for row in whole], lengths)
            # Several choices for one context: lm-eval asks once for those that differ in their last token.
            ids = [(row[:-length], row[-length:]) for row, length in zip(whole, lengths, strict=True)]
            asked = [(pair, *split) for pair, split in zip(pairs, ids, strict=True)]
            found: list[tuple[float, bool]] = self._loglikelihood_tokens(asked, disable_tqdm=True)
            return found

        def _score(self, rows: list[list[int]], lengths: list[int]) -> list[tuple[float, bool]]:
            """Log-likelihood of the last `length` ids of each row, and whether each of them is the likeliest."""
            order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), rows[number]))
            answers: dict[int, tuple[float, bool]] = {}
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                answers.update(
                    zip(batch, self._batch([rows[i] for i in batch], [lengths[i] for i in batch]), strict=True)
                )
                done = min(start + batch_size, len(order))
                if start // batch_size % max(1, len(order) // batch_size // 20) == 0:
                    on_phase(f"evaluating {done}/{len(order)}")
            return [answers[number] for number in range(len(rows))]

        def _batch(self, rows: list[list[int]], lengths: list[int]) -> list[tuple[float, bool]]:
            longest = len(rows[0]) - 1
            tokens = torch.tensor([row[:-1] + [0] * (longest - len(row) + 1) for row in rows], device=self.device)
            # The rows of the logits that predict a target: the last ones, before what was padded.
            keep = max(longest - (len(row) - 1) + length for row, length in zip(rows, lengths, strict=True))
            with torch.inference_mode():
                if self.keeps:
                    logits = model(tokens, use_cache=False, logits_to_keep=keep).logits
                else:
                    logits = model(tokens, use_cache=False).logits[:, -keep:]
            where = [
                [keep - (longest - (len(row) - 1)) - length + number for number in range(length)]
                for row, length in zip(rows, lengths, strict=True)
            ]
            at = [(number, place) for number, places in enumerate(where) for place in places]
            picked = logits[[number for number, _ in at], [place for _, place in at]]
            wanted = [token for row, length in zip(rows, lengths, strict=True) for token in row[-length:]]
            targets = torch.tensor(wanted, device=logits.device)
            chances = torch.log_softmax(picked, -1, dtype=torch.float32)
            values = chances.gather(1, targets.unsqueeze(1)).squeeze(1).tolist()
            right = (chances.argmax(-1) == targets).tolist()
            answers, start = [], 0
            for length in lengths:
                answers.append((math.fsum(values[start : start + length]), all(right[start : start + length])))
                start += length
            return answers

    return Answers()


# -- what came out -----------------------------------------------------------------------------------------------------


def _scores(results: dict[str, Any], documents: list[dict[str, Any]]) -> tuple[Score, ...]:
    """lm-eval's figures, with standard errors from the documents where the figure is their mean or exp(-mean).

    The standard error of a mean is s / sqrt(n), with s the documents' standard deviation; that of exp(-mean) follows by
    the delta method, exp(-mean) * s / sqrt(n).
    """
    scores = []
    for key, value in results.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        each = [item[name] for item in documents if item["filter"] == filtered and name in item]
        error = math.nan
        if len(each) > 1 and all(isinstance(item, (int, float)) for item in each):
            mean, spread = fmean(each), stdev(each) / math.sqrt(len(each))
            if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12):
                error = spread
            elif mean < 0 and math.isclose(math.exp(min(-mean, 700.0)), value, rel_tol=1e-6):
                error = value * spread
        scores.append(Score(name if filtered == "none" else key, float(value), error, len(each)))
    return tuple(scores)


def _numbers(answer: Any) -> Iterable[float]:
    """The log-likelihoods in the answers of a document; generated text has none."""
    if isinstance(answer, float):
        yield answer
    elif isinstance(answer, (list, tuple)):
        for item in answer:
            yield from _numbers(item)


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """A line of the file `samples`, in lm-eval's own form."""
    kept = {key: value for key, value in document.items() if key not in ("arguments", "resps")}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _checksum(documents: list[dict[str, Any]]) -> str:
    """SHA-256 over the documents' hashes, in their order."""
    return hashlib.sha256("".join(str(item["doc_hash"]) for item in documents).encode()).hexdigest()


def _source(work: Evaluate, task: Task) -> str:
    if work.task == EMBEDDED:
        return "built in"
    return Path(work.data).name if work.data else str(task.config.dataset_path)


def _revision(task: Task) -> str:
    """What the hub calls the version of the data: in the URLs that the data set was downloaded from."""
    try:
        checksums = task.eval_docs.info.download_checksums or {}
    except AttributeError:
        return ""
    revisions = {match[1] for url in checksums for match in [re.search(r"@([0-9a-f]{40})/", str(url))] if match}
    return " ".join(sorted(revisions))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
