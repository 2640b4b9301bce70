"""The same small matrix on a real accelerator, through the command."""

from __future__ import annotations

import csv
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from bench.compiled.step import Decoder, Shape
from bench.devices import devices
from bench.engines.compiled import Compiled
from bench.models.build import RELEASE
from tests.test_blocks import BLOCKS, padded_otherwise, with_blocks
from tests.test_compiled import FAMILIES, VOCABULARY, model, prompts
from tests.test_fuse import FOLDED, Seen, around_bytes, folded

pytestmark = pytest.mark.filterwarnings("ignore")  # each family, and each torch on each accelerator, has its own

KIND = torch.accelerator.current_accelerator()
COMPILED = {"llama", "qwen3", "opt", "gptj", "bloom", "qwen3_5_text"}
"""Families that are compiled here without `-m slow`: it takes half a minute each."""
MASKS_FROM_HOST = RELEASE < (5, 21)
"""transformers before it copies a number from the host for the mask of attention without SDPA, which no graph holds."""
FOUND = KIND.type if KIND is not None and torch.accelerator.device_count() > 0 else "no accelerator"


def needs(kind: str) -> Any:
    """Run on this kind of accelerator only."""
    marks = [getattr(pytest.mark, kind), pytest.mark.skipif(kind != FOUND, reason=f"needs {kind}, found {FOUND}")]
    return pytest.param(kind, marks=marks)


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
def test_a_small_matrix(bench: Any, kind: str):
    arguments = ("run", "results=out", "lengths=[32/16]", "batch_size=[1,2]", "num_beams=[1,4]", "iterations=3",
                 "warmup=2", "-m", "engine=eager,static,compiled")  # fmt: skip
    done = bench.end(bench.start(*arguments), seconds=280)
    assert done.code == 0, done.stderr
    with (bench.cwd / "out" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 12
    weights = 4999424 * 2
    for row in table:
        assert (row["device"], row["precision"], row["clock"], row["status"]) == (kind, "fp16", "event", "ok")
        assert weights < float(row["peak_memory_bytes"]) <= float(row["peak_reserved_bytes"])
        assert float(row["peak_memory_bytes"]) < 2**31
        assert 0 < float(row["tpot_s"]) < float(row["e2e_s"]) < 10
        assert 0 < float(row["ttft_s"]) < float(row["e2e_s"])
        assert float(row["hook_s"]) < 1e-4
        assert abs(float(row["residual_s"])) < 0.2 * float(row["e2e_s"])
        assert 0 < float(row["mbu"]) < 1 and 0 < float(row["mfu"]) < 1
        assert row["device_name"] and row["driver"] and int(row["device_memory_bytes"]) > 2**30
        compiled = row["engine"] == "compiled" or (row["engine"] == "static" and row["num_beams"] == "1")
        assert bool(row["compile_s"]) == compiled
    again = bench(*arguments)
    assert again.code == 0 and "nothing to do" in again.stderr


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
def test_a_second_process_starts_warm(bench: Any, kind: str):
    """It finds all that the first has tuned and compiled."""
    caches = {name: str(bench.cwd / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    rows = []
    for name in ("first", "second"):
        done = bench("run", f"results={name}", "engine=compiled", "num_beams=1", "lengths=32/16", "iterations=2",
                     "warmup=1", env=caches)  # fmt: skip
        assert done.code == 0, done.stderr
        with (bench.cwd / name / "results.csv").open() as file:
            rows += csv.DictReader(file)
    first, second = rows
    assert first["device"] == kind
    assert float(first["tuning_s"]) > 0 == float(second["tuning_s"])
    assert float(second["first_call_s"]) < 0.7 * float(first["first_call_s"])
    assert first["output_hash"] == second["output_hash"]
    done = bench("run", "results=untuned", "engine=compiled", "engine.tune=false", "num_beams=1", "lengths=32/16",
                 "iterations=2", "warmup=1", env=caches | {"TRITON_CACHE_DIR": str(bench.cwd / "new")})  # fmt: skip
    assert done.code == 0, done.stderr
    with (bench.cwd / "untuned" / "results.csv").open() as file:
        (untuned,) = csv.DictReader(file)
    assert float(untuned["tuning_s"]) == 0


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
def test_out_of_memory_is_recorded_and_the_next_cell_runs(bench: Any, kind: str):
    done = bench("run", "results=out", "lengths=2000/4", "batch_size=[100000,1]", "num_beams=1", "iterations=2",
                 "warmup=1", "check_memory=false")  # fmt: skip
    assert done.code == 1
    with (bench.cwd / "out" / "results.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["oom", "ok"]


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("kernel", ["attention", "linear", "int4"])
def test_kernels_of_the_compiled_engine(kind: str, kernel: str):
    if kernel == "int4" and kind != "cuda":
        pytest.skip("written for NVIDIA GPUs")
    command = [sys.executable, "-m", "tests.triton_kernels", kernel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize(
    ("family", "compiled"),
    [
        *((family, family in COMPILED) for family in FAMILIES),
        *(pytest.param(family, True, marks=pytest.mark.slow) for family in FAMILIES if family not in COMPILED),
    ],
)
def test_the_compiled_engine_gives_the_tokens_of_generate(kind: str, family: str, compiled: bool):
    """fp32, greedy and 4 beams, batch 1 and 3; a few families compiled with the engine's options, others when asked."""
    as_generate(model(family), kind, compiled)


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("family", "heads"), [("qwen4_exp_text", "indexer_n_heads"), ("deepseek_v32", "index_n_heads")]
)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_what_an_indexer_finds_equally_good(
    kind: str, compiled: bool, family: str, heads: str, number: int, monkeypatch: pytest.MonkeyPatch
):
    """With few heads, many scores are exactly 0, and tokens depend on which of these are taken."""
    monkeypatch.setitem(FAMILIES[family], heads, number)
    as_generate(model(family), kind, compiled)


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("size", "best", "latest"), BLOCKS)
@pytest.mark.parametrize("beams", [1, 3])
def test_left_padding_where_blocks_are_chosen_for_heads(
    kind: str, compiled: bool, size: int, best: int, latest: int, beams: int, monkeypatch: pytest.MonkeyPatch
):
    """From no padding to all but one token."""
    made = with_blocks(size, best, latest, monkeypatch).to(kind)
    device = devices.get(kind)()
    config = GenerationConfig(max_new_tokens=14, num_beams=beams, do_sample=False, pad_token_id=0, eos_token_id=None)
    decoder = Decoder(made, Shape.of(2, 20, config), config, Compiled()._options(device) if compiled else None, device)
    for padding in range(20):
        ids, mask = (part.to(kind) for part in padded_otherwise(padding))
        with torch.inference_mode():
            expected = made.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            found = decoder.generate(ids, mask, 14, lambda: None)
        assert found.tolist() == expected.tolist(), padding
    assert not decoder.noticed


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_alibi_counts_twice_in_falcons_eager_attention(kind: str, compiled: bool):
    made = model("falcon with alibi")
    once = as_generate(made, kind, compiled)
    made.config._attn_implementation = "eager"
    assert as_generate(made, kind, compiled) != once


def as_generate(made: Any, kind: str, compiled: bool) -> list[Any]:
    """Assert that the engine's tokens are those of `generate`, in four ways, and return them."""
    device, made, said = devices.get(kind)(), made.to(kind), []
    for batch, beams in ((1, 1), (3, 1), (1, 4), (3, 4)):
        ids, mask = (part.to(kind) for part in prompts(batch, padded=True))
        config = GenerationConfig(max_new_tokens=14, num_beams=beams, pad_token_id=0)
        with torch.inference_mode():
            expected = made.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            options = Compiled()._options(device) if compiled else None
            decoder = Decoder(made, Shape.of(batch, 20, config), config, options, device)
            for _ in range(3):
                found = decoder.generate(ids, mask, 14, lambda: None)
        assert not decoder.noticed
        assert found.tolist() == expected.tolist(), (batch, beams)
        said.append(found.tolist())
        torch.compiler.reset()
    return said


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("family", [*sorted(COMPILED), "phi3 with two rotations"])
def test_captured_prompts_give_the_tokens_of_generate(kind: str, family: str):
    """Prompts without padding, as bench run has them: filled by one launch, with other ids each time."""
    device = devices.get(kind)()
    made = model(family).to(kind)
    for batch, beams in ((1, 1), (3, 1), (1, 4), (3, 4)):
        torch.compiler.reset()
        config = GenerationConfig(max_new_tokens=14, num_beams=beams, pad_token_id=0)
        options = Compiled()._options(device)
        decoder = Decoder(made, Shape.of(batch, 20, config), config, options, device, capture_prompts=True)
        with torch.inference_mode():
            for seed in range(4):
                torch.manual_seed(seed)
                ids = torch.randint(3, VOCABULARY, (batch, 20), device=kind)
                expected = made.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
                )  # fmt: skip
                found = decoder.generate(ids, None, 14, lambda: None)
                assert found.tolist() == expected.tolist(), (batch, beams, seed)
        if family == "gptj" and MASKS_FROM_HOST:
            (said,) = decoder.noticed
            assert decoder.prompt is None and said.startswith("filling the prompt could not be captured")
        else:
            assert decoder.prompt is not None and not decoder.noticed
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_captured_prompts_leave_the_same_cache(kind: str, dtype: torch.dtype):
    """Logits, keys and values of a prompt that is filled by one launch are those of the same prompt's launches."""
    torch.compiler.reset()
    device = devices.get(kind)()
    made = model("llama").to(kind, dtype)
    config = GenerationConfig(max_new_tokens=4, pad_token_id=0)
    options = Compiled()._options(device)
    decoder = Decoder(made, Shape.of(2, 20, config), config, options, device, capture_prompts=True)
    ids = prompts(2, False)[0].to(kind)
    with torch.inference_mode():
        decoder.generate(ids.flip(1), None, 4, lambda: None)
        assert decoder.prompt is not None
        left = []
        for fill in (decoder._fill, decoder.cache.fill):
            for layer in decoder.cache.layers:
                layer.keys.zero_()
                layer.values.zero_()
            logits = fill(ids, None).clone()
            left.append([logits, *(part.clone() for layer in decoder.cache.layers
                                   for part in (layer.keys, layer.values))])  # fmt: skip
    for captured, launched in zip(*left, strict=True):
        assert float(launched.abs().max()) > 0
        torch.testing.assert_close(captured, launched, atol=2e-3 if dtype == torch.float16 else 1e-6, rtol=0)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
def test_captured_prompts_are_as_exact_at_real_sizes(kind: str):
    """Libraries may take other kernels within a capture: fp16 results may differ in the last bits, no more."""
    device = devices.get(kind)()
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, num_attention_heads=32, vocab_size=8000
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(kind):
        made = LlamaForCausalLM(config).eval()
        ids = torch.randint(3, 8000, (1, 1024))
    with torch.inference_mode():
        expected = made(input_ids=ids, logits_to_keep=1).logits[:, -1]
        for part in made.parameters():  # not the frequencies of the positions
            part.data = part.data.half()
        wanted = GenerationConfig(max_new_tokens=4, pad_token_id=0)
        errors, needed = [], []
        for captures in (False, True):
            decoder = Decoder(made, Shape.of(1, 1024, wanted), wanted, None, device)
            decoder._fill(ids, None)  # makes its caches
            decoder.captures_prompts = captures
            device.reset_peak_memory()
            found = decoder._fill(ids, None)
            assert (decoder.prompt is not None) == captures
            errors.append(float((found - expected).norm() / expected.norm()))
            needed.append(decoder.unseen_memory or device.peak_memory()[0] - device.memory_in_use())
            del decoder
    launched, captured = errors
    assert 0 < launched < 0.01
    assert captured < 1.2 * launched
    assert needed[1] == pytest.approx(needed[0], rel=0.1)
    assert needed[1] > 2 * ids.numel() * config.intermediate_size * 2  # gate and up


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize(("family", "beams", "done"), FOLDED)
def test_what_is_done_together(kind: str, family: str, beams: int, done: list[str]):
    """The graph for this device has what the pass looks for, and the kernels give the logits of the uncompiled step."""
    device = devices.get(kind)()
    seen = folded(family, beams, device, Compiled()._options(device))
    assert (sorted(seen.done), seen.left) == (sorted(done), 0)


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("capture", ["torch", "none"])
def test_other_ways_than_the_devices_graphs(kind: str, capture: str):
    """The tokens of `generate`, and on CUDA torch.compile's graphs; on XPU it has none, and the record says so."""
    device = devices.get(kind)()
    made = model("llama").to(kind)
    options = Compiled(capture=capture)._options(device)
    for batch, beams in ((1, 1), (3, 4)):
        torch.compiler.reset()
        ids, mask = (part.to(kind) for part in prompts(batch, padded=True))
        config = GenerationConfig(max_new_tokens=14, num_beams=beams, pad_token_id=0)
        with torch.inference_mode():
            expected = made.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            decoder = Decoder(made, Shape.of(batch, 20, config), config, options, device, capture=capture)
            for _ in range(3):
                assert decoder.generate(ids, mask, 14, lambda: None).tolist() == expected.tolist(), (batch, beams)
            with torch.profiler.profile() as profile:
                decoder.generate(ids, mask, 14, lambda: None)
        launched = sum("GraphLaunch" in event.name for event in profile.events())
        assert launched == (13 if capture == "torch" and kind == "cuda" else 0)
        assert bool(decoder.noticed) == (capture == "torch" and kind != "cuda")
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_layers_in_bytes(kind: str, dtype: torch.dtype):
    """One row and several, compiled for this device, are what the layers themselves compute."""
    device = devices.get(kind)()
    known = dtype == torch.int8 or device.reads_fp8()
    for rows in (1, 3):
        torch.compiler.reset()
        module = around_bytes(dtype).to(kind)
        seen = Seen(device.launches_early(), device.reads_fp8())
        options = {**Compiled()._options(device), "post_grad_custom_pre_pass": seen}
        x = torch.randn(1, rows, 64, dtype=torch.float16, device=kind)
        with torch.inference_mode():
            (expected,) = module(x)
            (found,) = torch.compile(module, options=options)(x)
        torch.testing.assert_close(found, expected, atol=0.02 * float(expected.std()), rtol=0)
        assert len(seen.done) == (2 if known else 0)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
def test_what_is_captured_draws_anew_in_each_step(kind: str):
    """Sampling in a graph that is launched again and again: other tokens with another seed, the same with the same."""
    torch.compiler.reset()
    device = devices.get(kind)()
    made = model("llama").to(kind)
    ids = prompts(2, False)[0].to(kind)
    config = GenerationConfig(max_new_tokens=40, do_sample=True, temperature=5.0, top_k=0, pad_token_id=0)
    decoder = Decoder(made, Shape.of(2, 20, config), config, Compiled()._options(device), device)
    with torch.inference_mode():
        drawn = []
        for seed in (1, 1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(decoder.generate(ids, None, 40, lambda: None)[0, 20:].tolist())
    assert not decoder.noticed
    assert drawn[1] == drawn[2] != drawn[3]  # the first pass was compiled while it ran
    assert len(set(drawn[1])) > 20
    torch.compiler.reset()
