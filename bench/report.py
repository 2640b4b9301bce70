"""What people read: the table on the terminal, report.md, report.html, and the plan. Rounding happens only here.

One `View` feeds all of them, so they cannot disagree.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from . import metrics
from .cell import Evaluate, Scalar
from .errors import ConfigError
from .folder import Folder
from .plan import Plan, Planned
from .precisions.base import precision_of
from .record import Evaluation, Failure, Outcome, Record
from .schema import AXES
from .table import outcomes as read_outcomes
from .units import counted, gibibytes, milliseconds, percent, perplexity, significant, times

USAGE = """\
usage: bench report FOLDER...

Show results folders as one table, and write report.md and report.html into each.
"""

Figures = tuple[tuple[str, str, Callable[[float], str]], ...]

FIGURES: Figures = (
    ("ttft_s", "TTFT", milliseconds),
    ("tpot_s", "TPOT", milliseconds),
    ("e2e_s", "E2E", milliseconds),
    ("prefill_tokens_per_s", "prefill tok/s", significant),
    ("decode_tokens_per_s", "decode tok/s", significant),
    ("peak_memory_bytes", "peak memory", gibibytes),
    ("tpot_over_floor", "× floor", times),
    ("mbu", "MBU", percent),
    ("mfu", "MFU", percent),
)
"""Metric, heading, format: the columns of every report."""

ACCURACY_FIGURES: Figures = (
    ("acc", "accuracy", percent),
    ("perplexity", "perplexity", perplexity),
    ("n", "documents", lambda count: f"{count:.0f}"),
    ("docs_per_s", "docs/s", significant),
    ("peak_memory_bytes", "peak memory", gibibytes),
)
"""The columns of accuracy tasks, which have a table of their own. A standard error stands beside its figure."""

RANK_FIGURES: Figures = (
    ("total_memory_bytes", "memory of all", gibibytes),
    ("skew_p50_s", "skew", milliseconds),
    ("skew_max_s", "max skew", milliseconds),
)
"""The columns that are added where several ranks measured."""

UNREMARKABLE = {"tp": "none", "world_size": 1, "launcher": "local", "stack": "current", "task": "generate", "env": ""}
"""Values of axes that go without saying."""

GENERATING = ("decoding", "num_beams", "input_tokens", "output_tokens")
"""Axes that accuracy tasks do not have."""

SHORT = {"num_beams": "beams", "batch_size": "batch", "input_tokens": "in", "output_tokens": "out"}


@dataclass(frozen=True)
class Row:
    """One cell: its launches together."""

    axes: tuple[str, ...]
    """Values of the axes that vary, in the order of `View.axes`."""
    figures: tuple[str, ...]
    """Formatted; empty when every launch failed."""
    failure: str
    """Why there are no figures, or that some launches failed; blank otherwise."""
    notes: tuple[int, ...]
    """Footnotes, by number."""

    @property
    def remark(self) -> str:
        """The failure's kind and the footnotes, for a narrow column."""
        return " ".join([*self.failure.split(":")[:1], *(f"[{number}]" for number in self.notes)]).strip()


@dataclass(frozen=True)
class View:
    """A report without its layout."""

    common: tuple[tuple[str, str], ...]
    """Axes that have one value in all rows, and the environment."""
    axes: tuple[str, ...]
    metrics: tuple[str, ...]
    """Names of the metrics that the columns show."""
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def views(outcomes: Sequence[Outcome]) -> list[View]:
    """The report of some outcomes: a table of latencies, a table of accuracies, or both."""
    groups = [[item for item in outcomes if (item.axes["task"] == "generate") == latency] for latency in (True, False)]
    return [view(group) for group in groups if group]


def view(outcomes: Sequence[Outcome]) -> View:
    """The table of one kind of workload: launches of a cell in one row, as the median over launches."""
    cells = by_cell(outcomes)
    latency = all(item.axes["task"] == "generate" for item in outcomes)
    values: dict[str, list[Scalar]] = {
        column.name: list(dict.fromkeys(group[0].axes[column.name] for group in cells.values()))
        for column in AXES
        if latency or column.name not in GENERATING
    }
    varying = [name for name in values if len(values[name]) > 1]
    common = [
        (SHORT.get(name, name), str(values[name][0]))
        for name in values
        if len(values[name]) == 1 and values[name][0] != UNREMARKABLE.get(name)
    ]
    if any(group for group in cells.values() if len(group) > 1):
        common.append(("launches", str(max(len(group) for group in cells.values()))))
    notes: list[str] = []
    figures = FIGURES if latency else ACCURACY_FIGURES
    if any(isinstance(world_size, int) and world_size > 1 for world_size in values["world_size"]):
        figures = (*figures, *(RANK_FIGURES if latency else RANK_FIGURES[:1]))
    rows = [_row(group, varying, figures, notes) for group in cells.values()]
    return View(
        common=(*common, *_environment(outcomes)),
        axes=tuple(SHORT.get(name, name) for name in varying),
        metrics=tuple(name for name, _, _ in figures),
        headings=tuple(heading for _, heading, _ in figures),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def by_cell(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by cell, in the order in which the cells first appear: the rows of every report."""
    cells: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        cells.setdefault(outcome.cell, []).append(outcome)
    return cells


def _row(group: list[Outcome], varying: Sequence[str], columns: Figures, notes: list[str]) -> Row:
    records = [outcome for outcome in group if not isinstance(outcome, Failure)]
    failures = [outcome for outcome in group if isinstance(outcome, Failure)]
    texts = list(dict.fromkeys(note for record in records for note in _notes(record)))
    for text in texts:
        if text not in notes:
            notes.append(text)
    failure = ""
    if failures and records:
        failure = f"{len(failures)} of {len(group)} launches failed: {failures[-1].status}: {failures[-1].error}"
    elif failures:
        failure = f"{failures[-1].status}: {failures[-1].error}"
    computed = [metrics.values(record) for record in records]
    return Row(
        axes=tuple(str(group[0].axes[name]) for name in varying),
        figures=tuple(_figure(computed, name, form) for name, _, form in columns) if records else (),
        failure=failure,
        notes=tuple(sorted(notes.index(text) + 1 for text in texts)),
    )


def _figure(computed: Sequence[dict[str, float]], name: str, form: Callable[[float], str]) -> str:
    """The median over launches, and its standard error where the metric has one."""
    text, error = form(median(item[name] for item in computed)), computed[0].get(f"{name}_stderr", math.nan)
    return f"{text} ± {form(error)}" if math.isfinite(error) else text


def _notes(record: Record | Evaluation) -> list[str]:
    """The record's warnings, and what the figures themselves say against them."""
    found = list(record.warnings)
    if record.approximation:
        found.append(record.approximation)
    if isinstance(record, Evaluation):
        return found
    for name, peak in (("mbu", "bandwidth"), ("mfu", "FLOP/s")):
        value = metrics.values(record)[name]
        if value > 1:
            found.append(
                f"{name.upper()} above 100 %: the work fits into a cache, or the {peak} probe was disturbed; "
                f"`bench doctor --measure` repeats the probe"
            )
    return found


def _environment(outcomes: Iterable[Outcome]) -> list[tuple[str, str]]:
    shown = (("device_name", "on"), ("driver", "driver"), ("torch", "torch"), ("transformers", "transformers"))
    prints = [outcome.fingerprint for outcome in outcomes]
    found = []
    for name, label in shown:
        values = list(dict.fromkeys(str(item[name]) for item in prints if item.get(name)))
        if values:
            found.append((label, " and ".join(values)))
    return found


def print_table(outcomes: Sequence[Outcome]) -> None:
    """The tables, on standard output. A narrow terminal gets fewer columns, never cut ones."""
    for shown in views(outcomes):
        _print_view(shown)


def _print_view(shown: View) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from .console import Console

    console = Console(highlight=False)
    headings = _fitting(shown, console.width) if console.is_terminal else shown.headings
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)
    console.print(Text(", ".join(f"{name} {value}" for name, value in shown.common), style="dim"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in shown.axes:
        table.add_column(name, no_wrap=True, justify="right" if name in SHORT.values() else "left")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    if any(row.remark for row in shown.rows):
        table.add_column("")
    for row in shown.rows:
        figures = dict(zip(shown.headings, row.figures, strict=False))
        cells = [Text(text) for text in (*row.axes, *(figures.get(heading, "-") for heading in headings))]
        table.add_row(*cells, Text(row.remark, style="red" if row.failure else "yellow"))
    console.print(table)
    for number, note in enumerate(shown.notes, 1):
        console.print(Text(f"[{number}] {note}", style="yellow"))
    hidden = [heading for heading in shown.headings if heading not in headings]
    if hidden:
        console.print(Text(f"{', '.join(hidden)}: not shown here, this terminal is too narrow", style="dim"))


def _fitting(shown: View, width: int) -> list[str]:
    """The headings that fit into a terminal beside the axes; the least asked for go first."""
    needed = dict.fromkeys(shown.headings, 0)
    for number, heading in enumerate(shown.headings):
        needed[heading] = max(len(heading), *(len(row.figures[number]) for row in shown.rows if row.figures), 1) + 3
    axes = [
        max(len(name), *(len(row.axes[number]) for row in shown.rows)) + 3 for number, name in enumerate(shown.axes)
    ]
    rest = width - sum(axes) - max(len(row.remark) for row in shown.rows) - 3
    kept = list(shown.headings)
    ranks = ("memory of all", "max skew", "skew")
    for heading in (*ranks, "prefill tok/s", "MFU", "E2E", "peak memory", "MBU", "decode tok/s"):
        if heading in kept and sum(needed[item] for item in kept) > rest:
            kept.remove(heading)
    return kept


def markdown(outcomes: Sequence[Outcome]) -> str:
    """report.md: what was measured where, the tables, failures with their logs, footnotes, definitions."""
    shown = views(outcomes)
    lines = ["# Results"]
    for each in shown:
        lines += ["", *_markdown_table(each)]
    failures = {(item.error, item.log): item for item in outcomes if isinstance(item, Failure) and item.log_tail}
    for failure in failures.values():
        lines += ["", f"## {failure.status}: {failure.error}", "", f"`{failure.log}`", ""]
        lines += ["```", *failure.log_tail[-10:], "```"]
    lines += ["", "## What the figures mean", ""]
    lines += [f"* **{heading}** (`{name}`): {metrics.column(name).doc}" for name, heading in meanings(shown)]
    return "\n".join(lines) + "\n"


def _markdown_table(shown: View) -> list[str]:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {_md(name)} | {_md(value)} |" for name, value in shown.common]
    headings = [*shown.axes, *shown.headings, "notes"]
    rule = "|" + "---|" * len(shown.axes) + "---:|" * len(shown.headings) + "---|"
    lines += ["", "| " + " | ".join(map(_md, headings)) + " |", rule]
    for row in shown.rows:
        notes = " ".join([row.failure, *(f"[{number}]" for number in row.notes)]).strip()
        figures = row.figures or ("",) * len(shown.headings)
        lines.append("| " + " | ".join(map(_md, (*row.axes, *figures, notes))) + " |")
    return [*lines, "", *(f"[{number}] {note}  " for number, note in enumerate(shown.notes, 1))]


def meanings(shown: Sequence[View]) -> list[tuple[str, str]]:
    """Name and heading of every metric in some tables, each once."""
    return list(dict.fromkeys(pair for each in shown for pair in zip(each.metrics, each.headings, strict=True)))


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def print_plan(plan: Plan) -> None:
    """The cells by job, with predicted memory and what would not be tried. Plain lines: a plan can be long."""
    lines = []
    by_id = {item.cell.id: item for item in plan.planned}
    jobs = plan.jobs((cell, 1) for cell in plan.cells)
    for number, job in enumerate(jobs, 1):
        first = by_id[job.cells[0].id]
        cell = first.cell
        by = " or ".join(precision_of(cell).providers(cell)) if first.unsupported is None else ""
        lines.append(
            f"job {number}: {cell.model.name} ({cell.model.weights} weights, {gibibytes(first.weight_bytes)}) "
            f"{cell.precision}{by and f' by {by}'} {cell.engine} on {cell.device} ({gibibytes(first.device_bytes)})"
            + (f" by {cell.launcher} x {cell.world_size}, tp {cell.tp}" if cell.launcher.name != "local" else "")
            + "".join(f" {name}={value}" for name, value in cell.env)
        )
        for each in job.cells:
            lines.append(_plan_line(by_id[each.id]))
    unsupported = sum(item.unsupported is not None for item in plan.planned)
    total = len(plan.planned)
    launches = f" x {plan.launches} launches" if plan.launches > 1 else ""
    skipped = f", {unsupported} of them unsupported" if unsupported else ""
    started = counted(len(jobs) * plan.launches, "job")
    lines.append(f"{counted(total, 'cell')}{launches} in {started}{skipped}; into {Folder.of(plan).path}")
    sys.stdout.write("\n".join(lines) + "\n")


def _plan_line(item: Planned) -> str:
    work = item.cell.workload
    if isinstance(work, Evaluate):
        documents = "all documents" if work.limit is None else f"{work.limit} documents"
        return f"  {item.cell.id}  {work.task}, {documents}, batch {work.batch_size}" + _refusal(item)
    decoding = "sample " if work.decoding == "sample" else ""
    return (
        f"  {item.cell.id}  {decoding}batch {work.batch_size:<3} beams {work.num_beams:<2} "
        f"{f'{work.input_tokens}/{work.output_tokens}':>12}  KV {gibibytes(item.kv_bytes):>10}  "
        f"in all {gibibytes(item.total_bytes):>10}"
        + (f", per device {gibibytes(item.rank_bytes):>10}" if item.cell.world_size > 1 else "")
        + _refusal(item)
    )


def _refusal(item: Planned) -> str:
    return f"  unsupported: {item.unsupported}" if item.unsupported else ""


def write(folder: Folder, outcomes: Sequence[Outcome]) -> None:
    """report.md and report.html of a results folder. Raises ResultsError."""
    from . import page

    folder.write("report.md", markdown(outcomes))
    folder.write("report.html", page.html(outcomes))


def main(arguments: list[str]) -> int:
    """`bench report FOLDER...`: print one table, and write report.md and report.html into each folder."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        raise ConfigError(f"bench report has no option {arguments[0]}: see bench report --help")
    found = {argument: read_outcomes(argument) for argument in arguments}
    print_table([outcome for outcomes in found.values() for outcome in outcomes])
    for argument, outcomes in found.items():
        if not outcomes:
            print(f"{argument}: no results yet")  # noqa: T201
        elif Path(argument).is_dir():
            write(Folder(Path(argument)), outcomes)
            print(f"{argument}/report.md and report.html written")  # noqa: T201
    return 0
