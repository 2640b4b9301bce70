"""Commands of every launcher, from what real `mpirun --version` printed; places of ranks; how their samples merge."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import affinity, roll
from bench.cell import Cell, Choice, Generate, Job
from bench.errors import CellError, Unsupported
from bench.launchers import base, mpirun, torchrun
from bench.launchers.mpirun import Flavour, MpiRun, recognise
from bench.measure import Samples
from bench.metrics import skew_max_s, skew_p50_s, total_memory_bytes, values
from bench.models.spec import Model
from bench.ranks import Ranks, merge
from bench.record import Iteration, from_json, to_json
from bench.tensor_parallel.base import check, unsupported

VERSIONS = {
    "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)\n"
    "Copyright 2003-2026, Intel Corporation.\n": Flavour("Intel MPI", "2021.18.1"),
    "HYDRA build details:\n    Version:                                 5.0.2\n"
    "    Release Date:                            Fri Sep 25 20:45:26 UTC 2026\n": Flavour("MPICH", "5.0.2"),
    "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n": Flavour(
        "Open MPI", "5.0.11"
    ),
    "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n": Flavour("Open MPI", "4.1.4"),
}
INTEL, MPICH, OPEN_5, OPEN_4 = VERSIONS.values()
WORKER = (sys.executable, str(Path(base.__file__).parents[1] / "start.py"), "bench.worker", "/job/job.json")


@pytest.mark.parametrize(("text", "expected"), VERSIONS.items(), ids=[str(item) for item in VERSIONS.values()])
def test_versions_are_recognised(text: str, expected: Flavour) -> None:
    assert recognise(text) == expected


def test_another_program_is_no_mpirun() -> None:
    assert recognise("slurm 23.02.6\n") is None


def cell(**changes: Any) -> Cell:
    fields = {"launcher": Choice("mpirun"), "world_size": 4, "tp": "transformers", **changes}
    return Cell(Model("tiny", weights="random"), Generate(8, 2), **fields)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with /usr/bin/mpirun, 8 cores and one free port."""
    monkeypatch.setattr(mpirun.shutil, "which", lambda name, path: f"/usr/bin/{name}")
    monkeypatch.setattr(mpirun, "free_port", lambda: 12345)
    monkeypatch.setattr(torchrun, "free_port", lambda: 12345)
    monkeypatch.setattr(affinity, "places", lambda: [(0, core, core) for core in range(8)])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return monkeypatch


OPEN = ("--tag-output", "--bind-to", "none")


@pytest.mark.parametrize(
    ("found", "settings", "flags"),
    [
        (INTEL, {}, ("-l",)),
        (INTEL, {"hosts": "a,b", "ppn": 2}, ("-l", "-hosts", "a,b", "-ppn", "2")),
        (INTEL, {"arguments": "-bootstrap ssh -iface 'eth 0'"}, ("-l", "-bootstrap", "ssh", "-iface", "eth 0")),
        (MPICH, {}, ("-l", "-bind-to", "none")),
        (MPICH, {"hosts": "a,b", "ppn": 2}, ("-l", "-bind-to", "none", "-hosts", "a,b", "-ppn", "2")),
        (OPEN_4, {}, (*OPEN, "--oversubscribe", "--allow-run-as-root")),
        (OPEN_5, {}, (*OPEN, "--oversubscribe", "--allow-run-as-root")),
        (OPEN_5, {"ppn": 2}, (*OPEN, "--map-by", "ppr:2:node:OVERSUBSCRIBE", "--allow-run-as-root")),
    ],
)
def test_flags_of_each_flavour(
    machine: pytest.MonkeyPatch, found: Flavour, settings: dict[str, Any], flags: tuple[str, ...]
) -> None:
    machine.setattr(mpirun, "flavour", lambda path, search: found)
    command = MpiRun(**settings).command(Job((cell(),)), Path("/job"))
    assert command.argv == ("/usr/bin/mpirun", *flags, "-n", "4", *WORKER)
    assert command.env["MASTER_PORT"] == "12345"
    assert command.env["PYTHONUNBUFFERED"] == ""
    assert ("I_MPI_PIN" in command.env) == (found == INTEL)


def test_open_mpi_names_the_variables_for_other_machines(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(mpirun, "flavour", lambda path, search: OPEN_5)
    machine.setattr(os, "geteuid", lambda: 1000)
    job = Job((cell(env=(("CCL_X", "1"),)),))
    argv = MpiRun(hosts="a,b").command(job, Path("/job")).argv
    assert argv[1:7] == (*OPEN, "--oversubscribe", "--host", "a:2,b:2")
    named = {argv[number + 1] for number, word in enumerate(argv) if word == "-x"}
    assert named == {"OMP_NUM_THREADS", "BENCH_PIN", "PYTHONUNBUFFERED", "CCL_X", "PATH", "MASTER_ADDR", "MASTER_PORT"}


def test_torchrun_says_where_to_meet(machine: pytest.MonkeyPatch) -> None:
    command = torchrun.TorchRun().command(Job((cell(launcher=Choice("torchrun")),)), Path("/job"))
    where = ("--nnodes=1", "--nproc-per-node=4", "--master-addr=127.0.0.1", "--master-port=12345")
    assert command.argv == (sys.executable, "-m", "torch.distributed.run", *where, *WORKER[1:])
    assert command.env["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("settings", "variable", "axis", "expected"),
    [
        ({}, None, (), "2"),  # 8 cores for 4 ranks
        ({"hosts": "a,b", "ppn": 2}, None, (), "4"),
        ({}, "3", (), "3"),
        ({"threads": 5}, "3", (), "5"),
        ({"threads": 5}, "3", (("OMP_NUM_THREADS", "6"),), "6"),
    ],
)
def test_threads_are_always_said(
    machine: pytest.MonkeyPatch, settings: dict[str, Any], variable: str | None, axis: Any, expected: str
) -> None:
    machine.setattr(mpirun, "flavour", lambda path, search: INTEL)
    if variable:
        machine.setenv("OMP_NUM_THREADS", variable)
    command = MpiRun(**settings).command(Job((cell(env=axis),)), Path("/job"))
    assert command.env["OMP_NUM_THREADS"] == expected


def test_the_ranks_meet_on_the_first_machine(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(mpirun, "flavour", lambda path, search: INTEL)
    hosts = tmp_path / "hosts"
    hosts.write_text("# two machines\n\nalpha:2\nbeta:2\n")
    for settings, expected in (
        ({}, "127.0.0.1"),
        ({"hosts": "gamma,delta"}, "gamma"),
        ({"hostfile": str(hosts)}, "alpha"),
    ):
        assert MpiRun(**settings).command(Job((cell(),)), Path("/job")).env["MASTER_ADDR"] == expected


def test_reasons_not_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    assert "pip install 'bench[mpi]'" in (MpiRun().unsupported(cell()) or "")
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/usr/bin/{name}")
    monkeypatch.setattr(mpirun, "flavour", lambda path, search: None)
    assert "none of Intel MPI, MPICH and Open MPI" in (MpiRun().unsupported(cell()) or "")
    monkeypatch.setattr(mpirun, "flavour", lambda path, search: INTEL)
    assert MpiRun(hostfile="nowhere").unsupported(cell()) == "launcher.hostfile=nowhere: no such file"
    assert MpiRun(ppn=3).unsupported(cell()) == "world_size=4 is no multiple of launcher.ppn=3"
    assert MpiRun().unsupported(cell()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tp": "none"}, "world_size=4 needs tp=deepspeed or tp=transformers"),
        ({"world_size": 1}, "tp=transformers splits a model over several ranks: set world_size=2 or more"),
        ({"engine": Choice("static")}, "tp=transformers works with engine=eager only"),
        ({"precision": Choice("woq_int4")}, "tp=transformers splits plain weights only: fp32, bf16, fp16"),
    ],
)
def test_ranks_and_tp_have_to_go_together(changes: dict[str, Any], reason: str) -> None:
    assert unsupported(cell(**changes)) == reason


def test_heads_have_to_divide() -> None:
    shape = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 6,
             "num_key_value_heads": 3, "vocab_size": 64, "intermediate_size": 64}  # fmt: skip
    model = Model("odd", weights="random", architecture=json.dumps(shape))
    assert "6 attention heads of odd" in (unsupported(replace(cell(), model=model)) or "")
    assert "3 key-value heads" in (unsupported(replace(cell(world_size=2), model=model)) or "")
    opt = Model("opt", weights="random", architecture=json.dumps({**shape, "model_type": "opt"}))
    reason = "transformers has no tensor-parallel plan for opt: use tp=deepspeed"
    assert unsupported(replace(cell(world_size=2), model=opt)) == reason


def test_a_model_that_is_not_split_is_unsupported() -> None:
    with pytest.raises(Unsupported, match=r"does not split this model: each rank holds 100% of its layers"):
        check("deepspeed", whole=1000, local=1000, ranks=2)
    assert check("deepspeed", whole=1000, local=505, ranks=2) == ()
    (warning,) = check("deepspeed", whole=1000, local=830, ranks=2)
    assert "each rank holds 83% of its layers" in warning


def test_results_count_machines_and_do_not_name_them() -> None:
    settings = (("hostfile", "/home/me/hosts"), ("hosts", "alpha,beta"), ("ppn", 2))
    both = cell(launcher=Choice("mpirun", settings))
    assert both.axes()["launcher"] == "mpirun(hosts=2,ppn=2)"
    assert "alpha" not in str(both)
    assert both.id != cell(launcher=Choice("mpirun", (("hosts", "alpha,gamma"), ("ppn", 2)))).id


@pytest.mark.parametrize(
    "environment",
    [
        {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
         "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "3"},
        {"PALS_RANKID": "3", "PMI_SIZE": "4", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "2"},
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none",
         "PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
    ],
    ids=["hydra", "openmpi", "pals", "torchrun", "torchrun-in-mpirun"],
)  # fmt: skip
def test_place_from_the_environment(environment: dict[str, str]) -> None:
    assert Ranks.of("mpirun", Path("/job"), environment) == Ranks(3, 4, 1, 2, Path("/job"))
    assert Ranks.of("local", Path("/job"), environment) == Ranks()  # bench itself started under mpirun


def test_a_launcher_that_says_nothing_is_an_error() -> None:
    with pytest.raises(CellError, match="did not say the rank: none of PMI_RANK, "):
        Ranks.of("mpirun", Path("/job"), {})


def test_neighbouring_cores_in_equal_parts() -> None:
    # Two packages of two cores with two threads each, numbered as Linux does: siblings far apart.
    found = sorted((cpu % 4 // 2, cpu % 2, cpu) for cpu in range(8))
    assert [cpu for *_, cpu in affinity.share(found, 0, 2)] == [0, 4, 1, 5]
    assert [cpu for *_, cpu in affinity.share(found, 1, 2)] == [2, 6, 3, 7]
    assert [[cpu for *_, cpu in affinity.share(found, part, 3)] for part in range(3)] == [[0, 4], [1, 5], [2, 6, 3, 7]]
    assert [cpu for *_, cpu in affinity.share(found, 4, 5)] == [2]
    assert affinity.cores(found) == 4


def samples(*ends: float, memory: float, host: str = "a", busy: float = 3.0, own: float = 1.0) -> Samples:
    item = Iteration(ends, ends[-1] + 0.01, "same")
    return Samples((item,), (item, item), memory, memory * 2, 1e-6 * memory, busy, own, host=host)


def test_samples_merge_to_the_slowest_rank(make: Any) -> None:
    merged = merge([samples(0.10, 0.20, 0.32, memory=4.0), samples(0.11, 0.19, 0.30, memory=6.0)])
    assert merged.iterations[0].steps_s == (0.11, 0.20, 0.32)
    assert merged.iterations[0].skew_s == pytest.approx((0.01, 0.01, 0.02))
    assert merged.iterations[0].e2e_s == pytest.approx(0.33)
    assert (merged.peak_memory_bytes, merged.peak_reserved_bytes, merged.total_memory_bytes) == (6.0, 12.0, 10.0)
    assert merged.hook_s == 6e-6
    assert merged.other_cores == 1.0  # three busy, of which the two ranks have one each
    apart = merge([samples(0.1, memory=1.0, busy=2.5), samples(0.1, memory=1.0, host="b", busy=2.0)])
    assert apart.other_cores == 1.5  # the busier of two machines
    record = replace(make.record(), iterations=merged.iterations, total_memory_bytes=merged.total_memory_bytes)
    assert skew_p50_s(record) == pytest.approx(0.01)
    assert skew_max_s(record) == pytest.approx(0.02)
    assert total_memory_bytes(record) == 10.0
    assert from_json(to_json(record)) == record


def test_one_process_has_no_skew(make: Any) -> None:
    alone = samples(0.1, 0.2, memory=1.0)
    assert merge([alone]) is alone
    assert all(math.isnan(values(make.record())[name]) for name in ("skew_p50_s", "skew_max_s", "total_memory_bytes"))


def test_journals_without_skew_are_read(make: Any) -> None:
    line = to_json(make.record())
    for item in (*line["iterations"], *line["warmups"]):
        del item["skew_s"]
    del line["total_memory_bytes"]
    read = from_json(line)
    assert math.isnan(values(read)["skew_p50_s"])  # type: ignore[arg-type]


def test_ranks_with_different_tokens_are_an_error() -> None:
    other = samples(0.1, memory=1.0)
    other = replace(other, iterations=tuple(replace(item, output_hash="other") for item in other.iterations))
    with pytest.raises(CellError, match="the ranks produced different tokens"):
        merge([samples(0.1, memory=1.0), other])


def test_the_roll_names_the_rank_that_broke_the_job(tmp_path: Path) -> None:
    host = os.uname().nodename
    roll.sign(tmp_path, roll.Entry(0, os.getpid(), host))
    roll.sign(tmp_path, roll.Entry(1, os.getpid(), "elsewhere"))
    assert roll.broken(tmp_path) is None
    roll.sign(tmp_path, roll.Entry(1, 1, "elsewhere", roll.FAILED, "oom", "out of memory: 3 GiB"))
    os.utime(tmp_path / "rank.1", ns=(1, 1))
    roll.sign(tmp_path, roll.Entry(2, 1, "elsewhere", roll.FAILED, "error", "Connection closed by peer"))
    assert roll.broken(tmp_path) == roll.Broken(1, "oom", "rank 1: out of memory: 3 GiB")
    roll.sign(tmp_path, roll.Entry(0, 2**22 + 1, host))  # no process has this id
    broken = roll.broken(tmp_path)
    assert broken is not None
    assert (broken.rank, broken.kind, broken.error) == (0, "killed", "rank 0 was killed, or a library ended it,")
    roll.sign(tmp_path, roll.Entry(3, 2**22 + 2, host))
    (tmp_path / "log").write_text(f"=   PID {2**22 + 2} RUNNING AT vm\n")  # MPICH, which killed both
    broken = roll.broken(tmp_path)
    assert broken is not None
    assert broken.error.startswith("ranks 0 and 3 were killed together")


@pytest.mark.parametrize(
    "said",
    [
        "=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   RANK 1 PID 4194306 RUNNING AT vm\n",
        "prterun noticed that process rank 1 with PID 4194306 on node vm exited on\nsignal 9 (Killed).\n",
        "E1120 api.py:874] failed (exitcode: -9) local_rank: 1 (pid: 4194306) of binary: python\n",
    ],
)
def test_the_launcher_names_the_rank_for_which_it_ended_all(tmp_path: Path, said: str) -> None:
    for rank in range(2):
        roll.sign(tmp_path, roll.Entry(rank, 2**22 + 1 + rank, os.uname().nodename))
    assert roll.broken(tmp_path, ended=False) is None  # all are gone, and it will say which was the first
    (tmp_path / "log").write_text(said)
    broken = roll.broken(tmp_path)
    assert broken is not None
    assert broken.rank == 1


def test_the_rank_that_does_not_wait_is_absent(tmp_path: Path) -> None:
    waiting = '  File "site-packages/torch/distributed/distributed_c10d.py", line 1 in all_reduce\n'
    for rank in range(3):
        roll.sign(tmp_path, roll.Entry(rank, 1, "elsewhere"))
        (tmp_path / roll.log_name(rank)).write_text(waiting)
    assert roll.absent(tmp_path) is None
    (tmp_path / roll.log_name(2)).write_text('  File "model.py", line 1 in forward\n')
    assert roll.absent(tmp_path) == 2
