"""Two ranks under real launchers on the CPU: families, nodes, faults, signals. Skipped where there is no mpirun.

Intel MPI and DeepSpeed come from the extras `mpi` and `deepspeed`. A second MPI cannot live in the same environment,
where both would be bin/mpirun: MPICH is installed once into a folder of its own (XDG_CACHE_HOME or ~/.cache).
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.launchers.base import search_path
from bench.launchers.mpirun import flavour
from bench.tensor_parallel import deepspeed
from tests.conftest import ROOT, Bench, Done
from tests.families_rank import FAMILIES

MPIRUN = shutil.which("mpirun", path=search_path(None))
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun: pip install 'bench[mpi]'"),
    pytest.mark.timeout(120),
]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="there is no DeepSpeed: pip install 'bench[deepspeed]'"
)

WITHOUT_PLAN = {"gptj", "opt", "bloom"}
"""Families that transformers cannot split."""
QUIET = {"BENCH_DS_SHM": "0"}
"""DeepSpeed's shared-memory operation takes a minute to build."""
FAKE = ("run", "device=fake", "world_size=2", "tp=transformers", "results=out", "num_beams=1", "lengths=100/3",
        "iterations=2", "warmup=1")  # fmt: skip
TINY = ("run", "device=cpu", "precision=fp32", "results=out", "num_beams=[1,4]", "lengths=16/8", "iterations=1",
        "warmup=1")  # fmt: skip


@pytest.fixture
def ranks(bench: Bench) -> Iterator[Bench]:
    """The command, whose processes can be told from all others, none of which may be left."""
    bench.env["THIS_TEST"] = str(bench.cwd)
    bench.env.update(QUIET)
    yield bench
    assert not alive(bench)


def alive(bench: Bench) -> list[int]:
    """Processes of this test, mpirun's helpers included."""
    wanted = f"THIS_TEST={bench.cwd}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def rows(bench: Bench) -> list[dict[str, str]]:
    with (bench.cwd / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def failures(bench: Bench) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (bench.cwd / "out" / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "failure"]


def rank_pid(bench: Bench, rank: int, phase: str) -> int | None:
    """Process id of a rank once the job is in a phase."""
    journal = bench.cwd / "out" / "journal.jsonl"
    if not journal.exists() or f'"phase":"{phase}"' not in journal.read_text():
        return None
    return int(json.loads((bench.cwd / "out" / "jobs" / "001" / f"rank.{rank}").read_text())["pid"])


def mpi(name: str, package: str) -> str:
    """mpirun of another MPI, in a folder of its own that outlives the session."""
    folder = package.partition(">")[0]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench" / "tests" / folder
    program = cache / "bin" / "mpirun"
    if not program.exists():
        install = [sys.executable, "-m", "pip", "install", "-qI", "--prefix", str(cache), package]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name} cannot be installed: {done.stderr}"
    found = flavour(str(program), search_path(None))
    assert found is not None
    assert found.name == name
    return str(program)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, str]:
    """Hash of the tiny model's tokens by beams, measured in one process."""
    bench = Bench(tmp_path_factory.mktemp("whole"), cache)
    done = bench(*TINY)
    assert done.code == 0, done.stderr
    return {row["num_beams"]: row["output_hash"] for row in rows(bench)}


@pytest.mark.parametrize("tp", ["transformers", pytest.param("deepspeed", marks=needs_deepspeed)])
def test_every_family_split_is_the_same_model(tp: str, tmp_path: Path) -> None:
    """fp32: logits within 1e-4 of one process, greedy and beam-4 tokens equal."""
    out = tmp_path / "found.json"
    env = {**os.environ, **QUIET, "PATH": search_path(None), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    script = Path(__file__).with_name("families_rank.py")
    command = [str(MPIRUN), "-n", "2", sys.executable, str(script), tp, str(out), *FAMILIES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    logs = "".join(log.read_text() for log in tmp_path.glob("log.*"))
    assert out.exists(), done.stdout + done.stderr + logs
    found = json.loads(out.read_text())
    assert found.keys() == FAMILIES.keys()
    for family, result in found.items():
        if tp == "transformers" and family in WITHOUT_PLAN:
            assert result == {"unsupported": f"transformers has no tensor-parallel plan for {family}: use tp=deepspeed"}
            continue
        assert result["difference"] <= 1e-4, (family, result)
        assert result["greedy"], (family, result)
        assert result["beams"], (family, result)
        assert 0.49 <= result["share"] <= 0.56, (family, result)  # half of every matrix; norms are whole


def test_the_readme_says_which_families_work() -> None:
    table = [line for line in (ROOT / "README.md").read_text().splitlines() if line.count("|") == 4]
    for family in FAMILIES:
        assert f"| {family} | ✓ | {'–' if family in WITHOUT_PLAN else '✓'} |" in table


def test_two_ranks_give_the_tokens_of_one_process(ranks: Bench, whole: dict[str, str]) -> None:
    """Two nodes, as Intel MPI sees it: two names of this machine."""
    nodes = (f"launcher.hosts='{platform.node()},localhost'", "launcher.ppn=1")
    done = ranks(*TINY, "launcher=mpirun", "world_size=2", "tp=transformers", *nodes)
    assert done.code == 0, done.stderr
    assert {row["num_beams"]: row["output_hash"] for row in rows(ranks)} == whole
    for row in rows(ranks):
        assert row["launcher"] == "mpirun(hosts=2,ppn=1)"
        assert 0 < float(row["skew_p50_s"]) <= float(row["skew_max_s"])
        peak = float(row["peak_memory_bytes"])
        assert peak < float(row["total_memory_bytes"]) <= 2 * peak
        assert row["log"] == "jobs/001/log.0"
    places = [json.loads((ranks.cwd / "out/jobs/001" / f"rank.{rank}").read_text()) for rank in range(2)]
    assert [place["state"] for place in places] == ["done", "done"]
    assert len(list((ranks.cwd / "out" / "jobs").iterdir())) == 1  # one launch for both cells


@pytest.mark.parametrize(("name", "package"), [("MPICH", "mpich>=4,<6"), ("Open MPI", "openmpi>=5,<6")])
def test_other_mpis_give_the_same_tokens(ranks: Bench, whole: dict[str, str], name: str, package: str) -> None:
    done = ranks(*TINY, "launcher=mpirun", f"launcher.mpirun={mpi(name, package)}", "world_size=2", "tp=transformers")
    assert done.code == 0, done.stderr
    assert {row["num_beams"]: row["output_hash"] for row in rows(ranks)} == whole


@needs_deepspeed
def test_the_script_needs_no_arguments(ranks: Bench, whole: dict[str, str]) -> None:
    script = {**os.environ, **ranks.env, "BENCH_PYTHON": sys.executable, "beam": "1 4", "input": "16", "output": "8",
              "iter": "1", "warmup": "1", "dtype": "float32", "device": "cpu"}  # fmt: skip
    command = [str(ROOT / "run_benchmark_ds.sh"), "results=out"]
    done = subprocess.run(command, cwd=ranks.cwd, env=script, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert {row["num_beams"]: row["output_hash"] for row in rows(ranks)} == whole
    assert {(row["tp"], row["launcher"], row["world_size"]) for row in rows(ranks)} == {("deepspeed", "mpirun", "2")}


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("error", "error", "rank 1: ValueError: a fault was asked for"),
        ("exit", "error", "rank 1: a library called exit(0)"),
        ("hang", "timeout", "(the other ranks waited for rank 1)"),
    ],
)
def test_a_rank_that_fails_costs_one_cell(ranks: Bench, fault: str, kind: str, message: str) -> None:
    env = {"BENCH_FAKE_FAULT": f"{fault}:4@1"}
    start = time.monotonic()
    done = ranks(*FAKE, "batch_size=[1,4,2]", "launcher=mpirun", "timeout_s=4", env=env)
    assert time.monotonic() - start < (10 if kind != "timeout" else 14) + 10  # two starts of up to 5 s each
    assert done.code == 1
    assert [row["status"] for row in rows(ranks)] == ["ok", kind, "ok"]
    (failure,) = failures(ranks)
    assert message in failure["error"]
    assert failure["log"] == "jobs/001/log.1"
    assert failure["log_tail"]
    assert sorted(path.name for path in (ranks.cwd / "out" / "jobs").iterdir()) == ["001", "002"]


def faulty(ranks: Bench, wait_for: Callable[..., Any], number: int, *arguments: str) -> tuple[Done, float]:
    """A run whose rank 1 gets a signal while it measures; how it ended, and how long that took."""
    process = ranks.start(*TINY, "iterations=100000", "num_beams=1", "world_size=2", "tp=transformers", *arguments)
    pid = wait_for(lambda: rank_pid(ranks, 1, "measuring"))
    os.kill(pid, number)
    start = time.monotonic()
    return ranks.end(process), time.monotonic() - start


@pytest.mark.parametrize("launcher", ["mpirun", "torchrun"])
def test_a_rank_that_is_killed_ends_the_job(ranks: Bench, wait_for: Callable[..., Any], launcher: str) -> None:
    done, seconds = faulty(ranks, wait_for, signal.SIGKILL, f"launcher={launcher}")
    assert seconds < 10
    assert done.code == 1
    (failure,) = failures(ranks)
    assert failure["status"] == "killed"
    assert failure["error"].startswith("rank 1 was killed")
    assert failure["log"] == "jobs/001/log.1"


def test_a_rank_that_hangs_ends_the_job(ranks: Bench, wait_for: Callable[..., Any]) -> None:
    """Stopped in the middle of a model, so that the other rank waits inside one of its layers."""
    done, seconds = faulty(ranks, wait_for, signal.SIGSTOP, "launcher=mpirun", "timeout_s=6")
    assert seconds < 6 + 10
    assert done.code == 1
    (failure,) = failures(ranks)
    assert failure["status"] == "timeout"
    assert "(the other ranks waited for rank 1)" in failure["error"]


def test_ctrl_c_ends_all_ranks(ranks: Bench, wait_for: Callable[..., Any]) -> None:
    done, seconds = faulty_parent(ranks, wait_for, signal.SIGINT)
    assert done.code == 130
    assert seconds < 10
    assert not alive(ranks)


def test_ranks_do_not_outlive_a_killed_parent(ranks: Bench, wait_for: Callable[..., Any]) -> None:
    done, _ = faulty_parent(ranks, wait_for, signal.SIGKILL)
    assert done.code == -signal.SIGKILL
    wait_for(lambda: not alive(ranks), 10)


def faulty_parent(ranks: Bench, wait_for: Callable[..., Any], number: int) -> tuple[Done, float]:
    """A run that gets a signal itself while it measures."""
    process = ranks.start(*FAKE, "launcher=mpirun", "device.pace=1", "lengths=1/200", "iterations=100")
    wait_for(lambda: rank_pid(ranks, 1, "measuring"))
    start = time.monotonic()
    process.send_signal(number)
    return ranks.end(process), time.monotonic() - start


def test_a_launcher_that_cannot_start_is_one_failure(ranks: Bench) -> None:
    done = ranks(*FAKE, "batch_size=[1,4]", "launcher=mpirun", "launcher.arguments=--no-such-flag")
    assert done.code == 1
    assert [row["status"] for row in rows(ranks)] == ["load", "load"]
    assert "mpirun ended with status 255 while starting" in rows(ranks)[0]["error"]


@needs_deepspeed
@pytest.mark.parametrize(
    ("shared", "told", "accelerator", "nodes", "warns"),
    [
        (False, None, "cpu", 1, True),
        (True, None, "cpu", 1, False),
        (False, "0", "cpu", 1, False),
        (False, None, "cuda", 1, False),
        (False, None, "cpu", 2, False),
    ],
)
def test_ranks_that_could_share_memory_and_do_not_are_in_the_record(
    monkeypatch: pytest.MonkeyPatch, shared: bool, told: str | None, accelerator: str, nodes: int, warns: bool
) -> None:
    """As `prepare` leaves DeepSpeed when its operation cannot be built."""
    operations = types.SimpleNamespace(__compatible_ops__={"deepspeed_shm_comm": shared})
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(ops=operations))
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    monkeypatch.setenv("LOCAL_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", str(2 * nodes))
    monkeypatch.delenv(deepspeed.SHARED_MEMORY, raising=False)
    if told is not None:
        monkeypatch.setenv(deepspeed.SHARED_MEMORY, told)
    said = deepspeed._by_gloo()
    assert [line.partition(":")[0].partition(", so")[0] for line in said] == (
        ["DeepSpeed's all-reduce through shared memory could not be built"] if warns else []
    )


def test_a_tied_output_layer_is_split_like_another(ranks: Bench):
    arguments = ("run", "model=tiny-trained", "device=cpu", "precision=fp32", "num_beams=[1,4]", "lengths=16/8",
                 "iterations=1", "warmup=1")  # fmt: skip
    assert ranks(*arguments, "results=one").code == 0
    done = ranks(*arguments, "results=out", "launcher=mpirun", "world_size=2", "tp=deepspeed")
    assert done.code == 0, done.stderr
    with (ranks.cwd / "one" / "results.csv").open() as file:
        alone = [row["output_hash"] for row in csv.DictReader(file)]
    assert [row["output_hash"] for row in rows(ranks)] == alone
