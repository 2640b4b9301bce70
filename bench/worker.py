"""The measuring process: loads one model, measures its cells, appends each outcome to the journal.

It may be one rank of several. Then all do the same, the first writes the journal, and a rank that fails says so on the
roll and ends: the others may be waiting for it, so the parent ends the job and goes on in a new one.

It imports the standard library, torch, transformers and the adapter's own library only, because it also runs under
interpreters that have nothing else of what bench needs. Started through `start.py` with the path of a `job.json`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import math
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from . import accuracy, fingerprint, peaks
from .cell import Cell, Evaluate, Scalar
from .devices.base import Device, devices
from .engines.base import Engine, Loaded, engines
from .errors import CellError, LoadError, OutOfMemory, ResultsError, Unsupported
from .journal import Journal, NoJournal, log_tail, write_lines
from .measure import Stopwatch, measure, suspicions
from .precisions.base import precision_of
from .ranks import Ranks, merge
from .record import Evaluation, Failure, Record
from .roll import log_name
from .turns import Turns

log = logging.getLogger(__name__)

EXIT_JOURNAL = 74
"""Exit status when the journal cannot be written (EX_IOERR of sysexits.h)."""
EXIT_DEVICE = 75
"""Exit status when the device is unusable for the rest of this process (EX_TEMPFAIL): a new worker goes on."""


NO_RESULTS = "results"
"""What a rank that cannot write the journal signs the roll with."""


@dataclass(frozen=True)
class Task:
    """What `job.json` says."""

    cells: tuple[Cell, ...]
    launch: int
    run: str
    log: str
    journal: Path

    @classmethod
    def read(cls, path: Path) -> Task:
        """The task in a `job.json`."""
        data = json.loads(path.read_text())
        cells = tuple(Cell.from_json(cell) for cell in data["cells"])
        return cls(cells, data["launch"], data["run"], data["log"], Path(data["journal"]))


WATCH_STDIN = "BENCH_WATCH_STDIN"
"""Set by the parent when standard input is a pipe that it keeps open for as long as it lives."""


def main(argv: list[str]) -> int:
    """Measure the job at path `argv[0]`. Every outcome, failures included, is in the journal when this returns 0."""
    task = Task.read(Path(argv[0]))
    ranks = Ranks.of(task.cells[0].launcher.name, Path(argv[0]).parent, os.environ)
    ranks.begin()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    faulthandler.enable()  # a segmentation fault leaves its stack in the log
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)  # the parent asks for the stacks before it kills
    if os.environ.get(WATCH_STDIN):
        _ask_to_die_with_parent()
        if not ranks.several:  # ranks have no standard input of their own, and watch the processes themselves
            threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        return _Worker(task, ranks).run()
    except ResultsError as error:
        log.error("%s", error)
        if ranks.several:
            ranks.fail(NO_RESULTS, str(error))
        return EXIT_JOURNAL


def _ask_to_die_with_parent() -> None:
    """Let the kernel kill this process with its parent, where it can (Linux): works inside native code, too."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _die_with_parent() -> None:
    """End when standard input closes, so that a parent that was killed leaves no process behind."""
    while os.read(0, 1):
        pass
    os._exit(1)


class _Worker:
    def __init__(self, task: Task, ranks: Ranks) -> None:
        first = task.cells[0]
        self.task = task
        self.ranks = ranks
        self.turns = Turns.of(os.environ if ranks.rank == 0 else {})
        self.journal = Journal(task.journal) if ranks.rank == 0 else NoJournal()
        self.log = str(Path(task.log).with_name(log_name(ranks.rank))) if ranks.several else task.log
        self.device: Device = devices.get(first.device.name)(**first.device.kwargs)
        self.engine: Engine = self.device.simulates(engines.get(first.engine.name)(**first.engine.kwargs))
        self.started = _now()

    def run(self) -> int:
        self._phase("importing")
        try:
            loaded, load_s = self._load()
        except (Exception, SystemExit) as error:
            failed = self._cell_error(error, while_loading=True)
            for cell in self.task.cells:
                self._fail(cell, failed, {})
            return 0
        environment = fingerprint.collect(self.device, loaded.revision)
        gc.freeze()  # torch and transformers leave objects that take each collection 0.2 s
        for cell in self.task.cells:
            self.started = _now()
            self.journal.append({"kind": "start", "cell": cell.id, "launch": self.task.launch, "time": self.started})
            outcome: Record | Evaluation
            try:
                self.ranks.barrier()
                if isinstance(cell.workload, Evaluate):
                    outcome = self._evaluate(loaded, cell, load_s, environment)
                else:
                    outcome = self._measure(loaded, cell, load_s, environment)
            except (Exception, SystemExit) as error:
                self._fail(cell, self._cell_error(error), environment)
            else:
                self.journal.outcome(outcome)
            # After the except clause, in which the traceback still holds the tensors of the failed call.
            if not self._release():
                return EXIT_DEVICE
        self.ranks.leave()
        return 0

    def _load(self) -> tuple[Loaded, float]:
        self.engine.imports()
        reason = self.device.unavailable()
        if reason:
            raise Unsupported(reason)
        self.ranks.join(self.device)
        self.engine.prepare(self.task.cells[0])
        self._phase("loading")
        watch = Stopwatch()
        loaded = self.engine.load(self.task.cells[0], self.device)
        self.device.synchronize()
        return loaded, max(self.ranks.gather(watch.seconds()))

    def _measure(self, loaded: Loaded, cell: Cell, load_s: float, environment: dict[str, Scalar]) -> Record:
        limits = peaks.peaks(self.device, precision_of(cell).dtype, environment, at_once=self.ranks.local_size)
        graphs, tuning_s = self.engine.graphs(), self.engine.tuning_s()
        self.engine.begin(loaded, cell)
        inputs, warnings = self.engine.prompts(loaded, cell)
        mine = measure(self.engine, loaded, self.device, inputs, cell, self._phase, self._together)
        samples = merge(self.ranks.gather(mine))
        return Record(
            cell=cell.id,
            launch=self.task.launch,
            axes=cell.axes(),
            run=self.task.run,
            log=self.log,
            started=self.started,
            iterations=samples.iterations,
            warmups=samples.warmups,
            load_s=load_s,
            hook_s=samples.hook_s,
            peak_memory_bytes=samples.peak_memory_bytes,
            peak_reserved_bytes=samples.peak_reserved_bytes,
            other_cores=samples.other_cores,
            compiled=self.engine.compiles(cell),
            compiled_graphs=self.engine.graphs() - graphs,
            tuning_s=self.engine.tuning_s() - tuning_s,
            cost=loaded.cost,
            peaks=limits,
            seed=cell.seed,
            approximation=cell.model.approximation if cell.model.weights == "random" else None,
            fingerprint=environment,
            warnings=(
                *loaded.warnings,
                *loaded.weights.warnings,
                *warnings,
                *self.engine.noticed(loaded),
                *suspicions(samples, self.device),
                *self._shared(),
            ),
            total_memory_bytes=samples.total_memory_bytes,
            weights=loaded.weights,
        )

    def _evaluate(self, loaded: Loaded, cell: Cell, load_s: float, environment: dict[str, Scalar]) -> Evaluation:
        """Every rank answers all documents, in step; the first writes them down.

        The tasks of a group have outcomes of their own, in the journal before the group's.
        """
        self.engine.begin(loaded, cell)
        self.engine.seed(cell.seed)
        self.device.reset_peak_memory()
        self._together()
        result = accuracy.evaluate(cell, loaded.handle, self._phase)
        memory = self.ranks.gather(self.device.peak_memory())
        work = cell.workload
        assert isinstance(work, Evaluate)
        parts = []
        for part in result.parts:
            its = replace(cell, workload=replace(work, task=part.task))
            self.journal.outcome(self._evaluation(loaded, its, load_s, part, memory))
            parts.append(its.id)
        return replace(self._evaluation(loaded, cell, load_s, result, memory), parts=tuple(parts))

    def _evaluation(
        self, loaded: Loaded, cell: Cell, load_s: float, result: accuracy.Result, memory: list[tuple[float, float]]
    ) -> Evaluation:
        """The outcome of a task, whose documents it writes to their file."""
        samples = str(Path(self.task.log).with_name(f"samples_{cell.id}.jsonl"))
        if self.ranks.rank == 0:
            write_lines(self.task.journal.parent / samples, result.documents)
        return Evaluation(
            cell=cell.id,
            launch=self.task.launch,
            axes=cell.axes(),
            run=self.task.run,
            log=self.log,
            started=self.started,
            scores=result.scores,
            n=result.n,
            seconds=max(self.ranks.gather(result.seconds)),
            samples=samples,
            task_version=result.task_version,
            num_fewshot=result.num_fewshot,
            data=result.data,
            data_sha256=result.data_sha256,
            dataset_revision=result.dataset_revision,
            load_s=load_s,
            peak_memory_bytes=max(used for used, _ in memory),
            peak_reserved_bytes=max(reserved for _, reserved in memory),
            total_memory_bytes=sum(used for used, _ in memory) if len(memory) > 1 else math.nan,
            seed=cell.seed,
            approximation=cell.model.approximation if cell.model.weights == "random" else None,
            fingerprint=fingerprint.collect(self.device, loaded.revision),  # lm-eval is among the adapters now
            warnings=(*loaded.warnings, *loaded.weights.warnings, *result.warnings),
            weights=loaded.weights,
        )

    def _fail(self, cell: Cell, error: CellError, environment: dict[str, Scalar]) -> None:
        sys.stderr.flush()
        if self.ranks.several:
            self.ranks.fail(error.kind, str(error))
        self.journal.outcome(
            Failure(
                cell=cell.id,
                launch=self.task.launch,
                axes=cell.axes(),
                run=self.task.run,
                log=self.log,
                started=self.started,
                status=error.kind,
                error=str(error),
                log_tail=log_tail(self.task.journal.parent / self.log),
                fingerprint=environment,
            )
        )

    def _cell_error(self, error: BaseException, while_loading: bool = False) -> CellError:
        """The error as one line of a known kind; the traceback goes to the log unless the kind explains itself."""
        if isinstance(error, ResultsError):
            raise error
        if isinstance(error, CellError):
            log.error("%s", error, exc_info=error.__cause__)
            return error
        log.error("unexpected", exc_info=error)
        where = " while loading the model" if while_loading else ""
        if self.device.out_of_memory(error):
            return OutOfMemory(f"out of memory{where}: {_first_line(error)}")
        kind = LoadError if while_loading else CellError
        if isinstance(error, SystemExit):
            return kind(f"a library called exit({error.code}){where}")
        if isinstance(error, ImportError):
            return kind(f"{_first_line(error)}: install it into the worker's interpreter")
        return kind(f"{type(error).__name__}{where}: {_first_line(error)}")

    def _release(self) -> bool:
        """Free what a cell held, so that the next one's peak is its own; False when the device no longer answers."""
        gc.collect()
        try:
            self.device.synchronize()
            self.device.release_memory()
        except Exception:
            log.exception("the device does not answer; a new process goes on")
            return False
        return True

    def _together(self) -> None:
        """Return when it is this launch's turn and all its ranks are ready."""
        self.turns.wait()
        self.ranks.barrier()

    def _shared(self) -> list[str]:
        return ["another launch ran between the calls (bench ab --interleave calls)"] if self.turns.taken else []

    def _phase(self, name: str) -> None:
        self.journal.append({"kind": "phase", "phase": name}, sync=False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
