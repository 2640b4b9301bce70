"""What a user sees while a run goes on: one line per finished cell, and on a terminal what happens now.

Quiet on purpose: it draws when the worker reports something, and never by a timer, because a process that redraws
takes processor time from the one that measures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.live import Live
from rich.text import Text

from .cell import Cell, Evaluate
from .console import Console
from .metrics import e2e_s, tpot_s, ttft_s, values
from .plan import Plan
from .record import Evaluation, Failure, Outcome, Record
from .schedule import Event
from .units import duration, milliseconds, percent, perplexity, significant

MARKS = {True: ("ok", "green"), False: ("failed", "red")}


class Progress:
    """Listens to a run and prints to standard error."""

    def __init__(self, plan: Plan, missing: Sequence[tuple[Cell, int]], folder: Path) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.plan = plan
        self.folder = folder
        self.launches = plan.launches
        self.left = {(cell.id, launch): _work(cell) for cell, launch in missing}
        self.total = len(self.left)
        self.since = time.monotonic()
        self.busy_s = 0.0
        self.done_work = 0.0

    def __enter__(self) -> Progress:
        asked = len(self.plan.cells) * self.launches
        already = asked - self.total
        if self.total:
            what = f"{self.total} to measure" + (f", {already} already there" if already else "")
            self.console.print(Text(f"{self.folder}: {what}"))
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def show(self, event: Event) -> None:
        """Draw an event."""
        if event.kind == "start":
            self.since = time.monotonic()
        if event.outcome:
            work = self.left.pop((event.cell.id, event.launch), 0.0)
            if work and not isinstance(event.outcome, Failure):
                self.done_work += work
                self.busy_s += time.monotonic() - self.since
            self._line(event, event.outcome)
        if self.console.is_terminal:
            number = self.total - len(self.left) + 1
            if number > self.total:
                self.live.update(Text(""), refresh=True)
                return
            now = f"[{number}/{self.total}] {event.cell}"
            if event.kind == "phase":
                now += f"  {event.phase}"
            self.live.update(Text(now + self._eta(), style="dim"), refresh=True)

    def conclude(self, outcomes: Sequence[Outcome]) -> None:
        """The last lines: what failed and why, where everything is."""
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        same: dict[tuple[str, str, str], list[Failure]] = {}
        for failure in failures:
            same.setdefault((failure.status, failure.error, failure.log), []).append(failure)
        for (status, error, log), group in list(same.items())[:20]:
            cells = _label(group[0]) + (f" and {len(group) - 1} more" if len(group) > 1 else "")
            self.console.print(Text.assemble((f"{status} ", "red"), f"{cells}: {error}"))
            if log:
                self.console.print(Text(f"  log: {self.folder / log}", style="dim"))
        if len(same) > 20:
            self.console.print(Text(f"{len(same) - 20} more kinds of failure are in {self.folder}/results.csv"))
        ok = len(outcomes) - len(failures)
        counts = f"{ok} ok" + (f", {len(failures)} failed" if failures else "")
        if not self.total:
            counts = f"nothing to do, all {len(outcomes)} results were there already ({counts})"
            if failures:
                counts += "; retry_failed=true tries the failed ones again"
        self.console.print(Text(f"{self.folder}: {counts}"))

    def _line(self, event: Event, outcome: Outcome) -> None:
        number = self.total - len(self.left)
        word, style = MARKS[not isinstance(outcome, Failure)]
        launch = f" launch {event.launch}" if self.launches > 1 else ""
        line = Text.assemble(f"[{number}/{self.total}] ", (f"{word:6} ", style), f"{event.cell}{launch}  ")
        if isinstance(outcome, Record):
            line.append(f"TTFT {milliseconds(ttft_s(outcome))}  TPOT {milliseconds(tpot_s(outcome))}")
            line.append(f"  E2E {milliseconds(e2e_s(outcome))}", style="dim")
        elif isinstance(outcome, Evaluation):
            found = values(outcome)
            line.append(f"accuracy {percent(found['acc'])} ± {percent(found['acc_stderr'])}")
            line.append(f"  perplexity {perplexity(found['perplexity'])}")
            line.append(f"  {outcome.n} documents, {significant(found['docs_per_s'])} per s", style="dim")
        else:
            line.append(f"{outcome.status}: {outcome.error}", style="red")
        if not self.console.is_terminal:
            line.append(self._eta())
        self.console.print(line)

    def _eta(self) -> str:
        """What measuring the rest takes at the pace so far, loading apart. Blank before the first result."""
        rest = sum(self.left.values())
        if not self.done_work or not rest:
            return ""
        return f"  {duration(self.busy_s / self.done_work * rest)} left"


def _work(cell: Cell) -> float:
    """A rough measure of how long a cell takes: tokens through the model, prompt tokens at a discount."""
    work = cell.workload
    if isinstance(work, Evaluate):
        return 2.0 * (work.limit or 5000)
    sequences = work.batch_size * work.num_beams
    steps = work.output_tokens * (1 + 0.05 * sequences) + 0.02 * work.input_tokens * sequences
    return (cell.warmup + cell.iterations) * steps


def _label(outcome: Outcome) -> str:
    axes = outcome.axes
    launch = f" launch {outcome.launch}" if outcome.launch > 1 else ""
    what = f"beams{axes['num_beams']} {axes['input_tokens']}/{axes['output_tokens']}"
    if axes["task"] != "generate":
        what = str(axes["task"])
    return (
        f"{axes['model']} {axes['precision']} {axes['engine']} {axes['device']} bs{axes['batch_size']} {what}{launch}"
    )
