"""Plans: predicted memory by hand, what cannot run and why, jobs; and all of it fast, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import compose
from bench import plan as planning
from bench.cell import Choice
from bench.folder import Folder
from bench.hardware import ACCELERATORS, Hardware
from bench.plan import Plan, plan
from tests.conftest import Bench

pytestmark = pytest.mark.alone

GIB = 2**30
CPU = {"device_name": "a processor", "device_count": 1, "device_memory_bytes": 64 * GIB, "driver": ""}
XPU = {"device_name": "a GPU", "device_count": 2, "device_memory_bytes": 16 * GIB, "driver": "1.6"}
NONE = "this machine has no such device"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, {"cpu": CPU, "fake": CPU})
    monkeypatch.chdir(tmp_path)


def machine(monkeypatch: pytest.MonkeyPatch, devices: dict[str, Any]) -> Hardware:
    """Let plans believe in a machine with these devices."""
    found = Hardware(devices, {kind: NONE for kind in ACCELERATORS if kind not in devices})
    monkeypatch.setattr(planning, "hardware_of", lambda python: found)
    return found


def planned(line: str) -> Plan:
    """The plan of a command line."""
    composed = compose.compose(line.split(" "))
    assert composed is not None
    return plan(composed[0])


@pytest.mark.parametrize(
    ("precision", "bytes_each"), [("fp16", 2), ("bf16", 2), ("fp32", 4)], ids=["fp16", "bf16", "fp32"]
)
def test_memory_of_llama_2_7b_by_hand(precision: str, bytes_each: int):
    """6738415616 parameters; keys and values of 32 layers x 32 heads x 128, for 8 x 4 sequences of 1152 positions."""
    (item,) = planned(f"model=llama-2-7b precision={precision} num_beams=4 batch_size=8 check_memory=false").planned
    assert item.weight_bytes == 6738415616 * bytes_each
    assert item.kv_bytes == 2 * 32 * 32 * 128 * bytes_each * 8 * 4 * 1152
    assert item.total_bytes == item.weight_bytes + item.kv_bytes
    assert item.device_bytes == 64 * GIB


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("model=llama-2-7b precision=fp16 batch_size=1", None),
        ("model=llama-2-7b lengths=4000/96", None),
        ("model=llama-2-7b lengths=4000/97", "4000+97 tokens exceed the model's 4096 positions"),
        ("model=bloom-7b1 lengths=20000/97", None),
        ("model=llama-2-70b precision=fp16", "needs 128.8 GiB per device for weights and KV cache, the device has "
                                             "64.0 GiB; check_memory=false tries it all the same"),
        ("model=llama-2-70b precision=fp16 check_memory=false", None),
        ("model=org/unknown", None),
        ("device=xpu", f"device=xpu: {NONE}"),
        ("device=cuda", f"device=cuda: {NONE}"),
        ("world_size=2", "launcher=local runs one rank; world_size=2 needs launcher=mpirun or torchrun"),
        ("engine=static num_beams=4", None),
    ],
)  # fmt: skip
def test_what_cannot_run_says_why(line: str, reason: str | None):
    beams = "" if "num_beams" in line else " num_beams=1"
    (item,) = planned(line + beams).planned
    assert item.unsupported == reason


def test_unknown_architectures_have_unknown_memory():
    (item,) = planned("model=org/unknown num_beams=1").planned
    assert (item.weight_bytes, item.kv_bytes, item.total_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("devices", "device", "precision"),
    [
        ({"cpu": CPU}, "cpu", "bf16"),
        ({"cpu": CPU, "xpu": XPU}, "xpu", "fp16"),
        ({"cpu": CPU, "cuda": XPU}, "cuda", "fp16"),
        ({"cuda": XPU, "xpu": XPU, "cpu": CPU}, "xpu", "fp16"),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, devices: dict[str, Any], device: str, precision: str):
    assert machine(monkeypatch, devices).best() == device
    (item,) = planned("num_beams=1").planned
    assert item.cell.device == Choice(device)
    assert item.cell.precision == Choice(precision)
    (same,) = planned(f"num_beams=1 device={device} precision={precision}").planned
    assert same.cell.id == item.cell.id
    (other,) = planned("num_beams=1 device=cpu").planned
    assert other.cell.precision == Choice("bf16")


def test_cells_that_several_points_ask_for_are_measured_once():
    cells = planned("-m batch_size=1,[1,2],2 num_beams=1").cells
    assert [cell.workload.batch_size for cell in cells] == [1, 2]
    assert len(planned("-m device=auto,cpu precision=auto,bf16 num_beams=1").cells) == 1


def test_cells_of_different_points_share_a_job():
    found = planned("-m batch_size=1,2 engine=eager,static lengths=1/1,2/2 num_beams=[1,4]")
    assert len(found.cells) == 16
    jobs = found.jobs((cell, 1) for cell in found.cells)
    assert [(len(job.cells), job.cells[0].engine.name, job.launch) for job in jobs] == [
        (8, "eager", 1),
        (8, "static", 1),
    ]
    assert all(len({cell.load_key for cell in job.cells}) == 1 for job in jobs)
    seeds = planned("-m seed=0,1 num_beams=1")
    assert len(seeds.jobs((cell, 1) for cell in seeds.cells)) == 2


def test_launch_one_of_every_job_comes_before_launch_two():
    found = planned("-m engine=eager,static launches=3 num_beams=1")
    wanted = [(cell, launch) for cell in found.cells for launch in (2, 1, 3)]
    order = [(job.launch, job.cells[0].engine.name) for job in found.jobs(wanted)]
    assert order == [(launch, engine) for launch in (1, 2, 3) for engine in ("eager", "static")]


def test_the_default_folder_follows_the_cells(tmp_path: Path):
    one, same, other = (Folder.of(planned(line)).path for line in ("batch_size=1", "batch_size=[1]", "batch_size=2"))
    assert one == same != other
    assert str(one).startswith("results/20")
    assert "-tiny-" in str(one)
    assert "-nightly-" in str(Folder.of(planned("name=nightly")).path)
    assert "-tiny-and-1-more-" in str(Folder.of(planned("-m model=tiny,qwen3-4b")).path)
    assert Folder.of(planned("results=here/there")).path == Path("here/there")
    today = one.name
    earlier = one.with_name("2020-01-01" + today[10:])
    earlier.mkdir(parents=True)  # not finished: taken up again
    assert Folder.of(planned("batch_size=1")).path == earlier
    one.mkdir()
    assert Folder.of(planned("batch_size=1")).path == one


TEN_THOUSAND = [
    "plan", "model=llama-2-7b", "device=cpu", "num_beams=[1,2,3,4]", "batch_size=[1,2,4,8,16]",
    f"lengths=[{','.join(f'{number}/{number}' for number in range(1, 501))}]",
]  # fmt: skip


def test_a_plan_of_ten_thousand_cells_takes_seconds(bench: Bench):
    start = time.monotonic()
    done = bench(*TEN_THOUSAND)
    seconds = time.monotonic() - start
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 10_002
    assert lines[-1].split(",")[0] == "10000 cells in 1 job"
    assert seconds < 3 * 2, "the bar is 3 s; twice that for a busy machine"


def test_help_is_quick(bench: Bench):
    times = []
    for _ in range(3):
        start = time.monotonic()
        assert bench("--help").code == 0
        times.append(time.monotonic() - start)
    assert min(times) < 0.4 * 2, "the bar is 0.4 s; twice that for a busy machine"


def test_the_planning_side_never_imports_torch(bench: Bench):
    code = f"""
import sys
import bench, bench.__main__, bench.compose, bench.plan, bench.table, bench.report, bench.schedule, bench.run
import bench.doctor, bench.folder, bench.hardware, bench.journal, bench.metrics, bench.progress, bench.record
print(sorted({{"torch", "transformers", "numpy", "pandas"}} & set(sys.modules)))
assert bench.__main__.main({TEN_THOUSAND[:2]!r} + ["batch_size=2"]) == 0
assert bench.__main__.main(["run", "device=fake", "lengths=1/1", "iterations=1", "warmup=0", "results=out"]) == 0
print(sorted({{"torch", "transformers", "numpy", "pandas"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=bench.cwd, env=bench.env, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "[]")


def test_probing_a_machine_with_accelerator_nodes_is_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from bench import hardware as module

    node = tmp_path / "dri"
    node.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_NODES", (str(tmp_path / "none"),))
    bare = module.hardware()
    assert set(bare.devices) == {"cpu", "fake"}
    assert bare.unavailable == {"xpu": NONE, "cuda": NONE}
    assert bare.memory("cpu") and bare.memory("xpu") is None
    monkeypatch.setattr(module, "_NODES", (str(node),))
    calls = []

    def fake_probe(python: str | None) -> dict[str, Any]:
        calls.append(python)
        return {"devices": {"xpu": XPU, "cpu": CPU}, "unavailable": {"cuda": "no"}}

    monkeypatch.setattr(module, "probe", fake_probe)
    for _ in range(2):
        assert module.hardware().best() == "xpu"
        assert module.hardware().memory("xpu") == 16 * GIB
    module.hardware("/other/python")
    assert calls == [None, "/other/python"]
    for path in (tmp_path / "cache" / "bench").glob("probe-*.json"):
        json.loads(path.read_text())
        path.write_text("torn")
    assert module.hardware().best() == "xpu"
    assert len(calls) == 3


def test_the_probe_of_this_interpreter():
    from bench.hardware import probe

    found = probe(None)
    assert set(found["devices"]) | set(found["unavailable"]) == {"cpu", "cuda", "fake", "xpu"}
    assert found["devices"]["cpu"]["device_memory_bytes"] > GIB
    assert "torch" in found["versions"]
