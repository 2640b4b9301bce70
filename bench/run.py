"""`bench run`: lock the folder, measure what is missing, leave the tables."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from . import report, schedule, table
from .config import Request
from .folder import Folder
from .plan import Plan, plan
from .progress import Progress
from .record import Evaluation, Failure, Outcome


def run(requests: Sequence[Request], yaml: str) -> int:
    """Measure the requests into one results folder. Returns 0, or 1 when some of their cells failed."""
    todo = plan(requests)
    folder = Folder.of(todo)
    with folder.locked() as lock:
        folder.write("config.yaml", yaml)
        missing = schedule.missing(todo, folder)
        progress = Progress(todo, missing, folder.path)
        csv = folder.path / table.CSV

        def listen(event: schedule.Event) -> None:
            progress.show(event)
            if event.outcome:
                table.append_csv(csv, event.outcome)

        try:
            with progress:
                if missing:
                    folder.write(table.CSV, table.to_csv(folder.journal.outcomes().values()))
                    schedule.run(todo, folder, lock, uuid.uuid4().hex[:8], listen)
        finally:
            outcomes = folder.journal.outcomes()
            folder.write(table.CSV, table.to_csv(outcomes.values()))
            if outcomes:
                report.write(folder, list(outcomes.values()))
        asked = _asked(todo, outcomes)
    report.print_table(asked)
    progress.conclude(asked)
    return 1 if any(isinstance(outcome, Failure) for outcome in asked) else 0


def _asked(todo: Plan, outcomes: dict[tuple[str, int], Outcome]) -> list[Outcome]:
    """The outcomes that this command asked for, the tasks of a group after it; the folder may hold more."""
    keys = []
    for cell in todo.cells:
        for launch in range(1, todo.launches + 1):
            keys.append((cell.id, launch))
            outcome = outcomes.get(keys[-1])
            keys += [(part, launch) for part in outcome.parts] if isinstance(outcome, Evaluation) else []
    return [outcomes[key] for key in dict.fromkeys(keys) if key in outcomes]
