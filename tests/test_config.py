"""The command line: every mistake is one line, every YAML composes, sweeps are the product that was asked for."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compose
from bench.config import Request
from bench.errors import ConfigError
from bench.plan import plan
from benchmarks.compiled import COMMON, PARTS, asked
from tests.conftest import ROOT, Bench

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
MODELS = sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))
KNOWN = "attention"

MISTAKES = [
    # misspelt keys
    ("iteration=3", "unknown key 'iteration'. Did you mean iterations?"),
    ("batchsize=[1,2]", "unknown key 'batchsize'. Did you mean batch_size?"),
    ("engine=static engine.compil=false", "unknown key in engine 'compil'. Did you mean compile?"),
    ("engine=eager engine.compile=false", f"unknown key in engine 'compile'. Known: {KNOWN}"),
    ("device=fake device.prefil=1", "unknown key in device 'prefil'. Did you mean prefill?"),
    ("device=cpu device.foo=1", "device.foo: device has no settings"),
    ("device.foo=1", "device.foo: device has no settings"),
    ("model=some/hub-id model.weights=random", "unknown key in model 'weights': it is a key of its own, weights=..."),
    ("model.sourc=hub", "unknown key in model 'sourc'. Did you mean source?"),
    ("hydra.foo=1", "unknown key 'hydra.foo'"),
    ("+foo=1", "unknown key 'foo'. Known: accuracy, batch_size, chat, check_memory, "),
    ("++foo=1", "unknown key 'foo'. Known: accuracy, batch_size, chat, check_memory, "),
    ("+engine.foo=1", f"unknown key in engine 'foo'. Known: {KNOWN}"),
    ("+model.foo=1", "unknown key in model 'foo'. Known: "),
    ("model@foo=tiny", "Could not override 'model@foo'."),
    ("~iterations", "iterations has been removed: give it a value with iterations="),
    ("~engine", "engine has been removed: give it a value with engine="),
    # unknown options
    ("engine=statik", "unknown engine 'statik'. Did you mean static?"),
    ("precision=fp7", "unknown precision 'fp7'. Did you mean "),
    ("precision=nf4 precision.provider=torchoa", "unknown precision.provider 'torchoa'. Did you mean torchao?"),
    ("precision=nf4 precision.group_size=60", "precision.group_size=60: a power of two of at least 8 is needed, or -1"),
    ("precision=woq_int4 precision.algorithm=gptq", "precision.algorithm=gptq needs text to learn from: precision."),
    ("precision=woq_int4 precision.calibration=/x", "precision.calibration=/x cannot be read: No such file or dir"),
    ("precision=fp16 precision.provider=torchao", "precision.provider: precision has no settings"),
    ("-m precision=nf4,fp4 precision.provder=torchao", "unknown key in precision 'provder'. Did you mean provider?"),
    ("device=gpu", "unknown device 'gpu'. Did you mean xpu or cpu?"),
    ("launcher=slurm", "unknown launcher 'slurm'. Known: "),
    ("workload=evaluate", "unknown workload 'evaluate'."),
    ("model=lama-2-7b", "unknown model 'lama-2-7b'. Did you mean llama-2-7b"),
    ("model=a/b/c", "unknown model 'a/b/c'. "),
    ("-m model=tiny,tinny", "unknown model 'tinny'. Did you mean tiny?"),
    ("experiment=smok", "unknown experiment 'smok'. Did you mean smoke?"),
    ("engine=null", "Config group override must be a string or a list. Got NoneType"),
    ("weights=fake", "unknown weights 'fake'. Known: random, real"),
    ("decoding=beem", "unknown decoding 'beem'. Did you mean beam?"),
    ("tp=deepsped", "unknown tp 'deepsped'. Did you mean deepspeed?"),
    ("model.source=ftp", "unknown model.source 'ftp'. Known: hub, modelscope, package, path"),
    ("model.weights=fake", "unknown model.weights 'fake'. Known: random, real"),
    # impossible values
    ("iterations=0", "iterations=0: an integer of at least 1 is needed"),
    ("warmup=-1", "warmup=-1: an integer of at least 0 is needed"),
    ("launches=0", "launches=0: an integer of at least 1 is needed"),
    ("world_size=0", "world_size=0: an integer of at least 1 is needed"),
    ("seed=-5", "seed=-5: an integer of at least 0 is needed"),
    ("batch_size=0", "batch_size=0: an integer of at least 1 is needed"),
    ("batch_size=[1,x]", "batch_size=x: an integer of at least 1 is needed"),
    ("batch_size=true", "batch_size=True: an integer of at least 1 is needed"),
    ("num_beams=2.0", "num_beams=2.0: an integer of at least 1 is needed"),
    ("num_beams=null", "num_beams=None: an integer of at least 1 is needed"),
    ("name=../elsewhere", "name=../elsewhere: letters, digits and _.- only; a whole path is given with results=DIR"),
    ("decoding=beam num_beams=1", "decoding=beam needs num_beams greater than 1"),
    ("timeout_s=0", "timeout_s=0.0: a number of seconds greater than 0 is needed"),
    ("timeout_s=nan", "timeout_s=nan: a number of seconds greater than 0 is needed"),
    ("load_timeout_s=-1", "load_timeout_s=-1.0: a number of seconds greater than 0 is needed"),
    ("model=tiny weights=real", "model=tiny has no published weights: use weights=random"),
    ("model=org/m weights=random", "weights=random needs an architecture, and model=m has none before it is "),
    ("model=./nowhere", "model=./nowhere: no config.json there. A model folder is what save_pretrained writes"),
    ("model=/nowhere", "model=/nowhere: no config.json there."),
    ("python=/nonexistent", "python=/nonexistent is not an interpreter: no such file"),
    ("python=/usr", "python=/usr is not an interpreter: no such file"),
    # lengths, lists, types
    ("lengths=10", "lengths: '10' is not input/output tokens, such as lengths=[32/32,1024/128]"),
    ("lengths=10/0", "lengths: '10/0' is not "),
    ("lengths=0/10", "lengths: '0/10' is not "),
    ("lengths=-1/10", "lengths: '-1/10' is not "),
    ("lengths=1024x128", "lengths: '1024x128' is not "),
    ("lengths=[32/32,7]", "lengths: '7' is not "),
    ("lengths=[32/32", "cannot read 'lengths=[32/32': "),
    ("lengths=[]", "lengths is empty: give at least one pair, such as lengths=[1024/128]"),
    ("batch_size=[]", "batch_size is empty: give at least one value, such as batch_size=[1,4]"),
    ("num_beams=[]", "num_beams is empty: give at least one value, such as num_beams=[1,4]"),
    ("env.X=[]", "env.X is empty: give at least one value, such as env.X=[1,2]"),
    ("env.X=null", "env.X=None: a text or a number is needed"),
    ("env.X=true", "env.X=True: a text or a number is needed; put 'true' and the like in quotes"),
    ("env=3", "env=3: a mapping is needed, such as env.OMP_NUM_THREADS=4"),
    ("iterations=abc", "iterations: Value 'abc' of type 'str' could not be converted to Integer"),
    ("iterations=1.5", "iterations: Value '1.5' of type 'float' could not be converted to Integer"),
    ("iterations=", "iterations: Value '' of type 'str' could not be converted to Integer"),
    ("retry_failed=maybe", "retry_failed: Value 'maybe' is not a valid bool"),
    ("device=fake device.prefill=abc", "device.prefill: Value 'abc' of type 'str' could not be converted to Float"),
    ("model.parameters=abc", "model.parameters=abc: an integer is needed"),
    ("model.architecture=abc", "model.architecture=abc: a mapping is needed"),
    ("model.trust_remote_code=maybe", "model.trust_remote_code=maybe: true or false is needed"),
    # sweeps and flags
    ("num_beams=1,4", "num_beams=1,4 has several values: sweep them with -m, or as a list, num_beams=[1,4]"),
    ("model=tiny,llama-2-7b", "model=tiny,llama-2-7b has several values: sweep them with -m"),
    ("precision=[fp16,bf16]", "precision takes one value: sweep several with -m precision=fp16,bf16"),
    ("-m results=a,b", "results cannot be swept (a, b): it holds for the whole run"),
    ("-m launches=1,2", "launches cannot be swept (1, 2): it holds for the whole run"),
    ("-m iterations=1,0", "iterations=0: an integer of at least 1 is needed"),
    ("foo", "cannot read 'foo': "),
    ("--wrong", "unrecognized arguments: --wrong"),
    ("--cfg", "--cfg needs a value: see bench run --help"),
    ("--cfg jobs", "argument --cfg/-c: invalid choice: 'jobs'"),
    ("--resolve", "The --resolve flag can only be used in conjunction with --cfg or --help"),
    ("-cn foo", "Cannot find primary config 'foo'."),
]


@pytest.fixture(autouse=True)
def _away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def requests(line: str) -> list[Request]:
    """What a command line composes to."""
    composed = compose.compose(line.split(" ") if line else [])
    assert composed is not None
    return composed[0]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line(tmp_path: Path, line: str, message: str):
    with pytest.raises(ConfigError) as caught:
        plan(requests(line))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run iteration=3", "bench: unknown key 'iteration'. Did you mean iterations?"),
        ("run model=lama-2-7b", "bench: unknown model 'lama-2-7b'. Did you mean llama-2-7b or llama-2-70b"),
        ("plan -m results=a,b", "bench: results cannot be swept (a, b): it holds for the whole run"),
        ("run --wrong", "bench: unrecognized arguments: --wrong"),
        ("run python=/nonexistent", "bench: python=/nonexistent is not an interpreter: no such file"),
        ("rum", "bench: unknown command 'rum'. Did you mean run?"),
        ("doctor --measur", "bench: bench doctor has no argument --measur: see bench doctor --help"),
        ("doctor python=/nonexistent", "bench: python=/nonexistent cannot be run: "),
        ("report nowhere", "bench: nowhere is not a results folder: there is no journal.jsonl in it"),
        ("report --wrong", "bench: bench report has no option --wrong"),
    ],
)
def test_the_command_prints_one_line_writes_nothing_and_exits_with_2(bench: Bench, line: str, message: str):
    done = bench(*line.split(" "))
    assert done.code == 2
    assert done.line.startswith(message)
    assert done.stdout == ""
    assert not list(bench.cwd.iterdir())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str):
    planned = plan(requests(f"experiment={name} device=cpu")).planned
    assert planned
    sizes = {"smoke": 4, "engines": 8, "intel_gpu_table": 24 * 4}
    assert len(planned) == sizes.get(name, len(planned))
    assert {item.cell.device.name for item in planned} == {"cpu"}


@pytest.mark.parametrize("part", PARTS)
def test_what_the_docs_measure_can_be_asked_for(part: str, tmp_path: Path):
    """Where there is no GPU to measure it on: no key is misspelt, and each command has cells of one model."""
    planned = plan(requests(" ".join(("device=cpu", *COMMON, *asked(tmp_path, part))))).planned
    assert len({item.cell.model.name for item in planned}) == 1


def test_every_model_composes():
    assert len(MODELS) == 27
    found = requests(f"-m model={','.join(MODELS)} weights=random num_beams=1")
    cells = [cell for point in found for cell in point.cells]
    assert [cell.model.name for cell in cells] == MODELS
    assert all(cell.model.architecture and cell.model.parameters for cell in cells)


def test_the_defaults_are_those_of_the_intel_gpu_scripts():
    (point,) = requests("")
    assert [(cell.workload.num_beams, cell.workload.decoding) for cell in point.cells] == [(1, "greedy"), (4, "beam")]
    cell = point.cells[0]
    assert (cell.model.name, cell.model.weights) == ("tiny", "random")
    assert (cell.workload.input_tokens, cell.workload.output_tokens, cell.workload.batch_size) == (1024, 128, 1)
    assert (cell.iterations, cell.warmup, cell.seed, cell.stack) == (10, 3, 0, "current")
    assert (point.launches, point.results, point.retry_failed, point.check_memory) == (1, None, False, True)


def test_hub_ids_and_folders_are_models(tmp_path: Path):
    (known,) = requests("model=meta-llama/Llama-2-7b-hf num_beams=1")
    assert known.cells[0].model.name == "llama-2-7b"
    assert known.cells == requests("model=llama-2-7b num_beams=1")[0].cells
    (lower,) = requests("model=META-LLAMA/llama-2-7B-hf num_beams=1")
    assert lower.cells == known.cells
    (hub,) = requests("model=Some-Org/Some-Model num_beams=1")
    model = hub.cells[0].model
    assert (model.name, model.id, model.source, model.weights) == ("some-model", "Some-Org/Some-Model", "hub", "real")
    assert model.architecture is None
    folder = tmp_path / "my-llama"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    for spelling in ("./my-llama", str(folder)):
        model = requests(f"model={spelling} num_beams=1")[0].cells[0].model
        assert (model.name, model.source, model.path) == ("my-llama", "path", str(folder))
        assert model.config == config
    names = [
        point.cells[0].model.name for point in requests("-m model=tiny,./my-llama,Qwen/Qwen3-8B,Some-Org/Some-Model")
    ]
    assert names == ["tiny", "my-llama", "qwen3-8b", "some-model"]
    folder.rename(tmp_path / "7")
    assert [point.cells[0].model.name for point in requests("-m model=./7,tiny")] == ["7", "tiny"]
    folder.mkdir()
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"model=\./my-llama: config.json is not JSON"):
        requests("model=./my-llama")


def test_lists_and_scalars():
    one = requests("batch_size=8 num_beams=1 lengths=5/6")[0].cells
    assert one == requests("batch_size=[8] num_beams=[1] lengths=[5/6]")[0].cells
    assert len(one) == 1
    many = requests("batch_size=[1,8,1] num_beams=[1,4] lengths=[32/32,1024/128,32/32]")[0].cells
    found = [(c.workload.input_tokens, c.workload.output_tokens, c.workload.batch_size, c.workload.num_beams)
             for c in many]  # fmt: skip
    assert found == [(*pair, *rest) for pair in ((32, 32), (1024, 128)) for rest in itertools.product((1, 8), (1, 4))]
    sampled = requests("decoding=sample num_beams=[1,2]")[0].cells
    assert [cell.workload.decoding for cell in sampled] == ["sample", "sample"]


def test_multirun_is_the_cross_product_in_order():
    for line in ("-m model=tiny,qwen3-4b precision=fp16,bf16", "model=tiny,qwen3-4b precision=fp16,bf16 --multirun"):
        found = [(point.cells[0].model.name, point.cells[0].precision.name) for point in requests(line)]
        assert found == list(itertools.product(("tiny", "qwen3-4b"), ("fp16", "bf16")))
    assert len(plan(requests("-m batch_size=1,2,4 iterations=3,5 num_beams=1")).cells) == 6


def test_environment_variables_are_an_axis():
    cells = requests("env.OMP_NUM_THREADS=[1,2] env.A=x num_beams=1")[0].cells
    assert [cell.env for cell in cells] == [
        (("A", "x"), ("OMP_NUM_THREADS", "1")),
        (("A", "x"), ("OMP_NUM_THREADS", "2")),
    ]
    assert [cell.axes()["env"] for cell in cells] == ["A=x OMP_NUM_THREADS=1", "A=x OMP_NUM_THREADS=2"]
    swept = requests("-m env.OMP_NUM_THREADS=1,2 num_beams=1")
    assert [point.cells[0].env for point in swept] == [(("OMP_NUM_THREADS", "1"),), (("OMP_NUM_THREADS", "2"),)]


def test_settings_of_an_option_are_part_of_its_label():
    (cell,) = requests("engine=static engine.compile=false num_beams=1")[0].cells
    assert str(cell.engine) == "static(compile=False)"
    (default,) = requests("engine=static engine.compile=true num_beams=1")[0].cells
    assert str(default.engine) == "static"


def test_the_stack_is_named_after_the_environment_of_the_interpreter(tmp_path: Path):
    interpreter = tmp_path / "ipex-2.8" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    (cell,) = requests(f"python={interpreter} num_beams=1")[0].cells
    assert (cell.stack, cell.python) == ("ipex-2.8", str(interpreter))
    (named,) = requests(f"python={interpreter} stack=mine num_beams=1")[0].cells
    assert named.stack == "mine"
    assert "ipex-2.8/bin" not in json.dumps(cell.axes())


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("--help", ["usage: bench COMMAND", "130 interrupted"]),
        ("--version", ["bench 0."]),
        ("run --help", ["model: ", "llama-2-7b", "engine: ", "ipex_llm, static", "num_beams:"]),
        ("run --cfg job", ["name: tiny", "iterations: 10"]),
        ("run batch_size=2 --cfg job warmup=1 --resolve", ["batch_size: 2", "warmup: 1"]),
        ("plan device=fake num_beams=1", ["job 1: tiny (random weights, 9.5 MiB) bf16 eager on fake (16.0 GiB)"]),
        ("doctor --help", ["usage: bench doctor"]),
        ("report --help", ["usage: bench report"]),
    ],
)
def test_what_only_prints_exits_with_0_and_writes_nothing(bench: Bench, line: str, fragments: list[str]):
    done = bench(*line.split(" "))
    assert (done.code, done.stderr) == (0, "")
    for fragment in fragments:
        assert fragment in done.stdout
    assert not list(bench.cwd.iterdir())
    if line == "--help":
        assert bench().code == 2


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("bench ", {"run", "plan", "report", "doctor"}, set()),
        ("bench ru", {"run"}, set()),
        ("bench run it", {"iterations="}, {"warmup="}),
        ("bench run model=ti", {"model=tiny"}, {"model=bloom"}),
        ("bench run device=fake device.p", {"device.pace=", "device.prefill="}, {"device.step="}),
        ("bench plan engine=", {"engine=eager", "engine=static"}, set()),
        ("bench run -m model=tiny precision=", {"precision=fp16"}, set()),
        ("bench doctor ", set(), {"model="}),
        ("bench run --c", set(), {"model="}),
        ("bench run a=[ ", set(), {"usage:"}),
    ],
)
def test_shell_completion(bench: Bench, line: str, offered: set[str], not_offered: set[str]):
    done = bench("-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert (done.code, done.stderr) == (0, "")
    words = set(done.stdout.split())
    assert words >= offered
    assert not words & not_offered


def test_bash_completes_after_the_line_of_the_readme(bench: Bench):
    program = bench.cwd / "bin" / "bench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bench "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(bench run -sc install=bash)"
        complete -p bench
        COMP_LINE="bench run model=ti" COMP_POINT=18 COMP_CWORD=2
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
    """
    env = {**bench.env, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True, cwd=bench.cwd)
    first, second = done.stdout.splitlines()
    assert first.endswith("hydra_bash_completion bench")
    assert second == "model=tiny model=tiny-trained"


def test_composing_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["mine"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    requests("iterations=3")
    with pytest.raises(ConfigError):
        requests("iterations=0")
    with pytest.raises(ConfigError):
        requests("iteration=0")
    assert sys.argv == ["mine"]
    assert os.environ["HYDRA_FULL_ERROR"] == "0"


def test_the_saved_configuration_is_what_was_composed():
    import yaml

    composed = compose.compose(["batch_size=[1,2]", "model=qwen3-4b"])
    assert composed is not None
    saved = yaml.safe_load(composed[1])
    assert saved["batch_size"] == [1, 2]
    assert saved["model"]["id"] == "Qwen/Qwen3-4B"
    swept = compose.compose(["-m", "batch_size=1,2"])
    assert swept is not None
    assert [point["batch_size"] for point in yaml.safe_load(swept[1])] == [1, 2]
