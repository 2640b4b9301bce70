"""Evaluate a task with lm-eval on a model that is loaded already. Worker side; with `tasks.py` all that knows lm-eval.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from . import tasks
from .cell import Cell, Evaluate
from .errors import CellError, NonFinite, Unsupported, first_line
from .measure import Stopwatch
from .record import Score

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What evaluating a task gives; the fields are those of `record.Evaluation`."""

    task: str
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
    parts: tuple[Result, ...] = ()
    """Of a group or tag: each of its tasks, and of the groups in it."""


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
    asked = tasks.read(work, cell.seed, on_phase)
    answers = _answers(model, tokenizer, work.batch_size, on_phase)
    on_phase("evaluating")
    watch = Stopwatch()
    found = lm_eval.evaluate(
        answers,
        {"tasks": asked.tasks, "groups": asked.groups, "group_map": asked.group_map},
        limit=work.limit,
        bootstrap_iters=0,  # standard errors are computed here: lm-eval draws 100,000 samples, in processes of its own
        log_samples=True,
    )
    seconds = watch.seconds()
    if answers.truncated:
        warnings.append(
            f"{answers.truncated} passages were longer than the model's {answers.max_length} positions: "
            f"their beginning was cut off"
        )
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    documents = [document for name in asked.tasks for document in samples[name]]
    numbers = [answer for document in documents for answer in _numbers(document["filtered_resps"])]
    if not all(map(math.isfinite, numbers)):
        bad = sum(not math.isfinite(number) for number in numbers)
        raise NonFinite(f"{bad} log-likelihoods are not finite: try another precision, or check the weights")
    seen = _Seen(work, asked, found, seconds / max(1, _count(asked.tasks, samples)), tuple(warnings))
    if list(asked.tasks) == [work.task]:
        return seen.task(work.task)
    parts = [seen.several(name, asked.members(name)) for name in asked.groups if name != work.task]
    parts += [seen.task(name) for name in asked.tasks]
    return seen.several(work.task, list(asked.tasks), tuple(parts))


@dataclass(frozen=True)
class _Seen:
    """What lm-eval returned, taken apart by task and group."""

    work: Evaluate
    asked: tasks.Asked
    found: Mapping[str, Any]
    each_s: float
    """Seconds per document: tasks are answered together."""
    warnings: tuple[str, ...]

    def task(self, name: str) -> Result:
        """One task."""
        documents = self.found["samples"][name]
        scores = _scores(self.found["results"][name], documents)
        return self._result(name, [name], scores, [_plain(document) for document in documents])

    def several(self, name: str, members: list[str], parts: tuple[Result, ...] = ()) -> Result:
        """A group: lm-eval's figures over all its tasks. A tag, or a group without: those over all documents."""
        documents = [{**item, "task": member} for member in members for item in self.found["samples"][member]]
        own = self.found["results"].get(name, {})
        singles = [_scores(self.found["results"][member], self.found["samples"][member]) for member in members]
        scores = _scores(own, documents, singles) or _pooled(singles, documents)
        return self._result(name, members, scores, [_plain(document) for document in documents], parts)

    def _result(
        self,
        name: str,
        members: list[str],
        scores: tuple[Score, ...],
        documents: list[dict[str, Any]],
        parts: tuple[Result, ...] = (),
    ) -> Result:
        asked = [self.asked.tasks[member] for member in members]
        n = _count(members, self.found["samples"])
        version = self.found["versions"].get(name, "")
        return Result(
            task=name,
            scores=scores,
            n=n,
            seconds=self.each_s * n,
            task_version=str("" if version in (None, "N/A") else version),
            num_fewshot=max(int(self.found["n-shot"].get(member, 0)) for member in members),
            data=_joined(tasks.source(self.work, task) for task in asked),
            data_sha256=_checksum(documents),
            dataset_revision=_joined(tasks.revision(task) for task in asked),
            documents=documents,
            warnings=self.warnings,
            parts=parts,
        )


def _count(names: Iterable[str], samples: Mapping[str, list[dict[str, Any]]]) -> int:
    """Documents of several tasks; one that several filters scored counts once."""
    return sum(len({document["doc_id"] for document in samples[name]}) for name in names)


def _joined(words: Iterable[str]) -> str:
    """Different words, in their order; the first three of many."""
    found = [word for word in dict.fromkeys(words) if word]
    return " ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


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
        return stand_in, [f"the tokenizer of tiny-trained stands in for that of {cell.model.name}: {first_line(error)}"]


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
            tokens = (
                torch.arange(1, 9, device=self.device).unsqueeze(0)
                % model.config.get_text_config(decoder=True).vocab_size
            )
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
            if len(set(contexts)) > len(contexts) / 2:  # a few of LAMBADA's documents are there twice
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


def _scores(
    results: dict[str, Any], documents: list[dict[str, Any]], members: Sequence[Sequence[Score]] = ()
) -> tuple[Score, ...]:
    """lm-eval's figures, with standard errors from the documents where the figure is their mean or exp(-mean).

    The standard error of a mean is s / sqrt(n), with s the documents' standard deviation; that of exp(-mean) follows by
    the delta method, exp(-mean) * s / sqrt(n). That of a plain mean over the `members` of a group is theirs, added in
    quadrature, over their number.
    """
    scores = []
    for key, value in results.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        label = name if filtered == "none" else key
        each = _each(documents, label)
        error = math.nan
        if each:
            mean, spread = fmean(each), stdev(each) / math.sqrt(len(each))
            if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12):
                error = spread
            elif mean < 0 and math.isclose(_perplexity(mean), value, rel_tol=1e-6):
                error = value * spread
        theirs = [score for scores_ in members for score in scores_ if score.name == label]
        if math.isnan(error) and theirs and math.isclose(fmean(item.value for item in theirs), value, rel_tol=1e-9):
            error = math.hypot(*(item.stderr for item in theirs)) / len(theirs)
        scores.append(Score(label, float(value), error, len(each) or len(documents)))
    return tuple(scores)


def _pooled(members: Sequence[Sequence[Score]], documents: list[dict[str, Any]]) -> tuple[Score, ...]:
    """Means, and exp(-mean)s, over all documents: of each figure that is one of these in every task."""
    pooled: dict[str, Any] = {}
    for score in members[0]:
        if all(any(item.name == score.name and item.stderr >= 0 for item in others) for others in members):
            each = _each(documents, score.name)
            name, _, filtered = score.name.partition(",")
            if each:
                mean = fmean(each)
                pooled[f"{name},{filtered or 'none'}"] = _perplexity(mean) if score.name == "perplexity" else mean
    return _scores(pooled, documents)


def _each(documents: list[dict[str, Any]], label: str) -> list[float]:
    """The documents' values of a figure; none unless they are two numbers or more."""
    name, _, filtered = label.partition(",")
    each = [item[name] for item in documents if item["filter"] == (filtered or "none") and name in item]
    return each if len(each) > 1 and all(isinstance(item, (int, float)) for item in each) else []


def _perplexity(mean: float) -> float:
    """Of a mean log-likelihood; finite, however unlikely."""
    return math.exp(min(-mean, 700.0))


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
