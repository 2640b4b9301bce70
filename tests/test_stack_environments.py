"""The environments of configs/stack, made from nothing, and what runs in them on the processor.

Not part of the default run, because it downloads gigabytes: `pytest -m stack tests/test_stack_environments.py`. With
BENCH_STACKS=DIR the environments are kept there, and made only where they are not there yet.
"""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.stacks import executable

from .conftest import ROOT, Bench
from .test_chat import REPLY

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]

STACKS = ("ipex-llm-2.2", "ipex-2.8")
RUN = ("run", "device=cpu", "iterations=2", "warmup=1", "results=out")
SHORT = ("num_beams=[1,4]", "batch_size=[1,2]", "lengths=32/8")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the environments are."""
    kept = os.environ.get("BENCH_STACKS")
    return Path(kept) if kept else tmp_path_factory.mktemp("stacks")


@pytest.fixture(scope="session", params=STACKS)
def stack(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> str:
    """The name of a stack that is there."""
    name: str = request.param
    command = Bench(tmp_path_factory.mktemp("create"), cache)
    env = {"BENCH_STACKS": str(place)}
    done = command.end(command.start("stack", "create", name, env=env), seconds=3000)
    assert done.code == 0, done.stderr
    listed = command("stack", "list", env=env).stdout
    assert f"  {name:12} yes  python 3." in listed and " torch 2." in listed, listed
    return name


@pytest.fixture(name="bench")
def _bench(bench: Bench, place: Path) -> Iterator[Bench]:
    """The command, which knows where the environments are; one thread."""
    bench.env |= {"BENCH_STACKS": str(place), "OMP_NUM_THREADS": "1"}
    yield bench


def measured(bench: Bench, *overrides: str) -> list[dict[str, str]]:
    """The rows of a run without failures."""
    done = bench.end(bench.start(*RUN, *overrides), seconds=900)
    assert done.code == 0, done.stdout + done.stderr
    with (bench.cwd / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def inside(place: Path, stack: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a stack, with bench importable."""
    return subprocess.run(
        [executable(place / stack), "-c", code], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def only(stack: str, name: str) -> None:
    """Skip the test for other stacks."""
    if stack != name:
        pytest.skip(f"is about {name}")


def test_greedy_and_beam_4(bench: Bench, stack: str):
    """Every engine and format that the stack is for, with batches, each token timed."""
    engine = {"ipex-2.8": "ipex", "ipex-llm-2.2": "ipex_llm"}[stack]
    formats = {"ipex-2.8": "bf16,fp32,woq_int4,asym_int4", "ipex-llm-2.2": "bf16,sym_int4,asym_int4,sym_int5,asym_int5,"
               "sym_int8"}[stack]  # fmt: skip
    found = measured(bench, "-m", f"stack={stack}", f"engine=eager,{engine}", *SHORT, f"precision={formats}")
    assert len(found) == len(formats.split(",")) * 2 * 4
    for row in found:
        assert float(row["tpot_s"]) > 0 and row["stack"] == stack
        if row["precision"].startswith(("sym", "asym", "woq")):
            provider = {"ipex-2.8": "neural_compressor_ipex", "ipex-llm-2.2": "ipex_llm"}[stack]
            assert (row["provider"], row["kernels"]) == (provider, "real")
            assert 0 < float(row["packed_bytes"]) < 4999424 * 2


def test_accuracy(bench: Bench, stack: str):
    """The same documents as in the current stack, rightly answered as often."""
    engine = {"ipex-2.8": "ipex", "ipex-llm-2.2": "ipex_llm"}[stack]
    low = {"ipex-2.8": "woq_int4", "ipex-llm-2.2": "sym_int4"}[stack]
    work = ("model=tiny-trained", "workload=accuracy", "accuracy.limit=300")
    (current,) = measured(bench, *work, "precision=bf16")
    found = measured(bench, *work, "precision=bf16", f"stack={stack}", "-m", f"engine=eager,{engine}")[1:]
    group = ("precision.group_size=16",) if low == "woq_int4" else ()  # the rows of this model are short
    found += measured(bench, *work, f"precision={low}", *group, f"stack={stack}", f"engine={engine}")[3:]
    assert len(found) == 3
    for row in found:
        assert row["data_sha256"] == current["data_sha256"]
        assert abs(float(row["acc"]) - float(current["acc"])) < (0.1 if row["precision"] != "bf16" else 0.02)


def test_saved_weights_give_the_same_tokens(bench: Bench, stack: str):
    engine = {"ipex-2.8": "ipex", "ipex-llm-2.2": "ipex_llm"}[stack]
    low = {"ipex-2.8": "woq_int4", "ipex-llm-2.2": "sym_int4"}[stack]
    work = (f"precision={low}", f"stack={stack}", "num_beams=[1,4]", "lengths=32/8", "precision.save=true")
    cold = measured(bench, "-m", f"engine=eager,{engine}", *work)
    saved = list((Path(bench.env["XDG_CACHE_HOME"]) / "bench" / "quantized").iterdir())
    assert saved
    (bench.cwd / "out").rename(bench.cwd / "cold")
    warm = measured(bench, "-m", f"engine=eager,{engine}", *work)
    assert [row["output_hash"] for row in warm] == [row["output_hash"] for row in cold]


def test_chat(bench: Bench, stack: str):
    """As in ipex-llm's tutorials: a conversation in the format that the stack is for."""
    of_stack = {
        "ipex-2.8": ("engine=ipex", "precision=bf16"),
        "ipex-llm-2.2": ("engine=ipex_llm", "precision=sym_int8"),
    }
    for decoding in ("greedy", "sample"):
        process = bench.start("chat", f"stack={stack}", "device=cpu", "chat.max_new_tokens=16", f"decoding={decoding}",
                              *of_stack[stack], stdin=subprocess.PIPE)  # fmt: skip
        assert process.stdin
        process.stdin.write("the silver\nwhere was the\nstop\n")
        process.stdin.flush()
        done = bench.end(process, seconds=300)
        assert done.code == 0, done.stderr
        assert [int(tokens) for tokens, _, _ in REPLY.findall(done.stdout)] == [16, 16]


def test_side_by_side_with_the_current_stack(bench: Bench, stack: str):
    """One sweep, one folder, one table; fp32 gives the same greedy tokens everywhere."""
    found = measured(bench, "-m", f"stack=current,{stack}", "precision=fp32", "num_beams=[1,4]", "lengths=32/8")
    assert [row["stack"] for row in found] == ["current", "current", stack, stack]
    greedy = [row["output_hash"] for row in found if row["num_beams"] == "1"]
    assert len(greedy) == 2 and len(set(greedy)) == 1


def test_what_the_examples_of_ipex_llm_do(bench: Bench, stack: str, place: Path):
    """Both ways to load, a folder that save_low_bit wrote, ModelScope's loader, speculation."""
    only(stack, "ipex-llm-2.2")
    trained = ("model=tiny-trained", "engine=ipex_llm", f"stack={stack}", "num_beams=1", "lengths=32/8")
    both = measured(bench, "-m", *trained, "precision=sym_int4", "engine.api=from_pretrained,optimize_model")
    assert both[0]["output_hash"] == both[1]["output_hash"]
    fp32 = (*trained, "precision=sym_int8", "precision.compute_dtype=fp32")
    plain = measured(bench, *fp32)[-1]
    guessed = measured(bench, *fp32, "engine.speculative=true")[-1]
    assert guessed["engine"] == "ipex_llm(speculative=True)"
    assert plain["output_hash"] == guessed["output_hash"], "speculation changes no token"
    done = inside(place, stack, f"""
from ipex_llm.transformers import AutoModelForCausalLM
source = {str(ROOT / "bench" / "models" / "tiny_trained")!r}
model = AutoModelForCausalLM.from_pretrained(source, load_in_4bit=True, model_hub="modelscope", trust_remote_code=True)
model.save_low_bit({str(bench.cwd / "saved")!r})

import transformers
from ipex_llm import optimize_model
optimize_model(transformers.LlamaForCausalLM.from_pretrained(source)).save_low_bit({str(bench.cwd / "optimized")!r})
""")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("saved", "optimized"):
        row = measured(bench, f"model={bench.cwd / name}", *trained[1:], "precision=sym_int4")[-1]
        assert (row["model"], row["status"]) == (name, "ok")
    other = bench(*RUN, f"model={bench.cwd / 'saved'}", *trained[1:], "precision=sym_int8")
    assert other.code == 1 and "saved was saved as sym_int4: precision=sym_int4" in other.stderr


def test_ipex_llm_really_aborts(stack: str, place: Path, tmp_path: Path):
    """Why these formats are refused before anything is launched."""
    only(stack, "ipex-llm-2.2")
    for low_bit in ("fp6", "mixed_fp4", "mixed_fp8"):
        done = inside(place, stack, f"""
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from ipex_llm.transformers import AutoModelForCausalLM
shape = dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=8, vocab_size=512)
LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained({str(tmp_path)!r})
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, load_in_low_bit={low_bit!r})
model(torch.arange(1, 9)[None])
""")  # fmt: skip
        assert done.returncode == -6 and "GGML_ASSERT" in done.stdout + done.stderr, low_bit


def test_what_the_examples_of_ipex_do(bench: Bench, stack: str):
    """Traced and untraced, a static cache, eager attention."""
    only(stack, "ipex-2.8")
    work = (f"stack={stack}", "engine=ipex", "precision=bf16", "num_beams=[1,4]", "lengths=32/8")
    found = measured(bench, "-m", *work, "engine.deployment_mode=true,false", "engine.cache=dynamic,static")
    assert len(found) == 8 and all(row["status"] == "ok" for row in found)
    assert "intel-extension-for-pytorch=2.8.0" in found[0]["adapters"]


def test_a_saved_model_that_does_not_suit_neural_compressor(stack: str, place: Path, tmp_path: Path):
    """It calls exit(0) then: a worker would end as if all were well."""
    only(stack, "ipex-2.8")
    code = f"""
from pathlib import Path
import torch
from bench.errors import LoadError
from bench.models import build
from bench.models.spec import Model
from bench.cell import Cell, Choice, Generate
from bench.precisions.base import precision_of
from bench.providers.base import providers

cell = Cell(Model("tiny-trained", source="package", path="models/tiny_trained"), Generate(8, 2),
            precision=Choice("woq_int4", (("group_size", -1),)))
recipe, cpu = precision_of(cell), torch.device("cpu")
provider, folder = providers.get("neural_compressor_ipex")(), Path({str(tmp_path)!r})
ids = torch.arange(1, 9)[None]
with torch.inference_mode():
    model = provider.quantise(build.load(cell.model, torch.bfloat16, cpu, 0), cell, recipe, cpu)
    before = model(ids).logits
    provider.save(model, folder)
    after = model(ids).logits
    again = provider.load(lambda: None, folder, recipe, cpu)(ids).logits
assert torch.equal(before, after) and torch.equal(before, again)
weights = folder / "model.safetensors"
weights.write_bytes(weights.read_bytes()[:1000])
try:
    provider.load(lambda: None, folder, recipe, cpu)
except LoadError as error:
    print("REFUSED", error)
"""
    done = inside(place, stack, code)
    assert "REFUSED neural-compressor called exit(0)" in done.stdout, done.stderr
