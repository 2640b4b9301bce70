"""Which low-bit formats run on this device, by whom, how exact and how fast.

    python -m benchmarks.precisions [DEVICE [SECONDS]]       the table of docs/precisions.md: minutes, no network
    python -m benchmarks.precisions speed [OVERRIDE...]      decoding against bf16 by `bench run`, three processes each

Every provider of every format in turn, real kernels first: the logits of tiny-trained (groups of 32, because its rows
have 32 and 64 columns) against fp32, its accuracy on the embedded task where lm-eval is installed, and the decoding of
a Llama of 4 layers with random weights (batch 1, eager), with bf16 measured before and after it. Its hidden size is
2048 on CPU, and 4096 on a GPU. There the host takes most of an eager step, so one token's forward is also replayed as a
CUDA graph. All in one process, and in a new one after a row that hung, died or broke the device. SECONDS bounds it all.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import logging
import math
import multiprocessing
import platform
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import bench
from bench import accuracy
from bench.cell import Cell, Choice, Evaluate, Generate
from bench.compose import compose
from bench.devices import Device, devices
from bench.engines import Engine, Loaded, engines
from bench.errors import Unsupported
from bench.fingerprint import ADAPTERS
from bench.hardware import hardware
from bench.measure import iteration
from bench.metrics import tpot
from bench.models.spec import Model
from bench.precisions.base import precision_of, precisions
from bench.precisions.lowbit import LowBit
from bench.providers import providers
from bench.providers.base import EMULATED, Support

M214 = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 4096, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
MID = Model("llama-2048x4", weights="random", architecture=json.dumps(M214))
WIDE = Model(
    "llama-4096x4", weights="random",
    architecture=json.dumps(M214 | {"hidden_size": 4096, "intermediate_size": 11008}),
)  # fmt: skip
WORK = Generate(input_tokens=32, output_tokens=9)
SLOW = 3.0
"""Seconds of a call beyond which it is timed once."""
START_S, ROW_S = 120.0, 60.0
"""Seconds that a process has to get ready, and for a row."""
PLAIN = ("fp32", "bf16", "fp16")


@dataclasses.dataclass
class Row:
    """A format by one provider."""

    format: str
    provider: str
    kernels: str = ""
    bits: float = math.nan
    """Stored bits per parameter of the larger model's layers, scales included."""
    error: float = math.nan
    acc: float = math.nan
    perplexity: float = math.nan
    tpot: float = math.nan
    gain: float = math.nan
    """TPOT of bf16, measured before and after, over that of the format."""
    step: float = math.nan
    """One token's forward as a CUDA graph, s."""
    step_gain: float = math.nan
    note: str = ""
    broken: bool = False
    """Whether the logits could not be had, and not because the provider refuses the model."""


class Bench:
    """Both models on one device."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.device: Device = devices.get(kind)()
        self.engine: Engine = engines.get("eager")()
        composed = compose(["model=tiny-trained", "workload=accuracy", f"device={kind}"])
        assert composed is not None
        self.tiny = composed[0][0].cells[0].model
        ids = torch.arange(5, 133).view(2, 64).to(self.device.torch_type)
        self.logits = partial(self._logits, ids)
        self.reference = self.logits(self.load(self.tiny, Choice("fp32"), Evaluate("passages")))
        self.mid = MID if kind == "cpu" else WIDE
        self.plain = self.load(self.mid, Choice("bf16"), WORK)
        self.inputs, _ = self.engine.prompts(self.plain, self.cell(self.mid, Choice("bf16"), WORK))
        self.decode(self.plain)  # warm-up

    def about(self) -> str:
        """Machine and versions."""
        versions = {name: metadata.version(name) for name in ("torch", "transformers", *ADAPTERS) if _has(name)}
        return (
            f"{date.today()}, {self.device.info()['device_name']}, {self.kind}, Python {platform.python_version()}, "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + (f", {torch.get_num_threads()} threads" if self.kind == "cpu" else "")
            + ".\n"
        )

    def cell(self, model: Model, precision: Choice, work: Any) -> Cell:
        """A cell of the eager engine."""
        return Cell(model=model, workload=work, precision=precision, device=Choice(self.kind))

    def load(self, model: Model, precision: Choice, work: Any) -> Loaded:
        """As the worker does; raises Unsupported where the planner or the worker says no."""
        cell = self.cell(model, precision, work)
        refusal = precision_of(cell).unsupported(cell)
        if refusal:
            raise Unsupported(refusal)
        return self.engine.load(cell, self.device)

    @staticmethod
    def _logits(ids: torch.Tensor, loaded: Loaded) -> torch.Tensor:
        with torch.inference_mode():
            return loaded.handle(ids).logits.float()

    def decode(self, loaded: Loaded) -> float:
        """Median TPOT of three calls, s; of one when it is slow."""
        found = []
        for _ in range(3):
            item = iteration(self.engine, loaded, self.device, self.inputs, WORK)
            found.append(tpot(item))
            if item.e2e_s > SLOW:
                break
        return median(found)

    def graph(self, loaded: Loaded) -> float:
        """Seconds of one token's forward, replayed as a CUDA graph: the device's part alone."""
        ids = self.inputs["input_ids"][:, :1]
        with torch.inference_mode():
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):
                    loaded.handle(ids, use_cache=False)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loaded.handle(ids, use_cache=False)
        found = []
        for _ in range(5):
            marks = [self.device.mark()]
            for _ in range(20):
                graph.replay()
            marks.append(self.device.mark())
            self.device.synchronize()
            found.append(self.device.elapsed(marks)[0] / 20)
        return median(found)

    def row(self, format: str, provider: str) -> Row:
        """Everything about one format by one provider; each part that fails leaves its reason."""
        row = Row(format, provider, bits={"fp32": 32.0, "bf16": 16.0, "fp16": 16.0}.get(format, math.nan))
        settings: tuple[tuple[str, Any], ...] = ()
        if provider:
            support = providers.get(provider)().support(format, self.kind)
            assert isinstance(support, Support)
            row.kernels, row.note = support.kernels, support.note
            narrow = precisions.get(format)().group_size != -1  # type: ignore[attr-defined]
            settings = ((("group_size", 32),) if narrow else ()) + (("provider", provider),)
        parts: list[Callable[[], None]] = [partial(self._exactness, row, Choice(format, settings))]
        if row.kernels and row.kernels != EMULATED:
            parts += [partial(self._speed, row, Choice(format, (("provider", provider),)))]
        for part in parts:
            try:
                part()
            except Exception as error:  # a library's own: the table goes on
                traceback.print_exc()
                row.broken |= math.isnan(row.error) and not isinstance(error, Unsupported)
                why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
                row.note = "; ".join(dict.fromkeys(text for text in (row.note, why) if text))
        gc.collect()
        return row

    def alive(self) -> bool:
        """Whether the device still answers."""
        try:
            self.device.synchronize()
            self.device.release_memory()
            return bool(torch.ones(8, device=self.device.torch_type).sum().item() == 8)
        except Exception:
            return False

    def _exactness(self, row: Row, choice: Choice) -> None:
        work = Evaluate("passages")
        loaded = self.load(self.tiny, choice, work)
        found = self.logits(loaded)
        row.error = float((found - self.reference).norm() / self.reference.norm())
        if importlib.util.find_spec("lm_eval"):
            result = accuracy.evaluate(self.cell(self.tiny, choice, work), loaded.handle, lambda _: None)
            scores = {score.name: score.value for score in result.scores}
            row.acc, row.perplexity = scores["acc"], scores["perplexity"]

    def _speed(self, row: Row, choice: Choice) -> None:
        loaded = self.load(self.mid, choice, WORK)
        ends = 2 * self.plain.handle.get_input_embeddings().weight.numel()
        whole = sum(item.numel() for item in self.plain.handle.parameters())
        row.bits = (loaded.weights.packed_bytes - 2 * ends) * 8 / (whole - ends)
        before = self.decode(self.plain)
        self.decode(loaded)  # warm-up; some kernels pack here
        row.tpot = self.decode(loaded)
        row.gain = fmean((before, self.decode(self.plain))) / row.tpot
        if self.kind == "cuda":
            compiled = dataclasses.replace(self.cell(self.mid, choice, WORK), engine=Choice("compiled"))
            refusal = precision_of(compiled).unsupported(compiled)
            if refusal:
                raise Unsupported(refusal)
            plain = self.graph(self.plain)
            row.step = self.graph(loaded)
            row.step_gain = plain / row.step


def _serve(kind: str, pipe: Any) -> None:
    """Rows for a parent that asks for them, until the device is broken."""
    _hush()
    bench_ = Bench(kind)
    pipe.send(bench_.about())
    alive = True
    while alive:
        row = bench_.row(*pipe.recv())
        alive = bench_.alive()
        pipe.send((row, alive))


class Rows:
    """A process that measures rows, and another one in its place after a row that it did not survive."""

    def __init__(self, kind: str, seconds: float) -> None:
        self.kind, self.end = kind, time.monotonic() + seconds
        self.process: Any = None
        self.pipe: Any = None
        self.about = ""

    def start(self) -> str | None:
        """Why no process is ready to measure, in one line; None when one is."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(self.kind, theirs), daemon=True)
            self.process.start()
            theirs.close()
            found = self._answer(START_S)
            if isinstance(found, Row):
                return found.note
            self.about = found
        return None

    def row(self, format: str, provider: str = "", kernels: str = "") -> Row:
        """The row, or what became of it."""
        late = time.monotonic() > self.end
        why = "not run: no time left" if late else self.start()
        if why is None:
            self.pipe.send((format, provider))
            found = self._answer(ROW_S)
            if isinstance(found, tuple):
                row, alive = found
                if not alive:
                    self.stop()
                return row  # type: ignore[no-any-return]
            why = found.note
        return Row(format, provider, kernels, note=why)

    def _answer(self, seconds: float) -> Any:
        """What the process sends; a row with a note when it does not."""
        seconds = max(1.0, min(seconds, self.end - time.monotonic()))
        why = f"no answer within {seconds:.0f} s"
        try:
            if self.pipe.poll(seconds):
                return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            why = f"the process died with exit status {self.process.exitcode}"
        self.stop()
        return Row("", "", note=why)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.join(5)
            self.pipe.close()
            self.process = None


def table(kind: str, seconds: float) -> Iterator[str]:
    """The lines of the table, as they become known."""
    rows = Rows(kind, seconds)
    why = rows.start()
    if why:
        yield f"Nothing could be measured on {kind}: {why}"
        return
    on_gpu = kind == "cuda"
    yield rows.about
    yield (
        "| format | provider | kernels | bits | logits, relative error | accuracy | perplexity | TPOT | × bf16 | "
        + ("as a graph | × bf16 | |" if on_gpu else "|")
    )
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|" + ("---:|---:|---|" if on_gpu else "---|")
    for name in PLAIN:
        yield _line(rows.row(name), on_gpu)
    formats = [name for name, cls in precisions.items() if issubclass(cls, LowBit)]
    wanted: list[tuple[str, str, str]] = []
    for format in formats:
        for provider, cls in providers.items():
            support = cls().support(format, kind)
            if isinstance(support, Support) and "eager" in cls.engines and not cls().missing():
                wanted.append((format, provider, support.kernels))
    seen: dict[tuple[str, str], str] = {}
    for format, provider, kernels in sorted(wanted, key=lambda item: item[2] == EMULATED):
        row = rows.row(format, provider, kernels)
        gain = row.gain if math.isnan(row.step_gain) else row.step_gain
        seen[format, provider] = "emulated" if kernels == EMULATED else f"× {gain:.2g}"
        if row.broken or math.isnan(row.error if kernels == EMULATED else gain):
            seen[format, provider] = "not run" if row.note.startswith("not run") else "fails"
        yield _line(row, on_gpu)
    rows.stop()
    used = list(dict.fromkeys(provider for _, provider, _ in wanted))
    yield ""
    yield f"| {kind} | {' | '.join(used)} |"
    yield "|---" * (len(used) + 1) + "|"
    for format in formats:
        yield f"| {format} | {' | '.join(seen.get((format, provider), '–') for provider in used)} |"
    nobody = [format for format in formats if format not in {item[0] for item in wanted}]
    if nobody:
        yield f"\nNobody installed here has {', '.join(nobody)}."


def _line(row: Row, on_gpu: bool) -> str:
    def number(value: float, spec: str, unit: str = "") -> str:
        return "" if math.isnan(value) else f"{value:{spec}}{unit}"

    return (
        f"| {row.format} | {row.provider} | {row.kernels} | {number(row.bits, '.1f')} | {number(row.error, '.3f')} | "
        f"{number(row.acc * 100, '.1f', ' %')} | {number(row.perplexity, '.3f')} | "
        f"{number(row.tpot * 1e3, '.2f', ' ms')} | {number(row.gain, '.2f')} | "
        + (f"{number(row.step * 1e3, '.3f', ' ms')} | {number(row.step_gain, '.2f')} | " if on_gpu else "")
        + f"{row.note} |"
    )


def _has(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def speed(*overrides: str) -> int:
    """`bench run` with three launches of each format, which alternate; prints TPOT of bf16 over TPOT of the format."""
    with TemporaryDirectory() as folder:
        model = Path(folder) / MID.name
        model.mkdir()
        (model / "config.json").write_text(json.dumps(M214))
        results = f"{folder}/results"
        common = ("-m", f"model={model}", "weights=random", "device=cpu", "lengths=32/64", "num_beams=1", "launches=3",
                  "iterations=5", "precision=bf16,woq_int4,nf4,fp4,sym_int4", f"results={results}")  # fmt: skip
        code = subprocess.run([sys.executable, "-m", "bench", "run", *common, *overrides], check=False).returncode
        frame = bench.load(results)
    plain = frame[frame.precision == "bf16"].set_index("launch").tpot_s
    print("| precision | provider | TPOT | × bf16, median of launches | smallest | largest |")
    print("|---|---|---:|---:|---:|---:|")
    for name, rows in frame.groupby("precision", sort=False):
        gains = plain / rows.set_index("launch").tpot_s
        provider = rows.provider.dropna().unique()
        print(
            f"| {name} | {', '.join(provider)} | {rows.tpot_s.median() * 1e3:.2f} ms | {gains.median():.2f} | "
            f"{gains.min():.2f} | {gains.max():.2f} |"
        )
    return code


def _hush() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main(arguments: list[str]) -> int:
    """Either of the two."""
    if arguments[:1] == ["speed"]:
        return speed(*arguments[1:])
    _hush()
    start = time.perf_counter()
    kind = arguments[0] if arguments else hardware().best()
    for line in table(kind, float(arguments[1]) if len(arguments) > 1 else math.inf):
        print(line, flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
