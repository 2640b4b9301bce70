"""Outcomes as a table: rows for results.csv while a run goes on, and pandas DataFrames for everybody else."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from . import metrics, schema
from .cell import Scalar
from .errors import ResultsError
from .journal import NAME, Journal
from .record import Failure, Outcome, Record

if TYPE_CHECKING:
    import pandas as pd

CSV = "results.csv"
VARIES = "varies"
"""`output_hash` of a cell whose iterations generated different tokens: equal to nothing, itself included."""

COLUMNS: tuple[schema.Column, ...] = (
    *schema.AXES,
    *schema.RUN,
    *metrics.METRICS.values(),
    *schema.ACCURACY,
    *schema.INFO,
    *schema.FINGERPRINT,
)
"""Every column of results.csv, in order."""


def row(outcome: Outcome) -> dict[str, Scalar]:
    """One row of results.csv; unknown is None."""
    values: dict[str, Scalar] = dict.fromkeys((column.name for column in COLUMNS), None)
    values.update(outcome.axes)
    values.update(outcome.fingerprint)
    values.update(
        launch=outcome.launch,
        status=outcome.status,
        error=outcome.error or None,
        started=outcome.started,
        cell=outcome.cell,
        run=outcome.run,
        log=outcome.log or None,
        schema=outcome.schema,
    )
    if isinstance(outcome, Failure):
        return values
    values.update({name: None if math.isnan(value) else value for name, value in metrics.values(outcome).items()})
    values.update(
        seed=outcome.seed,
        approximation=outcome.approximation,
        warnings="; ".join(outcome.warnings) or None,
        provider=outcome.weights.provider or None,
        provider_version=outcome.weights.version or None,
        kernels=outcome.weights.kernels or None,
        packed_bytes=None if math.isnan(outcome.weights.packed_bytes) else outcome.weights.packed_bytes,
    )
    if isinstance(outcome, Record):
        hashes = {item.output_hash for item in outcome.iterations}
        values.update(
            iterations=len(outcome.iterations),
            warmup=len(outcome.warmups),
            other_cores=None if math.isnan(outcome.other_cores) else outcome.other_cores,
            output_hash=hashes.pop() if len(hashes) == 1 else VARIES,
        )
    else:
        values.update(
            n=outcome.n,
            samples=outcome.samples or None,
            task_version=outcome.task_version,
            num_fewshot=outcome.num_fewshot,
            data=outcome.data,
            data_sha256=outcome.data_sha256,
            dataset_revision=outcome.dataset_revision or None,
        )
    return values


def to_csv(outcomes: Iterable[Outcome]) -> str:
    """results.csv as text: full precision, blank for unknown."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [column.name for column in COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(outcome) for outcome in outcomes)
    return buffer.getvalue()


def append_csv(path: Path, outcome: Outcome) -> None:
    """Add one row, so that the table can be read while the run goes on. Raises ResultsError."""
    try:
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, [column.name for column in COLUMNS], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row(outcome))
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}. What was measured is safe in {NAME}") from error


def outcomes(path: str | Path) -> list[Outcome]:
    """The last outcome of each cell and launch in a results folder (or its journal). Raises ResultsError."""
    path = Path(path)
    journal = path / NAME if path.is_dir() else path
    if journal.suffix != ".jsonl" or not journal.is_file():
        raise ResultsError(f"{path} is not a results folder: there is no {NAME} in it")
    return list(Journal(journal).outcomes().values())


def load(path: str | Path) -> pd.DataFrame:
    """Results as a DataFrame: one row per cell and launch, the columns of results.csv, in base units.

    `path` is a results folder, its journal, or a CSV such as a baseline. Works while a run is writing. Raises
    ResultsError when there are no results.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix == ".csv":
        try:
            # A driver 1.10 or a hash that happens to have digits only is no number.
            return pd.read_csv(path, dtype={column.name: str for column in COLUMNS if column.kind == "text"})
        except (OSError, ValueError) as error:
            raise ResultsError(f"cannot read {path}: {error}") from error
    frame = pd.DataFrame([row(outcome) for outcome in outcomes(path)], columns=[column.name for column in COLUMNS])
    numeric = [column.name for column in (*metrics.METRICS.values(), *schema.ACCURACY)]
    frame[numeric] = frame[numeric].astype(float)
    return frame


def load_samples(path: str | Path) -> pd.DataFrame:
    """Raw samples in long form: the axes, `launch`, `iteration`, `step` (1 is the first token), `end_s`, `gap_s`.

    `end_s` is the end of the step since the start of its iteration, `gap_s` the time since the step before. Warm-ups
    have negative iteration numbers, measured ones count from 1.
    """
    import pandas as pd

    rows = []
    for outcome in outcomes(path):
        if not isinstance(outcome, Record):
            continue
        count = len(outcome.warmups)
        for number, item in enumerate((*outcome.warmups, *outcome.iterations)):
            before = 0.0
            for step, end in enumerate(item.steps_s, 1):
                position = number - count + (number >= count)
                rows.append({**outcome.axes, "cell": outcome.cell, "launch": outcome.launch, "iteration": position,
                             "step": step, "end_s": end, "gap_s": end - before})  # fmt: skip
                before = end
    return pd.DataFrame(rows)
