"""Models as data, random and real loading, prompts. The shapes of the 25 models are numbers known beforehand."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig

from bench.errors import LoadError, OutOfMemory, Unsupported
from bench.models import build
from bench.models.build import explain, load, revision_of
from bench.models.noise import BLOCK, Noise
from bench.models.prompts import prompts
from bench.models.shape import Shape
from bench.models.spec import Model

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "model").glob("*.yaml"))
FIELDS = [
    "name", "id", "modelscope_id", "source", "path", "revision", "weights", "parameters", "approximation",
    "trust_remote_code", "validated", "architecture",
]  # fmt: skip
CPU = torch.device("cpu")

# id: name, parameters, layers, KV heads, head size, bytes of keys and values of one token in fp16
TABLE = {
    "meta-llama/Llama-2-7b-hf": ("llama-2-7b", 6738415616, 32, 32, 128, 524288),
    "meta-llama/Llama-2-13b-hf": ("llama-2-13b", 13015864320, 40, 40, 128, 819200),
    "meta-llama/Llama-2-70b-hf": ("llama-2-70b", 68976648192, 80, 8, 128, 327680),
    "meta-llama/Meta-Llama-3-8B": ("llama-3-8b", 8030261248, 32, 8, 128, 131072),
    "meta-llama/Meta-Llama-3-70B": ("llama-3-70b", 70553706496, 80, 8, 128, 327680),
    "meta-llama/Llama-3.2-1B": ("llama-3.2-1b", 1235814400, 16, 8, 64, 32768),
    "meta-llama/Llama-3.2-3B": ("llama-3.2-3b", 3212749824, 28, 8, 128, 114688),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama-3.3-70b-instruct", 70553706496, 80, 8, 128, 327680),
    "microsoft/Phi-3-mini-4k-instruct": ("phi-3-mini-4k-instruct", 3821079552, 32, 32, 96, 393216),
    "microsoft/Phi-3-mini-128k-instruct": ("phi-3-mini-128k-instruct", 3821079552, 32, 32, 96, 393216),
    "microsoft/Phi-3.5-mini-instruct": ("phi-3.5-mini-instruct", 3821079552, 32, 32, 96, 393216),
    "mistralai/Mistral-7B-Instruct-v0.2": ("mistral-7b-instruct-v0.2", 7241732096, 32, 8, 128, 131072),
    "EleutherAI/gpt-j-6b": ("gpt-j-6b", 6050882784, 28, 16, 256, 458752),
    "Qwen/Qwen2-7B": ("qwen2-7b", 7615616512, 28, 4, 128, 57344),
    "Qwen/Qwen2-7B-Instruct": ("qwen2-7b-instruct", 7615616512, 28, 4, 128, 57344),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2.5-7b-instruct", 7615616512, 28, 4, 128, 57344),
    "Qwen/Qwen3-4B": ("qwen3-4b", 4022468096, 36, 8, 128, 147456),
    "Qwen/Qwen3-8B": ("qwen3-8b", 8190735360, 36, 8, 128, 147456),
    "facebook/opt-6.7b": ("opt-6.7b", 6658473984, 32, 32, 128, 524288),
    "facebook/opt-30b": ("opt-30b", 29974540288, 48, 56, 128, 1376256),
    "bigscience/bloom-7b1": ("bloom-7b1", 7069016064, 30, 32, 128, 491520),
    "bigscience/bloom": ("bloom", 176247271424, 70, 112, 128, 4014080),
    "THUDM/glm-4-9b": ("glm-4-9b", 9399951360, 40, 2, 128, 40960),
    "baichuan-inc/Baichuan2-7B-Chat": ("baichuan2-7b-chat", 7505973248, 32, 32, 128, 524288),
    "baichuan-inc/Baichuan2-13B-Chat": ("baichuan2-13b-chat", 13896668160, 40, 40, 128, 819200),
}

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
FAMILIES = {
    "llama": SMALL,
    "mistral": {**SMALL, "sliding_window": None},
    "qwen2": {**SMALL, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "head_dim": 24},
    "phi3": {**SMALL, **IDS, "original_max_position_embeddings": 64, "rope_scaling": LONGROPE},
    "glm": {**SMALL, "head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 300, "n_positions": 128, **IDS},
    "opt": {
        "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 300, "max_position_embeddings": 128, "tie_word_embeddings": True, **IDS,
    },
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300, "tie_word_embeddings": True, **IDS},
}  # fmt: skip


def small(family: str = "llama", **changes: object) -> Model:
    arch = {"model_type": family, **FAMILIES[family], **changes}
    return Model(name=f"small-{family}", weights="random", architecture=json.dumps(arch, sort_keys=True))


def published(path: Path) -> Model:
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    del fields["validated"]
    return Model(**{**fields, "architecture": json.dumps(fields["architecture"], sort_keys=True)})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_has_every_field(path: Path):
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(fields) == FIELDS
    assert fields["name"] == path.stem == path.stem.lower()
    assert list(fields["validated"]) == ["fp16", "woq_int4", "max", "core_ultra", "b580"]
    assert fields["modelscope_id"] != fields["id"] or fields["id"] is None
    assert fields["trust_remote_code"] is False
    assert not {"dtype", "torch_dtype"} & set(fields["architecture"])
    assert {"bos_token_id", "eos_token_id", "pad_token_id"} <= set(fields["architecture"])


def test_the_files_are_the_validated_models_and_tiny():
    built_in = ("tiny", "tiny-trained")
    models = {yaml.safe_load(path.read_text(encoding="utf-8"))["id"]: path.stem for path in FILES
              if path.stem not in built_in}  # fmt: skip
    assert models == {name: row[0] for name, row in TABLE.items()}
    assert {path.stem for path in FILES} == {*models.values(), *built_in}


def test_validated_is_the_published_table():
    ticks = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["validated"] for path in FILES}

    def ticked(column: str) -> set[str]:
        return {name for name, row in ticks.items() if row[column]}

    listed = {row[0] for row in TABLE.values()} - {"baichuan2-7b-chat"}
    without = {"opt-6.7b", "opt-30b", "bloom-7b1", "bloom", "glm-4-9b", "baichuan2-13b-chat"}
    assert ticked("fp16") == ticked("max") == listed
    assert ticked("woq_int4") == ticked("core_ultra") == listed - without
    assert ticked("b580") == {"llama-2-7b", "llama-3-8b", "phi-3-mini-4k-instruct"}
    assert {name for name, row in ticks.items() if row["fp16"] is None} == {"tiny", "tiny-trained", "baichuan2-7b-chat"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_architecture_has_the_published_number_of_parameters(path: Path):
    model = published(path)
    config = AutoConfig.for_model(**model.config)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in built.parameters()) == model.parameters
    if model.id in TABLE:
        assert model.parameters == TABLE[model.id][1]
    shape = Shape.of(model)
    assert shape is not None
    tied = built.get_input_embeddings().weight is built.get_output_embeddings().weight
    assert shape.tied == tied
    tables = [built.get_input_embeddings()]
    if config.model_type == "opt":
        tables.append(built.model.decoder.embed_positions)
    assert shape.embedding_parameters == sum(table.weight.numel() for table in tables)
    head = 0 if not tied else built.get_output_embeddings().weight.numel()
    assert shape.active_parameters() == model.parameters - shape.embedding_parameters + head


@pytest.mark.parametrize(
    "path", [path for path in FILES if not path.stem.startswith("tiny")], ids=lambda path: path.stem
)
def test_shape_is_the_published_one(path: Path):
    model = published(path)
    shape = Shape.of(model)
    assert shape is not None
    assert model.id is not None
    assert (shape.num_layers, shape.num_kv_heads, shape.head_dim) == TABLE[model.id][2:5]
    assert shape.kv_bytes_per_token(2) == TABLE[model.id][5]
    assert shape.weight_bytes(2) == 2 * TABLE[model.id][1]
    counted = Shape.of(Model(name="folder", source="path", path="folder", architecture=model.architecture))
    assert counted == shape


def test_shape_limits_and_unknown_families():
    shape = Shape.of(small())
    assert shape is not None
    assert (shape.fits(128), shape.fits(129)) == (True, False)
    bloom = Shape.of(small("bloom"))
    assert bloom is not None
    assert bloom.max_positions is None
    assert bloom.fits(10**6)
    assert Shape.of(Model(name="unknown")) is None
    assert Shape.of(Model(name="odd", architecture='{"model_type": "odd", "layers": 3}')) is None
    other = Shape.of(Model(name="new", architecture=json.dumps({"model_type": "new", **SMALL})))
    assert other is not None
    assert (other.num_layers, other.num_kv_heads, other.parameters, other.active_parameters()) == (2, 2, None, None)
    assert other.weight_bytes(2) is None
    mixture = Shape.of(
        Model(
            name="moe", parameters=10**6, architecture=json.dumps({"model_type": "m", "num_local_experts": 8, **SMALL})
        )
    )
    assert mixture is not None
    assert mixture.active_parameters() is None


@pytest.mark.parametrize("changes", [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_llama_options_are_counted(changes: dict[str, bool]):
    model = small(**changes)
    shape = Shape.of(model)
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model.config))
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_random_model_generates_past_eos(family: str):
    model = load(small(family), torch.bfloat16, CPU, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = torch.randint(4, 300, (2, 5))
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
    beams = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=4, max_new_tokens=8)
    assert greedy.shape == beams.shape == (2, 13)


@pytest.mark.parametrize("beams", [1, 4])
def test_eos_never_ends_generation(beams: int):
    model = load(small(), torch.float32, CPU, seed=0)
    with torch.no_grad():
        model.lm_head.weight[2] = 0
        model.lm_head.weight[:2] = model.lm_head.weight[3:] = -1
        # The last norm is positive after this, so every other logit is negative and EOS (0) wins each step.
        model.model.norm.register_forward_hook(lambda module, inputs, output: output.abs())
    ids = torch.randint(4, 300, (2, 5))
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=beams, max_new_tokens=9)
    assert out.shape == (2, 14)
    assert (out[:, 5:] == 2).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights(family: str):
    model = load(small(family), torch.float32, CPU, seed=3)
    drawn = []
    for name, module in model.named_modules():
        for field, parameter in module.named_parameters(recurse=False):
            if type(module).__name__.endswith("Norm"):
                assert (parameter == (1.0 if field == "weight" else 0.0)).all(), name
            else:
                drawn.append(parameter.flatten())
    values = torch.cat(drawn)
    assert values.mean().abs() < 0.001
    assert values.std().item() == pytest.approx(0.02, rel=0.02)
    assert not any((values == 0).nonzero().numel() > 3 for values in drawn)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_buffers_are_those_of_a_normal_build(family: str, dtype: torch.dtype):
    normal = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small(family).config))
    built = load(small(family), dtype, CPU, seed=0)
    expected = dict(normal.named_buffers())
    found = dict(built.named_buffers())
    assert found.keys() == expected.keys()
    for name, buffer in found.items():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, expected[name]), name


@pytest.mark.parametrize("family", ["qwen2", "opt", "bloom"])
def test_tied_embeddings_share_storage(family: str):
    model = load(small(family), torch.bfloat16, CPU, seed=0)
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def digest(model: torch.nn.Module) -> str:
    import hashlib

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.float().numpy().tobytes())
    return total.hexdigest()


CHILD = """
import json, resource, sys, torch
sys.path.insert(0, {root!r})
from bench.models.build import load
from bench.models.spec import Model
from tests.test_models import digest, small
print(digest(load(small(), torch.bfloat16, torch.device("cpu"), seed=7)))
arch = dict(model_type="llama", hidden_size=1024, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=16,
            vocab_size=32000)
model = Model(name="m", weights="random", architecture=json.dumps(arch))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
built = load(model, torch.bfloat16, torch.device("cpu"), seed=7)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, 2 * sum(p.numel() for p in built.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_random_build_is_repeatable_across_processes_and_never_a_copy():
    first = digest(load(small(), torch.bfloat16, CPU, seed=7))
    assert digest(load(small(), torch.bfloat16, CPU, seed=7)) == first
    assert digest(load(small(), torch.bfloat16, CPU, seed=8)) != first
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(root=str(ROOT))], capture_output=True, text=True, cwd=ROOT, check=True
    )
    lines = done.stdout.split("\n")
    assert lines[0] == first
    grown, size = map(int, lines[1].split())
    assert size == 458_278_912
    assert grown < 1.3 * size


def test_noise_depends_on_name_and_seed_not_on_order():
    noise = Noise(5, torch.float32, CPU)
    one, two, again = (torch.empty(3, BLOCK // 2) for _ in range(3))
    noise.fill("a", one)
    noise.fill("b", two)
    Noise(5, torch.float32, CPU).fill("a", again)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert torch.equal(one.view(-1)[:1000], one.view(-1)[BLOCK : BLOCK + 1000])
    assert one.std().item() == pytest.approx(0.02, rel=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model: weights, sampling parameters and a tokenizer of characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("checkpoint")
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.3, top_k=7, eos_token_id=2)
    model.save_pretrained(path)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(32 + i): i + 3 for i in range(95)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    return path


def in_folder(path: Path | str, **changes: object) -> Model:
    return Model(**{"name": "local", "source": "path", "path": str(path), **changes})


def test_real_weights_from_a_folder(folder: Path):
    model = load(in_folder(folder), torch.bfloat16, CPU, seed=0)
    expected = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight.bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.generation_config.do_sample is not True
    assert model.generation_config.top_k != 7
    assert model.generation_config.eos_token_id is None
    assert model.generation_config.pad_token_id == 2
    assert revision_of(model) is None


def test_cached_hub_model_loads_without_a_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--m"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(folder, cached / "snapshots" / commit)
    monkeypatch.setattr(build, "hub_answers", lambda: False)
    model = load(Model(name="m", id="org/m"), torch.float32, CPU, seed=0, cache_dir=str(tmp_path))
    assert revision_of(model) == commit


def test_random_weights_of_a_folder_read_its_configuration(folder: Path):
    model = load(in_folder(folder, weights="random"), torch.float32, CPU, seed=0)
    assert digest(model) == digest(load(small(), torch.float32, CPU, seed=0))


def test_keyword_arguments_reach_from_pretrained(folder: Path):
    eager = load(in_folder(folder), torch.float32, CPU, seed=0, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    random = load(small(), torch.float32, CPU, seed=0, attn_implementation="eager")
    assert random.config._attn_implementation == "eager"
    with pytest.raises(Unsupported, match="weights=random cannot be loaded with quantization_config: use real weights"):
        load(small(), torch.float32, CPU, seed=0, quantization_config={})


def test_modelscope(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    stub = types.ModuleType("modelscope")
    stub.snapshot_download = lambda name, revision: asked.append((name, revision)) or str(folder)
    monkeypatch.setitem(sys.modules, "modelscope", stub)
    model = Model(name="m", id="org/hub", modelscope_id="org/scope", source="modelscope", revision="v1")
    assert load(model, torch.float32, CPU, seed=0).config.hidden_size == 64
    load(Model(name="m", id="org/hub", source="modelscope"), torch.float32, CPU, seed=0)
    assert asked == [("org/scope", "v1"), ("org/hub", None)]
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(LoadError, match=r"pip install bench\[modelscope\]"):
        load(model, torch.float32, CPU, seed=0)


def test_folder_errors_say_what_to_do(tmp_path: Path, folder: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    config_only = tmp_path / "config"
    config_only.mkdir()
    (config_only / "config.json").write_text((folder / "config.json").read_text())
    remote = tmp_path / "remote"
    remote.mkdir()
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (remote / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text(json.dumps({"model_type": "not_a_family"}))
    cases = {
        tmp_path / "nowhere": "is not a folder: name one that save_pretrained wrote",
        empty: "no config.json in",
        config_only: "has no weights beside its configuration: download them, or use weights=random",
        remote: "brings its own code: read it, then set model.trust_remote_code=true",
        unknown: "does not know",
    }
    for path, message in cases.items():
        with pytest.raises(LoadError) as caught:
            load(in_folder(path), torch.float32, CPU, seed=0)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(LoadError, match="tiny has no published weights: use weights=random"):
        load(Model(name="tiny"), torch.float32, CPU, seed=0)
    with pytest.raises(LoadError, match="does not know not_a_family: use a newer one"):
        load(Model(name="x", weights="random", architecture='{"model_type": "not_a_family"}'), torch.float32, CPU, 0)


UNREACHABLE = """
import sys, time, torch
sys.path.insert(0, {root!r})
from bench.errors import LoadError
from bench.models.build import load
from bench.models.spec import Model
start = time.monotonic()
try:
    load(Model(name="opt-6.7b", id="facebook/opt-6.7b"), torch.bfloat16, torch.device("cpu"), seed=0)
except LoadError as error:
    print(error)
print(time.monotonic() - start)
"""


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub does not answer"),
    ],
)
def test_unreachable_hub_fails_in_seconds_with_one_line(tmp_path: Path, env: dict[str, str], why: str):
    left_out = ("proxy", "hf_", "transformers_offline")
    inherited = {
        name: value for name, value in os.environ.items() if not any(part in name.lower() for part in left_out)
    }
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE.format(root=str(ROOT))],
        env={**inherited, "HF_HOME": str(tmp_path), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    message, seconds, _ = done.stdout.split("\n")
    expected = f"facebook/opt-6.7b is not in the local cache and {why}: download it first, or use weights=random"
    assert message == expected
    assert float(seconds) < 5


def hub_error(name: str) -> Exception:
    return type(name, (OSError,), {})("one\ntwo")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (hub_error("GatedRepoError"), LoadError, "run hf auth login, or use weights=random"),
        (hub_error("RepositoryNotFoundError"), LoadError, "the hub does not know org/m"),
        (hub_error("RevisionNotFoundError"), LoadError, "org/m has no revision abc: check model.revision"),
        (ImportError("no module named tiktoken"), LoadError, "org/m needs a package that is missing here"),
        (KeyError("x"), LoadError, "org/m could not be loaded: KeyError"),
        (ValueError("no limit:\n  TypeError: a list"), LoadError, "ValueError: no limit: TypeError: a list"),
        (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemory, "7.0 billion parameters"),
        (MemoryError(), OutOfMemory, "use a smaller dtype or more devices"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemory, "loading m"),
        (RuntimeError("level_zero backend failed: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"), OutOfMemory, "loading m"),
    ],
)
def test_errors_are_one_line(error: Exception, kind: type, message: str):
    wrapped = OSError("several\nlines")
    wrapped.__cause__ = error
    for cause in (error, wrapped) if isinstance(error, OSError) else (error,):
        found = explain(cause, Model(name="m", id="org/m", revision="abc", parameters=7_000_000_000))
        assert type(found) is kind
        assert message in str(found)
        assert "\n" not in str(found)


def test_out_of_memory_is_recognised_when_it_happens(monkeypatch: pytest.MonkeyPatch):
    def full(self: Noise, name: str, out: torch.Tensor) -> None:
        torch.empty(2**62, dtype=torch.uint8)

    monkeypatch.setattr(build.Noise, "fill", full)
    with pytest.raises(OutOfMemory, match="out of memory while loading small-llama"):
        load(small(), torch.float32, CPU, seed=0)


def test_random_prompts():
    model = small(vocab_size=12, eos_token_id=[2, 5], pad_token_id=0)
    ids, warnings = prompts(model, vocab_size=12, input_tokens=500, batch_size=3, seed=1)
    assert ids.shape == (3, 500)
    assert ids.dtype == torch.int64
    assert warnings == []
    assert set(ids.flatten().tolist()) == {3, 4, 6, 7, 8, 9, 10, 11}
    assert torch.equal(ids, prompts(model, 12, 500, 3, seed=1)[0])
    assert not torch.equal(ids, prompts(model, 12, 500, 3, seed=2)[0])
    assert not torch.equal(ids[0], ids[1])


@pytest.mark.parametrize("length", [1, 37, 5000])
def test_prose_prompts(folder: Path, length: int):
    ids, warnings = prompts(in_folder(folder), vocab_size=300, input_tokens=length, batch_size=4, seed=0)
    assert warnings == []
    assert ids.shape == (4, length)
    assert ids.dtype == torch.int64
    assert len({tuple(row) for row in ids.tolist()}) == 4 or length == 1
    text = (ROOT / "bench" / "models" / "prose.txt").read_text(encoding="utf-8")
    assert "".join(chr(token + 29) for token in ids[0].tolist()) in text.replace("\n", "") * 3


def test_prompts_without_a_tokenizer_are_random_and_say_so(folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ids, warnings = prompts(in_folder(tmp_path), vocab_size=300, input_tokens=20, batch_size=2, seed=0)
    assert ids.shape == (2, 20)
    assert len(warnings) == 1
    assert warnings[0].startswith("prompts are random token ids, the tokenizer of local cannot be loaded: ")
    assert "\n" not in warnings[0]


def test_plans_need_no_torch():
    code = (
        "import sys; import bench.models.shape; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_numbers_that_json_does_not_have_are_read_from_a_folder(tmp_path: Path):
    """transformers writes them as objects: how long the steps of Mamba's states may be, for example."""
    AutoConfig.for_model("mamba2", num_hidden_layers=1, time_step_limit=[0.0, math.inf]).save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    model = Model(name="mamba", architecture=(tmp_path / "config.json").read_text())
    assert model.config["time_step_limit"] == [0.0, math.inf]
    assert AutoConfig.for_model(**model.config).time_step_limit[1] == math.inf
