"""The worker with real models on the processor: lengths, EOS, engines, broken weights, memory, other interpreters."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.cell import Cell, Choice, Generate
from bench.config import local_model
from bench.devices.cpu import Cpu
from bench.engines.eager import Eager
from bench.engines.static import Static
from bench.errors import NonFinite
from bench.measure import measure
from bench.models.spec import Model
from tests.conftest import Bench

pytestmark = pytest.mark.alone

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
QUICK = ("run", "results=out", "device=cpu", "precision=fp32", "lengths=8/6", "iterations=2", "warmup=1")
EOS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders: `good`; `ends`, which says EOS at every step; `nan`; `bare`, which has no weights."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)  # so large that the most likely token is no matter of rounding
        model.save_pretrained(root / "good")
        for layer in model.model.layers:  # nothing is added to the embedding, and that is all ones
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1)
        model.lm_head.weight.fill_(-1)
        model.lm_head.weight[EOS] = 1
        model.save_pretrained(root / "ends")
        model.lm_head.weight.fill_(math.nan)
        model.save_pretrained(root / "nan")
    (root / "bare").mkdir()
    shutil.copy(root / "good" / "config.json", root / "bare")
    return root


def cell_of(folder: Path, work: Generate, **changes: Any) -> Cell:
    """A cell that runs a folder in fp32 on the processor, once."""
    node = local_model(str(folder))
    model = Model(**{**node, "architecture": json.dumps(node["architecture"])})
    fields = {"precision": Choice("fp32"), "iterations": 1, "warmup": 1, **changes}
    return Cell(model=model, workload=work, **fields)


def rows(bench: Bench) -> list[dict[str, str]]:
    """results.csv, as text."""
    with (bench.cwd / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def lines(bench: Bench, kind: str) -> list[dict[str, Any]]:
    """The journal's lines of a kind."""
    found = [json.loads(line) for line in (bench.cwd / "out" / "journal.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.mark.parametrize("decoding", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("engine", [Eager(), Static()], ids=["eager", "static"])
def test_exact_lengths_from_a_model_that_would_stop_at_once(folders: Path, engine: Eager, decoding: str):
    work = Generate(5, 9, 2, 4 if decoding == "beam" else 1, decoding)
    cell = cell_of(folders / "ends", work)
    device = Cpu()
    loaded = engine.load(cell, device)
    inputs, _ = engine.prompts(loaded, cell)
    free = loaded.handle.generate(
        **inputs, max_new_tokens=9, num_beams=work.num_beams, do_sample=False, eos_token_id=EOS, pad_token_id=0
    )
    assert free.shape[1] < 5 + 9, "the model does not stop by itself, so this test would prove nothing"
    seen: list[list[list[int]]] = []

    class Watched(type(engine)):  # type: ignore[misc]
        def tokens(self, output: Any) -> list[list[int]]:
            seen.append(super().tokens(output))
            return seen[-1]

    engine.begin(loaded, cell)
    samples = measure(Watched(), loaded, device, inputs, cell, lambda phase: None)
    assert len(seen) == 2
    for rows_ in seen:
        assert [len(row) for row in rows_] == [14, 14]
        assert [row[:5] for row in rows_] == inputs["input_ids"].tolist()
        assert all(row[5:] == [EOS] * 9 for row in rows_)
    for item in (*samples.warmups, *samples.iterations):
        assert len(item.steps_s) == 9
        assert list(item.steps_s) == sorted(item.steps_s)
        assert 0 < item.steps_s[0] < item.steps_s[-1] <= item.e2e_s


def test_scores_that_are_no_numbers_are_found_with_and_without_warmup(folders: Path):
    for warmup in (0, 1):
        cell = cell_of(folders / "nan", Generate(5, 3), warmup=warmup)
        engine = Eager()
        loaded = engine.load(cell, Cpu())
        inputs, _ = engine.prompts(loaded, cell)
        with pytest.raises(NonFinite, match="the scores hold NaN or infinity"):
            measure(engine, loaded, Cpu(), inputs, cell, lambda phase: None)


def test_engines_and_decodings_through_the_command(bench: Bench, folders: Path):
    secrets = {
        "CCL_SECRET_TOKEN": "hunter2",
        "TORCH_API_KEY": "hunter2",
        "HF_TOKEN": "hunter2",
        "SYCL_CACHE_DIR": "/home/somebody/cache",
        "OMP_NUM_THREADS": "1",
        "ONEAPI_DEVICE_SELECTOR": "level_zero:0",
    }
    done = bench(*QUICK, f"model={folders / 'good'}", "-m", "engine=eager,static", "decoding=greedy,sample",
                 "num_beams=[1,4]", "batch_size=2", env=secrets)  # fmt: skip
    assert done.code == 0, done.stderr
    table = rows(bench)
    assert len(table) == 8
    assert len({row["log"] for row in table}) == 2, "each engine loads the model once"
    hashes = {(row["engine"], row["decoding"], row["num_beams"]): row["output_hash"] for row in table}
    assert "varies" not in hashes.values()  # every iteration has the same seed
    for decoding, beams in (("greedy", "1"), ("beam", "4"), ("sample", "1"), ("sample", "4")):
        assert hashes["eager", decoding, beams] == hashes["static", decoding, beams]
    assert hashes["eager", "greedy", "1"] != hashes["eager", "sample", "1"]
    for line in lines(bench, "record"):
        assert [len(item["steps_s"]) for item in line["iterations"]] == [6, 6]
        assert len(line["warmups"]) == 1
    weights = sum(path.stat().st_size for path in (folders / "good").glob("*.safetensors"))
    for row in table:
        assert row["model"] == "good" and row["weights"] == "real" and row["clock"] == "perf_counter"
        assert 50e6 + weights < float(row["peak_memory_bytes"]) < 4e9
        assert 0 < float(row["hook_s"]) < 1e-3
        assert float(row["load_s"]) > 0
        assert float(row["tpot_s"]) > 0 and float(row["mbu"]) > 0 and float(row["mfu"]) > 0
        assert abs(float(row["residual_s"])) < 0.5 * float(row["e2e_s"])
        assert row["threads"] == "1"
        assert row["torch"] == torch.__version__
        assert row["variables"].startswith(
            "OMP_NUM_THREADS=1 ONEAPI_DEVICE_SELECTOR=level_zero:0 SYCL_CACHE_DIR=<path>"
        )
        assert "prompts are random token ids, the tokenizer of good cannot be loaded" in row["warnings"]
    text = (bench.cwd / "out" / "results.csv").read_text() + (bench.cwd / "out" / "journal.jsonl").read_text()
    for private in ("hunter2", "somebody", str(folders), str(bench.cwd)):
        assert private not in text


def test_broken_models_and_absurd_sizes_cost_their_own_cells(bench: Bench, folders: Path):
    models = ",".join(str(folders / name) for name in ("nan", "bare", "good"))
    done = bench(*QUICK, "-m", f"model={models}", "num_beams=1", "batch_size=[10000000000000,1]", "check_memory=false")
    assert done.code == 1
    found = {(row["model"], row["batch_size"]): (row["status"], row["error"]) for row in rows(bench)}
    assert len(found) == 6
    huge, one = "10000000000000", "1"
    assert found["good", one] == ("ok", "")
    for model in ("good", "nan"):
        assert found[model, huge][0] == "oom"
        assert found[model, huge][1].startswith("out of memory: ")
    assert found["nan", one] == (
        "nonfinite",
        "the scores hold NaN or infinity, so the tokens mean nothing: try another precision, or check the weights",
    )
    for batch in (huge, one):
        assert found["bare", batch][0] == "load"
        assert "bare has no weights beside its configuration: download them" in found["bare", batch][1]
    # With the memory check on, the absurd size is not even tried.
    done = bench(*QUICK, f"model={folders / 'good'}", "num_beams=1", "batch_size=10000000000000", "results=other")
    assert done.code == 1
    assert re.search(r"unsupported: needs [0-9.]+ GiB per device for weights and KV cache", done.stderr)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_a_failure(bench: Bench):
    done = bench("run", "device=cuda", "results=out", "num_beams=1")
    assert done.code == 1
    (row,) = rows(bench)
    assert row["status"] == "unsupported"
    assert row["error"].startswith("device=cuda: ")


def test_an_interpreter_in_which_nothing_is_installed(bench: Bench):
    """The worker needs no installed bench, and of the libraries only those that its device and engine use."""
    stack = bench.cwd / "stack-b"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(stack)], check=True)
    python = stack / "bin" / "python"
    bare = {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([python, "-c", "import hydra"], capture_output=True, check=False).returncode == 1
    done = bench("run", f"python={python}", "results=out", "device=fake", "num_beams=1", "lengths=10/2", env=bare)
    assert done.code == 0, done.stderr
    (row,) = rows(bench)
    assert (row["stack"], row["status"], row["torch"]) == ("stack-b", "ok", "")
    done = bench("run", f"python={python}", "results=out", "device=cpu", "num_beams=1", "lengths=10/2", env=bare)
    assert done.code == 1
    row = rows(bench)[1]
    assert (row["stack"], row["status"]) == ("stack-b", "load")
    assert row["error"] == "No module named 'torch': install it into the worker's interpreter"
