"""Which low-bit formats run on this device, by whom, how exact and how fast.

    python -m benchmarks.precisions [DEVICE]        the table of docs/precisions.md: minutes, no network
    python -m benchmarks.precisions speed [OVERRIDE...]      decoding against bf16 by `bench run`, three processes each

Every provider of every format in turn, in this process: the logits of tiny-trained (groups of 32, because its rows have
32 and 64 columns) against fp32, its accuracy on the embedded task where lm-eval is installed, and the decoding of a
Llama of 4 layers and hidden size 2048 with random weights (batch 1, eager), with bf16 measured before and after it.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import math
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
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
from bench.errors import CellError
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
WORK = Generate(input_tokens=32, output_tokens=9)
SLOW = 3.0
"""Seconds of a call beyond which it is timed once."""


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
    note: str = ""


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
        self.plain = self.load(MID, Choice("bf16"), WORK)
        self.inputs, _ = self.engine.prompts(self.plain, self.cell(MID, Choice("bf16"), WORK))
        self.decode(self.plain)  # warm-up

    def cell(self, model: Model, precision: Choice, work: Any) -> Cell:
        """A cell of the eager engine."""
        return Cell(model=model, workload=work, precision=precision, device=Choice(self.kind))

    def load(self, model: Model, precision: Choice, work: Any) -> Loaded:
        """As the worker does; raises CellError where the planner or the worker says no."""
        cell = self.cell(model, precision, work)
        refusal = precision_of(cell).unsupported(cell)
        if refusal:
            raise CellError(refusal)
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

    def row(self, format: str, provider: str, support: Support) -> Row:
        """Everything about one format by one provider; what fails leaves its reason."""
        row = Row(format, provider, support.kernels, note=support.note)
        narrow = (("group_size", 32),) if precisions.get(format)().group_size != -1 else ()  # type: ignore[attr-defined]
        try:
            choice = Choice(format, (*narrow, ("provider", provider)))
            work = Evaluate("passages")
            loaded = self.load(self.tiny, choice, work)
            found = self.logits(loaded)
            row.error = float((found - self.reference).norm() / self.reference.norm())
            with suppress(ImportError):
                import lm_eval  # noqa: F401

                result = accuracy.evaluate(self.cell(self.tiny, choice, work), loaded.handle, lambda _: None)
                scores = {score.name: score.value for score in result.scores}
                row.acc, row.perplexity = scores["acc"], scores["perplexity"]
            if support.kernels != EMULATED:
                self._speed(row, Choice(format, (("provider", provider),)))
        except Exception as error:  # a library's own: the table goes on
            row.note = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        gc.collect()
        self.device.release_memory()
        return row

    def _speed(self, row: Row, choice: Choice) -> None:
        loaded = self.load(MID, choice, WORK)
        ends = 2 * self.plain.handle.get_input_embeddings().weight.numel()
        whole = sum(item.numel() for item in self.plain.handle.parameters())
        row.bits = (loaded.weights.packed_bytes - 2 * ends) * 8 / (whole - ends)
        before = self.decode(self.plain)
        self.decode(loaded)  # warm-up; some kernels pack here
        row.tpot = self.decode(loaded)
        row.gain = fmean((before, self.decode(self.plain))) / row.tpot


def table(kind: str) -> Iterator[str]:
    """The lines of the table, as they become known."""
    bench_ = Bench(kind)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", *ADAPTERS) if _has(name)}
    yield (
        f"{date.today()}, {bench_.device.info()['device_name']}, {kind}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + (f", {torch.get_num_threads()} threads" if kind == "cpu" else "")
        + ".\n"
    )
    yield "| format | provider | kernels | bits | logits, relative error | accuracy | perplexity | TPOT | × bf16 | |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---|"
    plain = []
    for name in ("fp32", "bf16", "fp16"):
        loaded = bench_.load(bench_.tiny, Choice(name), Evaluate("passages"))
        row = Row(name, "", "", 32.0 if name == "fp32" else 16.0)
        row.error = float((bench_.logits(loaded) - bench_.reference).norm() / bench_.reference.norm())
        with suppress(ImportError):
            import lm_eval  # noqa: F401

            cell = bench_.cell(bench_.tiny, Choice(name), Evaluate("passages"))
            scores = {s.name: s.value for s in accuracy.evaluate(cell, loaded.handle, lambda _: None).scores}
            row.acc, row.perplexity = scores["acc"], scores["perplexity"]
        plain.append(row)
        yield _line(row)
    seen: dict[tuple[str, str], str] = {}
    nobody = []
    formats = [name for name, cls in precisions.items() if issubclass(cls, LowBit)]
    for format in formats:
        found = False
        for provider, cls in providers.items():
            support = cls().support(format, kind)
            if not isinstance(support, Support) or "eager" not in cls.engines or cls().missing():
                continue
            found = True
            row = bench_.row(format, provider, support)
            seen[format, provider] = "emulated" if row.kernels == EMULATED else f"× {row.gain:.2g}"
            if math.isnan(row.error):
                seen[format, provider] = "fails"
            yield _line(row)
        nobody += [] if found else [format]
    used = list(dict.fromkeys(provider for _, provider in seen))
    yield ""
    yield f"| {kind} | {' | '.join(used)} |"
    yield "|---" * (len(used) + 1) + "|"
    for format in formats:
        yield f"| {format} | {' | '.join(seen.get((format, provider), '–') for provider in used)} |"
    if nobody:
        yield f"\nNobody installed here has {', '.join(nobody)}."


def _line(row: Row) -> str:
    def number(value: float, spec: str, unit: str = "") -> str:
        return "" if math.isnan(value) else f"{value:{spec}}{unit}"

    return (
        f"| {row.format} | {row.provider} | {row.kernels} | {number(row.bits, '.1f')} | {number(row.error, '.3f')} | "
        f"{number(row.acc * 100, '.1f', ' %')} | {number(row.perplexity, '.3f')} | "
        f"{number(row.tpot * 1e3, '.2f', ' ms')} | {number(row.gain, '.2f')} | {row.note} |"
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


def main(arguments: list[str]) -> int:
    """Either of the two."""
    if arguments[:1] == ["speed"]:
        return speed(*arguments[1:])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    for line in table(arguments[0] if arguments else hardware().best()):
        print(line, flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
