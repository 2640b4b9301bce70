"""Does measuring change what is measured? TPOT as bench reports it against the same `generate()` without the hook.

    python benchmarks/hook_cost.py                                    a Llama of 200 M parameters, on CPU
    python benchmarks/hook_cost.py model=llama-2-7b weights=random precision=fp16 lengths=1024/128

Both ways alternate in one process, in an order that flips every round; a second run without the hook in each round
shows what the method itself can tell apart. Without the hook nothing tells when the first
token is there, so its TPOT is (E2E of N tokens - E2E of 1 token) / (N - 1), the device synchronised around each call.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from bench.cell import Cell, Generate
from bench.compose import compose
from bench.devices import Device, devices
from bench.engines import Engine, Loaded, engines
from bench.measure import Stopwatch, hook_cost, iteration, quiet_collector
from bench.metrics import tpot
from bench.plan import plan

ROUNDS = 20
M200 = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 15,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 8192, "max_position_embeddings": 4096,
}  # fmt: skip


def without_hook(engine: Engine, loaded: Loaded, device: Device, inputs: object, work: Generate) -> float:
    """E2E of `generate()` with nothing of ours in it, s."""
    model = loaded.handle
    config = engine.generation_config(loaded, work)
    device.synchronize()
    watch = Stopwatch()
    with torch.inference_mode():
        model.generate(**inputs, generation_config=config)
    device.synchronize()
    return watch.seconds()


def compare(cell: Cell, rounds: int) -> str:
    """One row: cell, both TPOTs, their ratio."""
    device = devices.get(cell.device.name)()
    engine = engines.get(cell.engine.name)(**cell.engine.kwargs)
    loaded = engine.load(cell, device)
    engine.begin(loaded, cell)
    inputs, _ = engine.prompts(loaded, cell)
    work = cell.workload
    first = dataclasses.replace(work, output_tokens=1)

    def bare() -> float:
        return (
            without_hook(engine, loaded, device, inputs, work) - without_hook(engine, loaded, device, inputs, first)
        ) / (work.output_tokens - 1)

    def ours() -> float:
        return tpot(iteration(engine, loaded, device, inputs, work))

    rows: list[tuple[float, float, float]] = []
    with quiet_collector():
        for number in range(rounds + 2):
            values = (ours(), bare(), bare()) if number % 2 else (bare(), bare(), ours())[::-1]
            if number >= 2:
                rows.append(values)
    reported, plain, _ = (median(values) for values in zip(*rows, strict=True))
    ratio = median(mine / ((one + other) / 2) for mine, one, other in rows)
    control = median(one / other for _, one, other in rows)
    return (
        f"| {cell} | {reported * 1e3:.3f} ms | {plain * 1e3:.3f} ms | {ratio:.4f} | {control:.4f} | "
        f"{hook_cost(device) * 1e6:.2f} us |"
    )


def main(arguments: list[str]) -> None:
    """Print one row per cell of the overrides."""
    rounds = ROUNDS
    if arguments and arguments[0].startswith("rounds="):
        rounds = int(arguments.pop(0).partition("=")[2])
    with TemporaryDirectory() as folder:
        if not arguments:
            local = Path(folder) / "llama-200m"
            local.mkdir()
            (local / "config.json").write_text(json.dumps(M200))
            arguments = [f"model={local}", "weights=random", "precision=fp32", "device=cpu", "num_beams=1",
                         "lengths=64/33"]  # fmt: skip
        composed = compose(arguments, "hook_cost.py")
        assert composed is not None
        print("| cell | TPOT reported | TPOT without hook | ratio | without / without | calibrated hook |")
        print("|---|---:|---:|---:|---:|---:|")
        for cell in plan(composed[0]).cells:
            print(compare(cell, rounds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
