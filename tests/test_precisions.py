"""Low-bit formats: who converts them, what they do to the trained model, saving, and what goes wrong."""

from __future__ import annotations

import copy
import csv
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell import Cell, Choice, Evaluate, Generate
from bench.devices.cuda import Cuda
from bench.errors import LoadError, Unsupported
from bench.models import cost
from bench.models.spec import Model
from bench.plan import plan
from bench.precisions.base import precision_of, precisions
from bench.precisions.lowbit import LowBit, SymInt4
from bench.providers import providers
from bench.providers.base import EMULATED, Support
from bench.providers.calibration import texts
from bench.providers.choose import candidates, choose
from bench.providers.integers import nearest
from bench.providers.rounding import rounded
from bench.providers.store import Store
from bench.record import Record
from bench.table import outcomes
from tests.conftest import ROOT, Bench
from tests.test_config import requests

FORMATS = [name for name, cls in precisions.items() if issubclass(cls, LowBit)]
TINY = Model("tiny", weights="random")
MODEL = Model("tiny-trained", source="package", path="models/tiny_trained")
PLAIN_BYTES = 101376
"""Of tiny-trained in bf16; 39456 of them are its embedding, which is the output layer, too, and 448 its norms."""
LAYERS = 30720
"""Parameters of its linear layers."""


def cell(format: str, device: str = "cpu", task: str = "generate", model: Model = TINY, **settings: Any) -> Cell:
    """A cell with a low-bit format."""
    work = Generate(8, 8) if task == "generate" else Evaluate(task)
    hidden = tuple((key, settings.pop(key)) for key in ("force", "save", "calibration") if key in settings)
    choice = Choice(format, tuple(sorted(settings.items())), hidden)
    return Cell(model=model, workload=work, precision=choice, device=Choice(device))


def names(cell: Cell) -> list[str] | str:
    """The providers that may take a cell, or why there are none."""
    recipe = precision_of(cell)
    assert isinstance(recipe, LowBit)
    found = candidates(cell, recipe)
    return found if isinstance(found, str) else [item.name for item in found]


# -- who does what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_every_format_has_an_accuracy_and_says_who_is_fast(format: str, device: str):
    for name, cls in providers.items():
        support = cls().support(format, device)
        assert isinstance(support, Support) or (support and "\n" not in support), name
    assert names(cell(format, device, "passages"))
    fast = names(cell(format, device))
    real = {name for name, cls in providers.items() if getattr(cls().support(format, device), "kernels", "") == "real"}
    if isinstance(fast, str):
        assert not real and fast.startswith(f"{format} on {device} is emulated by ")
        assert precision_of(cell(format, device)).unsupported(cell(format, device)) == fast
        assert isinstance(names(cell(format, device, force=True)), list)
    else:
        assert set(fast) <= real


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (cell("woq_int4"), "torchao"),
        (cell("woq_int4", "cuda"), "torchao"),
        (replace(cell("woq_int4", "cuda"), engine=Choice("compiled")), "triton"),
        (cell("asym_int4", "cuda"), "torchao"),
        (cell("sym_int4", "cuda", group_size=256), "torchao"),
        (cell("woq_int4", "xpu"), "auto_round"),
        (cell("nf4", "xpu"), "bitsandbytes"),
        (cell("int8"), "bitsandbytes"),
        (cell("asym_int4", "xpu"), "torchao"),
        (cell("sym_int5"), "auto_round"),
        (cell("fp6", task="passages"), "rounding"),
        (cell("woq_int4", symmetric=True, scale_dtype="fp32"), "auto_round"),
        (cell("woq_int4", group_size=16), "auto_round"),
        (cell("nf4", group_size=128, scale_dtype="int8"), "bitsandbytes"),
        (cell("int8", task="passages", provider="neural_compressor"), "neural_compressor"),
    ],
    ids=str,
)
def test_auto_takes_the_best_that_can_do_what_is_asked(asked: Cell, first: str):
    assert names(asked)[0] == first


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (cell("nf4", provider="torchao"), "provider=torchao: it has no nf4"),
        (cell("woq_int4", "cuda", provider="auto_round"), "provider=auto_round: its kernels are for cpu and xpu;"),
        (
            cell("woq_int4", "cuda", compute_dtype="fp32"),
            "no provider has precision=woq_int4 on cuda with eng",
        ),
        (
            cell("woq_int4", "cuda", compute_dtype="fp32", provider="torchao"),
            "provider=torchao: it computes in bf16: ",
        ),
        (cell("asym_int4", "xpu", provider="auto_round"), "provider=auto_round: it has no asym_int4 on xpu"),
        (cell("nf4", group_size=16, provider="bitsandbytes"), "provider=bitsandbytes: its blocks have 32 to 4096"),
        (
            replace(cell("int8", "cuda", provider="bitsandbytes"), engine=Choice("compiled")),
            "provider=bitsandbytes: its int8 asks the host in every layer whether there are outliers",
        ),
        (cell("int8", group_size=64, provider="torchao"), "provider=torchao: its 8-bit formats have one scale per row"),
        (cell("fp6", provider="rounding"), "fp6 on cpu is emulated by rounding, so its latency would be that of"),
        (
            cell("woq_int4", algorithm="autoround", calibration="x"),
            "no provider has precision=woq_int4 on cpu with engine=eager and these settings. auto_round: algorithm=aut",
        ),
    ],
    ids=str,
)
def test_what_nobody_does_has_a_reason(asked: Cell, reason: str):
    found = names(asked)
    assert isinstance(found, str) and found.startswith(reason) and "\n" not in found


def test_a_library_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    asked = cell("woq_int4")
    for name in ("torchao", "auto_round_kernel"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unsupported) as caught:
        choose(asked, precision_of(asked))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "provider=torchao: torchao cannot be imported in the worker's interpreter: pip install 'bench[torchao]'; or "
        "provider=auto_round: auto_round_kernel cannot be imported in the worker's interpreter: "
        "pip install 'bench[auto-round]'"
    )


def test_what_changes_no_number_is_not_in_the_identity(tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_text("some text")
    other = tmp_path / "b.txt"
    other.write_text("some text")
    line = "precision=woq_int4 precision.algorithm=autoround precision.calibration="
    cells = [plan(requests(f"device=cpu {more} {line}{file}")).cells[0] for file, more in
             [(text, "seed=0"), (other, "precision.save=true"), (other, "precision.steps=3")]]  # fmt: skip
    assert cells[0].id == cells[1].id != cells[2].id
    assert str(cells[0].precision) == "woq_int4(algorithm=autoround,calibration=b94f6f125c79)"
    recipe = precision_of(Cell.from_json(json.loads(json.dumps(cells[1].to_json()))))
    assert isinstance(recipe, LowBit) and recipe.save and recipe.calibration == str(other)
    assert str(tmp_path) not in json.dumps(cells[1].axes())


def test_predicted_memory_counts_packed_layers_and_plain_ends():
    model = "device=fake model=llama-2-7b weights=random lengths=1/1 num_beams=1"
    by_format = {name: plan(requests(f"{model} precision={name}")).planned[0].weight_bytes for name in ("fp16", "nf4")}
    ends = 2 * 32000 * 4096
    assert by_format["fp16"] == 2 * 6738415616
    assert by_format["nf4"] == 2 * ends + (6738415616 - ends) * (0.5 + 2 / 64)


# -- the numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_gives_values_of_the_format(format: str):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    values = rounded(weight, format, 32)
    levels = {"int4": 16, "int5": 32, "fp4": 16, "nf4": 16, "fp6": 64}.get(format.rpartition("_")[2], 256)
    for group in values.view(-1, 32):
        assert len(group.unique()) <= levels
    error = float((values - weight).norm() / weight.norm())
    bits = math.log2(levels)
    assert 2.0**-bits / 4 < error < 2.5 * 2.0**-bits * (2 if "fp" in format else 1) * 2
    assert torch.equal(rounded(values, format, 32), values) or format in ("asym_int4", "asym_int5", "fp8", "mixed_fp8")


def test_integers_are_what_they_say():
    weight = torch.tensor([[-8.0, 0.0, 3.5, 7.0]])
    symmetric = nearest(weight, 4, 4, symmetric=True)
    assert symmetric.codes.flatten().tolist() == [-7, 0, 3, 6]
    assert symmetric.values().flatten().tolist() == pytest.approx([-8, 0, 3 * 8 / 7, 6 * 8 / 7])
    asymmetric = nearest(weight, 4, 4, symmetric=False)
    assert (asymmetric.codes - asymmetric.zero).flatten().tolist() == [-8, 0, 4, 7]
    assert asymmetric.values().flatten().tolist() == [-8, 0, 4, 7]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What provider_formats.py finds, asked once for each provider."""
    answers: dict[str, Any] = {}

    def ask(name: str) -> dict[str, Any]:
        if name not in answers:
            env = Bench(ROOT, tmp_path_factory.mktemp("cache")).env
            done = subprocess.run(
                [sys.executable, "-m", "tests.provider_formats", name],
                cwd=ROOT, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            answers[name] = json.loads(done.stdout.splitlines()[-1])
        if "missing" in answers[name]:
            pytest.skip(answers[name]["missing"])
        return dict(answers[name])

    return ask


def test_neural_compressor_leaves_no_folder_where_the_user_is(tmp_path: Path):
    if importlib.util.find_spec("neural_compressor") is None:
        pytest.skip("neural-compressor is not installed")
    code = (
        "from bench.providers.neural_compressor import work_elsewhere as go; go(); "
        "import neural_compressor.torch.algorithms.layer_wise"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert not list(tmp_path.iterdir())


ON_CPU = ["auto_round", "bitsandbytes", "neural_compressor", "rounding", "torchao"]
needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@needs_lm_eval
@pytest.mark.parametrize("name", ON_CPU)
def test_formats_are_near_fp32_and_nearer_to_their_own_definition(name: str, found: Any):
    """Whatever the library, the logits are those of the rounded weights, up to bf16 sums and its choice of scales."""
    answers = found(name)
    plain = answers.pop("fp32")
    assert set(answers) == {item for item in FORMATS if isinstance(providers.get(name)().support(item, "cpu"), Support)}
    own = ("woq_int4", "asym_int4", "sym_int5", "asym_int5", "int8", "sym_int8")
    for format, answer in answers.items():
        bits = precisions.get(format).bits  # type: ignore[attr-defined]
        assert 0 < answer["error"] < {4: 0.6, 5: 0.25, 6: 0.3, 8: 0.2}[bits], format
        alike = not (name == "torchao" and format in own) and (name, format[:2]) != ("neural_compressor", "fp")
        if alike:  # the others choose scales or levels in a way of their own
            assert answer["from_rounding"] < 0.2, format
        worse = {4: 0.13, 5: 0.06, 6: 0.08, 8: 0.06}[bits] + 0.12 * (format == "fp4")
        assert answer["acc"] > plain["acc"] - worse, format
        assert answer["perplexity"] < plain["perplexity"] * (1 + 1.5 * worse), format


@needs_lm_eval
@pytest.mark.parametrize("name", ON_CPU)
def test_reloaded_weights_give_the_same_logits(name: str, found: Any):
    assert all(answer["equal"] for format, answer in found(name).items() if format != "fp32")


@needs_lm_eval
@pytest.mark.parametrize("name", ON_CPU)
def test_the_bytes_of_packed_weights(name: str, found: Any):
    for format, answer in found(name).items():
        if format == "fp32":
            continue
        support = providers.get(name)().support(format, "cpu")
        assert isinstance(support, Support) and answer["kernels"] == support.kernels
        assert answer["warnings"] == []
        assert answer["parameters"] == LAYERS + (PLAIN_BYTES // 2 - LAYERS)
        bits = (answer["packed_bytes"] - (PLAIN_BYTES - 2 * LAYERS)) * 8 / LAYERS
        if support.kernels == EMULATED:
            assert bits <= 16
        else:  # scales and zero points of small groups, tables, and the padding of ARK's small layers
            assert precisions.get(format).bits < bits < precisions.get(format).bits + 5.5  # type: ignore[attr-defined]
        assert bool(answer["version"]) == (name != "rounding")


def test_the_layout_of_our_own_integers_of_4_bits(tmp_path: Path):
    """Codes as int4.py describes, the values that rounding gives, and the same after reload."""
    torch.manual_seed(0)
    cpu, provider = torch.device("cpu"), providers.get("triton")()

    class Three(torch.nn.Sequential):
        def tie_weights(self) -> None:
            """Nothing is tied."""

    def skeleton() -> torch.nn.Module:
        return Three(torch.nn.Linear(384, 40), torch.nn.Linear(40, 256), torch.nn.Linear(256, 8))

    for group in (32, 64, 128):
        recipe = SymInt4(group_size=group, compute_dtype="fp32")
        plain = skeleton()
        weights = [rounded(layer.weight.data, "sym_int4", group, True) for layer in (plain[0], plain[2])]
        made = provider.quantise(copy.deepcopy(plain), cell("sym_int4", "cuda"), recipe, cpu)
        assert [type(layer).__name__ for layer in made] == ["Int4Linear", "Linear", "Int4Linear"]  # 40 columns stay
        x = torch.randn(2, 3, 384)
        middle = plain[1](x @ weights[0].T + plain[0].bias)
        torch.testing.assert_close(made(x), middle @ weights[1].T + plain[2].bias)
        assert made[0].words.shape == (48, 48) and made[2].words.shape == (16, 32)  # 40 and 8 rows, filled up
        words = made[0].words.view(3, 3, 16, 4, 2, 2)  # 16 rows, 128 columns, row, t, u, v
        for block, t, u, v in itertools.product(range(3), range(4), range(2), range(2)):
            first = block * 128 + 32 * t + 16 * v + 4 * torch.arange(4) + 2 * u
            columns = torch.cat([first, first + 1])
            codes = (words[:, block, :, t, u, v].flatten()[:40, None] >> (4 * torch.arange(8))) & 15
            scale = made[0].scale[:, columns[0] // group, None]
            torch.testing.assert_close((codes - 8) * scale, weights[0][:, columns])
        folder = tmp_path / str(group)
        folder.mkdir()
        provider.save(made, folder)
        again = provider.load(skeleton, folder, recipe, cpu)
        assert torch.equal(again(x), made(x))


def test_our_own_integers_need_tensor_cores_that_know_the_instructions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Cuda, "capability", lambda _: (7, 5))
    with pytest.raises(Unsupported, match=r"compute capability 8\.0 or newer, found 7\.5"):
        providers.get("triton")().quantise(None, cell("sym_int4", "cuda"), SymInt4(), torch.device("cuda"))


def test_stored_bytes_of_what_is_known():
    layer = torch.nn.Linear(64, 32, bias=True, dtype=torch.bfloat16)
    tied = torch.nn.Sequential(torch.nn.Embedding(32, 64), layer)
    tied[0].weight = layer.weight
    assert cost.stored(tied) == 2 * (64 * 32 + 32)
    packed = torch.nn.Module()
    packed.in_features = packed.out_features = 8  # type: ignore[assignment]
    packed.register_buffer("packed", torch.zeros(40, dtype=torch.int8))
    packed.register_buffer("scales", torch.zeros(8, dtype=torch.float32))
    assert cost.stored(torch.nn.Sequential(packed, layer)) == 40 + 32 + 2 * (64 * 32 + 32)
    other = torch.nn.Module()
    other.register_buffer("positions", torch.zeros(8))
    assert cost.stored(other) == 0


# -- on disk -----------------------------------------------------------------------------------------------------------


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    saved = Store({"precision": "nf4", "seed": 1})
    assert not saved.exists()

    def save(folder: Path) -> None:
        (folder / "weights.pt").write_bytes(bytes(range(256)))

    assert saved.write(save, revision="abc", warnings=[]) is None
    assert saved.exists() and saved.check()["revision"] == "abc"
    assert [path.name for path in saved.folder.parent.iterdir()] == [saved.name], "nothing temporary is left"
    assert saved.write(save) is None, "a second job is slower: what is there stays"
    assert saved.check()["revision"] == "abc"

    def told() -> str:
        with pytest.raises(LoadError) as caught:
            saved.check()
        message = str(caught.value)
        assert message.endswith(f"delete quantized/{saved.name} in bench's cache, and it is made again")
        assert str(tmp_path) not in message
        return message

    stray = saved.folder / "more"
    stray.touch()
    assert "damaged: more does not belong there" in told()
    stray.unlink()
    weights = saved.folder / "weights.pt"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    assert "damaged: weights.pt is not what was saved" in told()
    weights.unlink()
    assert "damaged: weights.pt is missing" in told()
    manifest = saved.folder / "manifest.json"
    manifest.write_text(json.dumps({"what": {"precision": "fp4"}, "files": {}}))
    assert "holds other weights than its name says" in told()
    for broken in ("", "[]", "{}"):
        manifest.write_text(broken)
        assert "has no manifest.json that bench wrote" in told()
    full = Store({"seed": 2})

    def no_room(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    assert "No space left" in str(full.write(no_room)) and not full.exists()


def rows(folder: Path) -> list[dict[str, str]]:
    """results.csv, as text."""
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


RUN = ("run", "model=tiny-trained", "device=cpu", "precision=fp6", "precision.force=true", "precision.save=true",
       "precision.group_size=32", "num_beams=1", "lengths=4/4", "iterations=1", "warmup=0")  # fmt: skip


def test_a_run_saves_and_a_later_one_reloads_or_says_what_is_wrong(bench: Bench, tmp_path: Path):
    bench.env |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "own")}
    for number in (1, 2):
        assert bench(*RUN, f"results=out{number}").code == 0
    (one,), (other,) = (outcomes(tmp_path / f"out{number}") for number in (1, 2))
    assert isinstance(one, Record) and isinstance(other, Record)
    assert (one.weights.reloaded, other.weights.reloaded) == (False, True)
    first, second = (rows(tmp_path / f"out{number}")[0] for number in (1, 2))
    assert first["output_hash"] == second["output_hash"] and first["cell"] == second["cell"]
    assert first["precision"] == "fp6(group_size=32)"
    assert (first["provider"], first["kernels"], first["provider_version"]) == ("rounding", "emulated", "")
    assert float(first["packed_bytes"]) == float(second["packed_bytes"]) == PLAIN_BYTES
    (folder,) = (tmp_path / "own" / "bench" / "quantized").iterdir()
    with (folder / "weights.pt").open("r+b") as file:
        file.seek(2000)
        file.write(b"x")
    assert bench(*RUN, "results=out3").code == 1
    (failed,) = rows(tmp_path / "out3")
    assert failed["status"] == "load" and f"quantized/{folder.name} is damaged: weights.pt is not" in failed["error"]


@pytest.mark.parametrize(
    ("ending", "status", "error"),
    [
        ("import os; os.abort()", "killed", "SIGABRT"),
        ("import sys; sys.exit(0)", "load", "a library called exit(0) while loading the model"),
        ("raise OSError('no kernel\\nfor this')", "load", "OSError while loading the model: no kernel"),
    ],
    ids=["abort", "exit", "raise"],
)
def test_a_provider_that_ends_the_process_is_a_failure(
    bench: Bench, tmp_path: Path, ending: str, status: str, error: str
):
    """A stand-in for a library: what ipex-llm's fp6 and neural-compressor's reload do."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "bitsandbytes.py").write_text(ending)
    env = {"PYTHONPATH": f"{library}:{bench.env['PYTHONPATH']}", "OMP_NUM_THREADS": "1"}
    done = bench(
        "run", "model=tiny", "device=cpu", "precision=nf4", "num_beams=1", "lengths=4/4", "results=out", env=env
    )
    assert done.code == 1
    (row,) = rows(tmp_path / "out")
    assert row["status"] == status and error in row["error"]


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_the_embedding_may_stay_on_the_host(tied: bool):
    from transformers import LlamaConfig, LlamaForCausalLM

    from bench.models.host_embedding import keep_on_host

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
                         vocab_size=100, tie_word_embeddings=tied)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(10).view(1, 10)
    with torch.inference_mode():
        before, bytes_before = model(ids).logits, cost.stored(model)
        keep_on_host(model)
        assert torch.equal(model(ids).logits, before)
    assert "model.embed_tokens.weight" not in dict(model.named_parameters())
    assert model.get_output_embeddings().weight.shape == (100, 64)
    assert cost.stored(model) == bytes_before + tied * 4 * 6400, "a tied table is there twice"
    model.to("meta")
    assert model.device.type == "meta" and model.get_input_embeddings().weight.device.type == "cpu"


def test_what_was_built_on_the_host_follows_its_packed_layers():
    from transformers import LlamaConfig, LlamaForCausalLM

    from bench.providers.layers import move

    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
                         vocab_size=100, tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(config)
    packed = torch.nn.Parameter(torch.empty(3, device="meta"), requires_grad=False)
    model.model.layers[0].mlp.up_proj.weight = packed
    move(model, torch.device("meta"))
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.layers[0].mlp.up_proj.weight is packed


def test_calibration_text(tmp_path: Path):
    plain = tmp_path / "a.txt"
    plain.write_text("x" * 9000)
    assert [len(text) for text in texts(str(plain))] == [4000, 4000, 1000]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert texts(str(lines)) == ["one", "two"]
    for content, reason in (("", "is empty"), ('{"txt": 1}', "is no text"), ("{", "is no text")):
        lines.write_text(content)
        with pytest.raises(LoadError, match=reason):
            texts(str(lines))


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "settings"),
    [
        ("auto_round", ("precision.algorithm=autoround", "precision.steps=2")),
        ("neural_compressor", ("precision.algorithm=gptq", "precision.compute_dtype=fp32")),
        ("neural_compressor", ("precision.algorithm=awq", "precision.compute_dtype=fp32")),
    ],
    ids=["autoround", "gptq", "awq"],
)
def test_learning_from_text_is_no_worse_than_rounding(
    bench: Bench, tmp_path: Path, library: str, settings: tuple[str, ...]
):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    text = ROOT / "bench" / "models" / "prose.txt"
    done = bench(
        "run", "model=tiny-trained", "workload=accuracy", "accuracy.limit=400", "device=cpu", "precision=asym_int4",
        "precision.group_size=32", f"precision.provider={library}", *settings, f"precision.calibration={text}",
        "results=out", env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.code == 0, done.stderr + done.stdout
    (row,) = rows(tmp_path / "out")
    assert row["provider"] == library and float(row["acc"]) > 0.82 and float(row["perplexity"]) < 7
    assert float(row["packed_bytes"]) < 3 * PLAIN_BYTES


def test_doctor_names_providers(bench: Bench):
    lines = bench("doctor").stdout.splitlines()
    fp6 = next(line for line in lines if line.startswith("  fp6"))
    assert fp6.split()[:5] == ["fp6", "yes", "cpu:", "emulated", "by"]
    start = lines.index("providers of low-bit precisions")
    for name in providers.names():
        line = next(line for line in lines[start:] if line.startswith(f"  {name} "))
        assert any(hint in line for hint in (" yes ", "pip install", "stack", "builds of torch"))
