"""Measuring: what is verified, what is suspicious, in which order things happen."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest

from bench.cell import Choice
from bench.devices.base import Device
from bench.devices.fake import FakeDevice, FakeEngine
from bench.engines.base import Loaded
from bench.errors import NonFinite, WrongLength
from bench.measure import Samples, measure, suspicions
from bench.record import Iteration, ModelCost

LOADED = Loaded(None, ModelCost())


class Engine(FakeEngine):
    """Fails as it is told to, and notes the state of the collector and the seeds."""

    def __init__(self, device: FakeDevice, wrong: str = "") -> None:
        super().__init__(device)
        self.wrong = wrong
        self.notes: list[tuple[bool, bool]] = []
        self.seeds: list[int] = []

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def generate(
        self, loaded: Any, inputs: Any, work: Any, on_step: Callable[[], None], check_finite: bool = False
    ) -> Any:
        self.notes.append((check_finite, gc.isenabled()))
        output = super().generate(loaded, inputs, work, on_step, check_finite)
        if self.wrong == "row":
            return output[:-1]
        if self.wrong == "step":
            on_step()
        if self.wrong == "long":
            return [[*row, 0] for row in output]
        if self.wrong == "nan" and check_finite:
            raise NonFinite("not a number")
        return output


def run(make: Any, engine: Engine, **changes: Any) -> tuple[Samples, list[str]]:
    """Measure a cell of 4 input and 3 output tokens with an engine on its fake device."""
    cell = make.cell(batch=2, inputs=4, outputs=3, **{"iterations": 2, "warmup": 1, **changes})
    inputs, _ = engine.prompts(LOADED, cell)
    phases: list[str] = []
    return measure(engine, LOADED, engine.device, inputs, cell, phases.append), phases


def test_iterations_warmups_and_phases(make: Any):
    engine = Engine(FakeDevice(prefill=0.5, step=0.25))
    samples, phases = run(make, engine, seed=7)
    expected = Iteration(pytest.approx((2.0, 2.25, 2.5)), 2.5, samples.iterations[0].output_hash)
    assert samples.warmups == (expected,)
    assert samples.iterations == (expected, expected)
    assert phases == ["warm-up", "measuring"]
    assert engine.seeds == [7, 7, 7]
    assert engine.notes == [(True, True), (False, False), (False, False)]  # the collector is off while measuring
    assert gc.isenabled()
    assert (samples.peak_memory_bytes, samples.peak_reserved_bytes) == (2.0**30, 2.0**31)


def test_memory_that_the_peak_does_not_show(make: Any, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(FakeDevice())
    monkeypatch.setattr(engine, "unseen_memory", lambda loaded: 2.0**30, raising=False)
    monkeypatch.setattr(FakeDevice, "memory_in_use", lambda self: 2.0**20)
    samples, _ = run(make, engine)
    assert samples.peak_memory_bytes == 2.0**30 + 2.0**20
    monkeypatch.setattr(FakeDevice, "memory_in_use", lambda self: -1.0)
    assert run(make, engine)[0].peak_memory_bytes == 2.0**30


def test_without_warmup_the_scores_are_checked_at_the_end(make: Any):
    engine = Engine(FakeDevice())
    samples, _ = run(make, engine, warmup=0)
    assert [check for check, _ in engine.notes] == [False, False, True]
    assert len(samples.iterations) == 2 and samples.warmups == ()
    for warmup in (0, 1):
        with pytest.raises(NonFinite):
            run(make, Engine(FakeDevice(), "nan"), warmup=warmup)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("row", "asked for 2 sequences, got 1"),
        ("long", r"asked for 3 tokens, got 4: is EOS ignored\?"),
        ("step", "asked for 3 steps, the hook saw 4"),
    ],
)
def test_wrong_lengths_are_failures(make: Any, wrong: str, message: str):
    with pytest.raises(WrongLength, match=message):
        run(make, Engine(FakeDevice(), wrong))
    assert gc.isenabled()


def samples_of(*e2e: float, hook_s: float = 0.0, other_cores: float = 0.0, hashes: str = "") -> Samples:
    """Iterations of two tokens, 0.1 s apart, with these end-to-end times."""
    items = [
        Iteration((value - 0.1, value), value, hashes[number] if hashes else "a") for number, value in enumerate(e2e)
    ]
    return Samples((), tuple(items), 0.0, 0.0, hook_s, busy_cores=1.0 + other_cores, own_cores=1.0)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (samples_of(1.0, 1.0, 1.0, 1.0), []),
        (samples_of(1.3, 1.0, 1.0, 1.0), ["raise warmup"]),
        (samples_of(1.1, 1.0, 1.0, 1.0), []),
        (samples_of(1.3, 1.0, 1.4, 1.0, 1.0), []),
        (samples_of(1.3, 1.0, 1.0), []),  # too few to tell
        (samples_of(1.0, 1.2, 0.8, 1.0, 1.2, 0.8), ["raise iterations"]),
        (samples_of(1.0, 1.0, hashes="ab"), ["the iterations produced different tokens"]),
        (samples_of(1.0, 1.0, hook_s=0.002), ["the step hook takes "]),
        (samples_of(1.0, 1.0, hook_s=0.0005), []),
        (samples_of(1.3, 1.0, 1.0, 1.0, other_cores=1.5), ["measure again alone"]),
        (samples_of(1.0, 1.0, 1.0, 1.0, other_cores=0.1), []),
        (samples_of(1.0, 1.0, other_cores=float("nan")), []),
    ],
)
def test_what_is_suspicious(samples: Samples, words: list[str]):
    found = suspicions(samples, Device())
    assert len(found) == len(words)
    for text, word in zip(found, words, strict=True):
        assert word in text
        assert "\n" not in text and ";" not in text


def test_one_token_has_no_gaps_to_be_suspicious_of(make: Any):
    engine = Engine(FakeDevice())
    cell = dataclasses.replace(make.cell(inputs=4, outputs=1, iterations=4, warmup=0), engine=Choice("eager"))
    inputs, _ = engine.prompts(LOADED, cell)
    samples = measure(engine, LOADED, engine.device, inputs, cell, lambda phase: None)
    assert [item.steps_s for item in samples.iterations] == [pytest.approx((0.004,))] * 4
    assert not [text for text in suspicions(samples, engine.device) if "hook" in text or "iteration" in text]
