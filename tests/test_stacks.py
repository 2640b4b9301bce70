"""Stacks: configuration, what the commands say of them, and making environments, here of two packages of our own."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import compose, install, plan
from bench.cell import Cell, Choice, Job
from bench.engines.base import engines
from bench.errors import ConfigError
from bench.install import create, health
from bench.launchers.base import variables
from bench.launchers.local import Local
from bench.stacks import MARKER, Stack, stacks

from .conftest import ROOT, Bench, make_cell

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
RUN = ("run", "device=fake", "num_beams=1", "lengths=10/2", "results=out")


def rows(bench: Bench) -> list[dict[str, str]]:
    """results.csv, as text."""
    with (bench.cwd / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def wheel(folder: Path, name: str, version: str, code: str = "") -> None:
    """A wheel of one module, which is all that pip needs."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", code)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def small(torch: str = "bench_torch==1.0", package: str = "bench_library==2.0", **changes: Any) -> Stack:
    """A stack of two packages that do nothing."""
    fields: dict[str, Any] = {"torch": {"cpu": (torch,)}, "packages": {"cpu": (package,)}}
    return Stack(**{"name": "small", "interpreters": (VERSION,), "imports": ("bench_library",), **fields, **changes})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the packages there are, and a place for environments."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("BENCH_STACKS", str(tmp_path / "stacks"))
    monkeypatch.setenv("BENCH_STACK_PYTHON", sys.executable)
    monkeypatch.delenv("BENCH_STACK_INDEX", raising=False)
    wheel(tmp_path / "wheels", "bench_torch", "1.0")
    return tmp_path / "wheels"


# -- the YAMLs ---------------------------------------------------------------------------------------------------------


def test_every_yaml_pins_what_it_needs_for_the_processor():
    found = stacks()
    assert next(iter(found)) == "current"
    for name, stack in found.items():
        path = ROOT / "configs" / "stack" / f"{name}.yaml"
        assert path.is_file() and yaml.safe_load(path.read_text())["name"] == name
        if name == "current":
            continue
        assert stack.interpreters and stack.imports
        for pins in (stack.torch["cpu"], stack.packages["cpu"]):
            assert all("==" in pin for pin in pins if pin.startswith(("torch", "transformers", "ipex", "neural")))
    assert found["ipex-2.8"].torch["cpu"] == ("torch==2.8.0",)
    assert "transformers==4.37.0" in found["ipex-llm-2.2"].packages["cpu"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "x", "pins": []}, "stack=x has no key pins"),
        ({"python": "/x"}, "stack=None needs a name"),
        ({"name": "x", "env": {"A": True}}, "stack.env={'A': True}: texts and numbers are needed"),
    ],
)
def test_a_yaml_that_is_none(node: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        Stack.of(node)
    assert message in str(caught.value)


# -- what a user sees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan -m stack=current,ipex-2.8", "stack=ipex-2.8 has not been created here: run bench stack create ipex-2.8"),
        ("run stack=ipx-2.8", "unknown stack 'ipx-2.8'. Did you mean ipex-2.8"),
        ("run stack=[current,ipex-2.8]", "stack takes one value: sweep several with -m stack=current,ipex-2.8"),
        ("run stack.pyton=/x", "unknown key in stack 'pyton'. Did you mean python?"),
        ("run stack=ipex-2.8 stack.python=/x", "stack.python=/x is not an interpreter: no such file"),
        ("run ~stack", "stack has been removed: give it a value with stack="),
        ("stack crate x", "unknown command of bench stack 'crate'. Did you mean create?"),
        ("stack create", "bench stack create needs a name: ipex-2.8, ipex-llm-2.2"),
        ("stack create ipex", "unknown stack 'ipex'. Did you mean ipex-2.8"),
        ("stack create current", "stack=current is the interpreter that runs bench: there is nothing to create"),
        ("stack create ipex-2.8 --forse", "bench stack create has no option --forse: see bench stack --help"),
        ("stack create ipex-2.8 --device cuda", "stack=ipex-2.8 has no builds for cuda: cpu, xpu"),
        ("stack list all", "bench stack list has no argument all: see bench stack --help"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BENCH_STACKS", str(tmp_path))
    command, *arguments = line.split()
    with pytest.raises(ConfigError) as caught:
        install.main(arguments) if command == "stack" else compose.compose(arguments)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_stack_that_was_not_created(bench: Bench):
    done = bench(*RUN, "-m", "stack=current,ipex-2.8")
    assert (done.code, done.stdout) == (2, "")
    assert done.line == "bench: stack=ipex-2.8 has not been created here: run bench stack create ipex-2.8"
    assert not list(bench.cwd.iterdir())


def test_list_and_doctor_say_what_is_missing_or_half_made(bench: Bench):
    env = {"BENCH_STACKS": str(bench.cwd / "stacks")}
    (bench.cwd / "stacks" / "ipex-2.8" / "bin").mkdir(parents=True)
    for done in (bench("stack", "list", env=env), bench("doctor", env=env)):
        assert done.code == 0
        assert "  current      yes  the interpreter that runs bench\n" in done.stdout
        assert "  ipex-2.8     no   is not finished: run bench stack create ipex-2.8\n" in done.stdout
        assert "  ipex-llm-2.2 no   has not been created here: run bench stack create ipex-llm-2.2\n" in done.stdout
    done = bench(*RUN, "stack=ipex-2.8", env=env)
    assert done.line == "bench: stack=ipex-2.8 is not finished: run bench stack create ipex-2.8"


def test_several_stacks_are_one_table(bench: Bench):
    """The environment is a real one with nothing in it, which is all that the fake device needs."""
    folder = bench.cwd / "stacks" / "ipex-2.8"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (folder / MARKER).write_text(json.dumps({"recipe": "", "kind": "cpu", "versions": {}}))
    env = {"BENCH_STACKS": str(folder.parent)}
    done = bench(*RUN, "-m", "stack=current,ipex-2.8", env=env)
    assert done.code == 0, done.stderr
    assert [row["stack"] for row in rows(bench)] == ["current", "ipex-2.8"]
    assert [bool(row["pandas"]) if "pandas" in row else row["status"] for row in rows(bench)] == ["ok", "ok"]
    assert len({row["cell"] for row in rows(bench)}) == 2
    done = bench("stack", "list", env=env)
    assert "  ipex-2.8     no   does not work: ModuleNotFoundError: No module named 'torch'\n" in done.stdout


def test_a_stack_sets_variables_and_the_env_axis_wins(bench: Bench):
    done = bench(*RUN, "stack.env.OMP_NUM_THREADS=3", "stack.env.SYCL_X=1", "env.SYCL_X=[2,4]")
    assert done.code == 0, done.stderr
    found = [(row["env"], row["variables"]) for row in rows(bench)]
    assert found == [(f"SYCL_X={value}", f"OMP_NUM_THREADS=3 SYCL_X={value}") for value in (2, 4)]
    again = bench(*RUN, "stack.env.OMP_NUM_THREADS=1", "env.SYCL_X=[2]")
    assert again.code == 0 and len(rows(bench)) == 3, "another variable of the stack is another cell"


# -- making environments -----------------------------------------------------------------------------------------------


def test_create_goes_on_where_it_was_and_says_what_there_is(
    index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    stack = small()
    with pytest.raises(ConfigError) as caught:  # the second package is not there
        create(stack, "cpu")
    message = str(caught.value)
    assert message.startswith("stack=small could not be made, 1 packages and what they need: ERROR: No matching distri")
    assert message.endswith(f"(log: {stack.folder}/install.log); the same command goes on from here")
    assert stack.state() == "unfinished"
    assert health(stack) == (False, "is not finished: run bench stack create small")

    wheel(index, "bench_library", "2.0")
    create(stack, "cpu")
    assert stack.state() == "ready"
    assert health(stack) == (True, f"python {sys.version.split()[0]} bench_torch 1.0 bench_library 2.0")
    assert stack.interpreter() == str(stack.folder / "bin" / "python")
    capfd.readouterr()
    create(stack, "cpu")
    assert capfd.readouterr().err == f"small: is there already, in {stack.folder}; --force makes it anew\n"

    wheel(index, "bench_library", "2.1")
    changed = small(package="bench_library==2.1")
    assert health(changed)[1].endswith("bench_library 2.0; its pins have changed since: bench stack create small")
    stray = stack.folder / "stray"
    stray.touch()
    create(changed, "cpu", force=True)
    assert health(changed) == (True, f"python {sys.version.split()[0]} bench_torch 1.0 bench_library 2.1")
    assert not stray.exists()


def test_what_cannot_be_imported_is_not_finished(index: Path):
    wheel(index, "bench_library", "2.0", code="import there_is_no_such_module")
    with pytest.raises(ConfigError, match=r"stack=small does not work: ModuleNotFoundError: .*there_is_no_such_module"):
        create(small(), "cpu")
    assert small().state() == "unfinished"


def test_two_creations_at_once(index: Path):
    stack = small()
    stack.folder.parent.mkdir()
    handle = os.open(stack.folder.parent / ".small.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="another bench stack create small is running"):
            create(stack, "cpu")
    finally:
        os.close(handle)


def test_an_interpreter_of_another_version(index: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=rf"is Python {VERSION}: stack=small needs 3\.2 or 3\.1$"):
        create(small(interpreters=("3.2", "3.1")), "cpu")
    monkeypatch.setenv("BENCH_STACK_PYTHON", "/bin/false")
    with pytest.raises(ConfigError, match="BENCH_STACK_PYTHON=/bin/false cannot be run"):
        create(small(), "cpu")


# -- what engines ask of the worker ------------------------------------------------------------------------------------


def on(device: str, engine: str, *settings: tuple[str, str], **changes: Any) -> Cell:
    return make_cell(device=Choice(device), engine=Choice(engine, settings), **changes)


@pytest.mark.parametrize("engine", ["ipex", "ipex_llm"])
def test_variables_of_an_engine(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS", "ENABLE_SDP_FUSION", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    assert variables(on("cpu", engine, ("tcmalloc", "never"))) == {}
    gpu = {"SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS": "1", "ENABLE_SDP_FUSION": "1"}
    cell = on("xpu", engine, ("tcmalloc", "never"))
    assert variables(cell) == gpu
    assert Local().command(Job((cell,)), tmp_path).env == gpu
    monkeypatch.setenv("ENABLE_SDP_FUSION", "0")
    stack = (("SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS", "0"),)
    cell = on("xpu", engine, ("tcmalloc", "never"), stack_env=stack, env=(("X", "1"),))
    assert variables(cell) == {**dict(stack), "X": "1"}, "what the user or the stack set stays"


def test_tcmalloc_is_preloaded_and_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """A library of that name, with nothing in it but what the C library has, too."""
    found = subprocess.run(
        [sys.executable, "-c", "import ctypes.util, subprocess; print(ctypes.util.find_library('m'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    folders = [Path(name) for name in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64")]
    real = next((folder / found for folder in folders if (folder / found).is_file()), None)
    if real is None:
        pytest.skip("no shared library to play tcmalloc")
    (bench.cwd / "lib").mkdir()
    (bench.cwd / "lib" / "libtcmalloc.so").write_bytes(real.read_bytes())
    env = {"CONDA_PREFIX": str(bench.cwd)}
    done = bench(*RUN, "engine=ipex", "engine.tcmalloc=always", env=env)
    assert done.code == 0, done.stderr
    assert "LD_PRELOAD=<path>/libtcmalloc.so" in rows(bench)[0]["variables"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            "engine=ipex_llm precision=fp6",
            "ipex-llm has fp6 on Intel GPUs only: on CPU its kernels abort the proce",
        ),
        ("engine=ipex_llm precision=mixed_fp4", "on CPU its kernels abort the process"),
        ("precision=mixed_fp8 precision.provider=ipex_llm", "on CPU its kernels abort the process"),
        ("engine=ipex_llm precision=nf4", "ipex-llm has nf4 on Intel GPUs only"),
        ("engine=ipex_llm precision=fp8", "ipex-llm has fp8 on Intel GPUs only"),
        ("engine=ipex_llm precision=fp16", "ipex-llm has fp16 on Intel GPUs only: precision=bf16"),
        ("engine=ipex_llm precision=fp32", "ipex-llm has no fp32: precision=bf16, or engine=eager"),
        ("engine=ipex_llm precision=sym_int4 precision.group_size=32", "its blocks have 64 weights"),
        ("engine=ipex_llm engine.api=from_pretrained", "reads real weights: engine.api=optimize_model"),
        ("engine=ipex_llm engine.speculative=true", "mixes bf16 and fp32 on CPU without IPEX, which fails"),
        (
            "engine=ipex_llm engine.speculative=true precision=sym_int8 precision.compute_dtype=fp32 batch_size=2",
            "engine.speculative=true takes one prompt: batch_size=1",
        ),
        ("engine=ipex engine.compute_engine=xetla", "engine.compute_engine is for Intel GPUs"),
        ("engine=ipex precision=nf4", "its kernels have 4-bit integers only, no nf4"),
        ("engine=ipex precision=woq_int4 precision.compute_dtype=fp16", "it computes in bf16 or fp32"),
        (
            "engine=ipex engine.deployment_mode=true model=tiny-trained workload=accuracy accuracy.task=passages",
            "engine.deployment_mode=true traces the model for generate",
        ),
        ("engine=ipex tp=transformers world_size=2 launcher=torchrun", "engine=ipex runs one rank here: tp=none"),
    ],
)
def test_what_is_refused_before_anything_is_launched(overrides: str, reason: str):
    precision = () if "precision=" in overrides else ("precision=bf16",)
    composed = compose.compose(["device=cpu", "num_beams=1", *precision, *overrides.split()])
    assert composed
    (item,) = plan.plan(composed[0]).planned
    assert item.unsupported and reason in item.unsupported


@pytest.mark.parametrize(("engine", "library"), [("ipex", "ipex-2.8"), ("ipex_llm", "ipex-llm-2.2")])
def test_without_the_library_a_cell_says_which_stack_has_it(bench: Bench, engine: str, library: str):
    done = bench("run", "device=cpu", f"engine={engine}", "num_beams=1", "lengths=8/2", "results=out", "precision=bf16")
    assert done.code == 1
    (row,) = rows(bench)
    assert row["status"] == "unsupported"
    assert row["error"].startswith(f"engine={engine} needs ") and row["error"].endswith(f": stack={library}")


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("os.abort()", "killed", "the worker was killed by SIGABRT while loading"),
        ("sys.exit(0)", "load", "a library called exit(0) while loading the model"),
    ],
)
def test_a_library_that_ends_the_process_gives_a_failure(bench: Bench, code: str, status: str, error: str):
    """As ipex-llm does on CPU with fp6, and neural-compressor with a saved model that does not suit it."""
    folder = bench.cwd / "model"
    folder.mkdir()
    (folder / "code.py").write_text(f"import os, sys\n{code}\n")
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    remote = "model.trust_remote_code=true"
    work = ("num_beams=1", "lengths=8/2", "precision=bf16", "check_memory=false", "results=out")
    done = bench("run", f"model={folder}", remote, "device=cpu", *work, env={"HF_MODULES_CACHE": str(bench.cwd / "hf")})
    assert done.code == 1
    (row,) = rows(bench)
    assert (row["status"], row["error"]) == (status, error)


def test_every_engine_answers_for_every_device():
    for name, cls in engines.items():
        for device in ("cpu", "cuda", "xpu"):
            reason = cls().unsupported(on(device, name))
            assert reason is None or "\n" not in reason
