"""Contracts: every registered extension fulfils its own, torch has what the accelerators call, peaks are cached."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import peaks
from bench.cell import Cell, Choice, Generate, Job
from bench.config import AXES, settings_of
from bench.devices.accelerator import Accelerator
from bench.devices.base import Device, devices
from bench.devices.cpu import Cpu, total_memory
from bench.devices.cuda import Cuda
from bench.devices.datasheet import DATASHEETS, lookup
from bench.devices.fake import FakeDevice
from bench.devices.xpu import Xpu
from bench.errors import ConfigError
from bench.launchers.base import Command
from bench.measure import hook_cost
from bench.models.spec import Model
from bench.precisions.base import DTYPE_BYTES
from bench.registry import Registry
from bench.schema import FINGERPRINT
from tests.conftest import ROOT

pytestmark = pytest.mark.alone

REGISTERED = [(axis, name) for axis, registry in AXES.items() for name in registry.names()]
CELL = Cell(model=Model("tiny", weights="random"), workload=Generate(8, 4))


def cell_with(axis: str, name: str) -> Cell:
    """A small cell with one axis set."""
    return dataclasses.replace(CELL, **{axis: Choice(name)})


@pytest.mark.parametrize(("axis", "name"), REGISTERED)
def test_every_extension_fulfils_its_contract(axis: str, name: str, tmp_path: Path):
    cls = AXES[axis].get(name)
    assert (cls.__doc__ or "").strip(), "bench doctor shows the first line"
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    for item, default in settings_of(cls):
        assert default is None or isinstance(default, (str, int, float, bool)), f"{item.name} cannot be in a cell"
    extension = cls()
    assert extension == cls()
    cell = cell_with(axis, name)
    if axis != "device":
        reason = extension.unsupported(cell)
        assert reason is None or (reason and "\n" not in reason)
    if axis == "engine":
        assert isinstance(extension.compiles(cell), bool)
    elif axis == "precision":
        assert extension.bytes_per_parameter > 0
        assert extension.dtype in DTYPE_BYTES
        assert isinstance(extension.load_kwargs("cpu"), dict)
    elif axis == "launcher" and name == "mpirun" and reason:
        assert "pip install 'bench[mpi]'" in reason  # nothing to start here; test_launchers.py has its commands
    elif axis == "launcher":
        command = extension.command(Job((cell,), 1), tmp_path)
        assert isinstance(command, Command)
        assert all(isinstance(word, str) for word in command.argv)
        assert str(tmp_path / "job.json") in command.argv
    else:
        assert extension.clock in ("perf_counter", "event")
        reason = extension.unavailable()
        assert reason is None or (f"device={name}" in reason and "bench doctor" in reason and "\n" not in reason)
        if reason is None:
            _device_contract(extension)


def _device_contract(device: Any) -> None:
    columns = {"device_name", "device_count", "device_memory_bytes", "driver"}
    assert set(device.info()) == columns <= {column.name for column in FINGERPRINT}
    assert device.info()["device_memory_bytes"] > 2**20
    device.synchronize()
    marks = [device.mark() for _ in range(4)]
    device.synchronize()
    elapsed = device.elapsed(marks)
    assert len(elapsed) == 3
    assert elapsed == sorted(elapsed) and elapsed[0] >= 0
    device.reset_peak_memory()
    used, reserved = device.peak_memory()
    assert used >= 0
    assert reserved >= used or math.isnan(reserved)
    device.release_memory()
    assert device.out_of_memory(MemoryError())
    assert not device.out_of_memory(ValueError("out of luck"))
    assert 0 < hook_cost(device, calls=20) < 0.01


def test_asking_extensions_needs_no_torch():
    code = """
import sys
from bench.cell import Cell, Choice, Generate
from bench.config import AXES
from bench.models.spec import Model
for axis, registry in AXES.items():
    for name, cls in registry.items():
        cell = Cell(model=Model("m"), workload=Generate(1, 1), **{axis: Choice(name)})
        if axis != "device":
            cls().unsupported(cell)
        if axis == "engine":
            cls().compiles(cell)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_registry_names_what_it_knows():
    with pytest.raises(ConfigError, match=r"unknown device 'gpu'\. Did you mean xpu or cpu\?"):
        devices.get("gpu")
    registry: Registry[Any] = Registry("thing", "bench.devices")
    registry("a")(int)
    with pytest.raises(ValueError, match="thing 'a' is registered twice"):
        registry("a")(float)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("accelerator.synchronize", []),
        ("accelerator.current_accelerator", []),
        ("accelerator.device_count", []),
        ("accelerator.current_device_index", []),
        ("get_device_module", ["xpu"]),
        ("xpu.max_memory_allocated", []),
        ("xpu.memory_allocated", []),
        ("xpu.max_memory_reserved", []),
        ("xpu.reset_peak_memory_stats", []),
        ("xpu.empty_cache", []),
        ("xpu.get_device_properties", [0]),
        ("cuda.max_memory_allocated", []),
        ("cuda.memory_allocated", []),
        ("cuda.max_memory_reserved", []),
        ("cuda.reset_peak_memory_stats", []),
        ("cuda.empty_cache", []),
        ("cuda.get_device_properties", [0]),
        ("compiler.reset", []),
    ],
)
def test_torch_has_what_the_accelerators_call(function: str, arguments: list[Any]):
    found: Any = torch
    for part in function.split("."):
        found = getattr(found, part)
    inspect.signature(found).bind(*arguments)


def test_torch_has_events_with_times_and_its_own_memory_error():
    for method in ("record", "elapsed_time", "synchronize"):
        assert callable(getattr(torch.Event, method))
    assert "enable_timing" in (torch.Event.__doc__ or "")
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert torch.get_device_module("xpu") is torch.xpu
    assert torch.get_device_module("cuda") is torch.cuda


class StubEvent:
    """An event that happens 2 ms after the one before."""

    count = 0

    def __init__(self, device: str, enable_timing: bool) -> None:
        assert (device, enable_timing) == ("xpu", True)

    def record(self) -> None:
        StubEvent.count += 1
        self.time = 2.0 * StubEvent.count

    def elapsed_time(self, other: StubEvent) -> float:
        return other.time - self.time


def test_an_accelerator_without_the_hardware(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    properties = types.SimpleNamespace(name="Intel(R) Arc(TM) B580 Graphics", total_memory=12 * 2**30,
                                       driver_version="1.6.33")  # fmt: skip
    module = types.SimpleNamespace(
        reset_peak_memory_stats=lambda: calls.append("reset"),
        max_memory_allocated=lambda: 5,
        max_memory_reserved=lambda: 8,
        memory_allocated=lambda: 4,
        empty_cache=lambda: calls.append("empty"),
        get_device_properties=lambda index: properties if index == 1 else None,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module if kind == "xpu" else None)
    monkeypatch.setattr(torch.xpu, "get_device_properties", module.get_device_properties)
    monkeypatch.setattr(torch, "Event", StubEvent)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: calls.append("synchronize"))
    device = Xpu()
    assert device.unavailable() is None
    calls.clear()  # it has tried the events
    assert device.elapsed([device.mark() for _ in range(4)]) == pytest.approx([0.002, 0.004, 0.006])
    device.synchronize()
    device.reset_peak_memory()
    device.release_memory()
    assert calls == ["synchronize", "reset", "empty"]
    assert device.peak_memory() == (5.0, 8.0)
    assert device.memory_in_use() == 4.0
    assert device.info() == {
        "device_name": "Intel(R) Arc(TM) B580 Graphics",
        "device_count": 2,
        "device_memory_bytes": 12 * 2**30,
        "driver": "1.6.33",
    }
    reason = Cuda().unavailable()
    assert reason is not None
    assert f"device=cuda: torch {torch.__version__} finds xpu here." in reason

    def untimed(self: StubEvent, other: StubEvent) -> float:
        raise RuntimeError("elapsed_time of XPUEvent requires a newer compiler\nand more")

    monkeypatch.setattr(StubEvent, "elapsed_time", untimed)
    assert "(elapsed_time of XPUEvent requires a newer compiler): install a newer one" in (device.unavailable() or "")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    assert "finds no accelerator here" in (device.unavailable() or "")


@pytest.mark.parametrize("device", [Cuda(), Xpu()])
def test_torch_has_graphs_of_the_accelerators(device: Accelerator):
    kind = getattr(getattr(torch, device.torch_type), device.graph)
    inspect.signature(kind)
    for method in ("capture_begin", "capture_end", "replay"):
        inspect.signature(getattr(kind, method)).bind(None)
    for function, arguments in (("current_stream", ()), ("set_stream", (None,))):
        inspect.signature(getattr(torch.accelerator, function)).bind(*arguments)


def test_work_is_captured_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    class Graph:
        def capture_begin(self) -> None:
            calls.append("begin")

        def capture_end(self) -> None:
            calls.append("end")

        def replay(self) -> None:
            calls.append("replay")

    module = types.SimpleNamespace(XPUGraph=Graph)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module if kind == "xpu" else None)
    monkeypatch.setattr(torch, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: "usual stream")
    monkeypatch.setattr(torch.accelerator, "set_stream", calls.append)
    replay = Xpu().capture(lambda: calls.append("work"))
    assert replay is not None and Xpu().has_graphs()
    replay()
    around = ["synchronize", "stream of xpu", "begin", "work", "end", "usual stream"]
    assert calls == [*around, "replay"]

    calls.clear()
    with pytest.raises(RuntimeError, match="not permitted"):
        Xpu().capture(lambda: (_ for _ in ()).throw(RuntimeError("not permitted")))
    assert calls == [call for call in around if call != "work"]

    del module.XPUGraph
    for device in (Xpu(), Device()):
        assert not device.has_graphs() and device.capture(lambda: None) is None


@pytest.mark.parametrize(
    ("capability", "hip", "early", "fp8"),
    [
        ((8, 0), None, False, False),
        ((8, 9), None, False, True),
        ((9, 0), None, True, True),
        ((9, 4), "6.4", False, False),
    ],
)
def test_what_kernels_can_do(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, early: bool, fp8: bool
):
    """By the compute capability, which AMD's GPUs only seem to have; nothing is known of XPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert (Cuda().launches_early(), Cuda().reads_fp8()) == (early, fp8)
    assert not Xpu().launches_early() and not Xpu().reads_fp8()


def test_triton_compiles_with_the_assembler_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert Cuda().compiler_variables() == Xpu().compiler_variables() == {}
    assembler = tmp_path / "bin" / "ptxas"
    assembler.touch(0o755)
    assert Cuda().compiler_variables() == {"TRITON_PTXAS_PATH": str(assembler)}
    assert Xpu().compiler_variables() == {}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), True),
        (RuntimeError("XPU out of memory. Tried to allocate"), True),
        (RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"), True),
        (RuntimeError("Native API failed. Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_accelerator_memory_errors(error: Exception, expected: bool):
    assert Accelerator().out_of_memory(error) is expected


def test_processor_memory():
    cpu = Cpu()
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert cpu.out_of_memory(caught.value)
    assert not cpu.out_of_memory(RuntimeError("shape mismatch"))
    assert 2**28 < total_memory() < 2**50
    cpu.reset_peak_memory()
    before = cpu.peak_memory()[0]
    block = torch.ones(2**26, dtype=torch.uint8)
    grown = cpu.peak_memory()[0] - before
    assert 0.9 * 2**26 < grown < 3 * 2**26
    del block


def test_the_fake_clock_moves_when_told():
    device = FakeDevice()
    start = device.mark()
    device.advance(1.5)
    device.advance(0.25)
    assert device.elapsed([start, device.mark()]) == [1.75]
    assert FakeDevice().mark() == 0.0


@pytest.mark.parametrize(
    ("name", "bandwidth", "half"),
    [
        ("Intel(R) Data Center GPU Max 1100", 1228.8e9, 352e12),
        ("Intel(R) Data Center GPU Max 1550", 1638.4e9, 419.5e12),
        ("Intel(R) Arc(TM) B580 Graphics", 456e9, 116.7e12),
        ("Intel(R) Arc(TM) A770 Graphics", 560e9, 137.6e12),
        ("NVIDIA H200", 4.8e12, 989.4e12),
        ("NVIDIA H100 80GB HBM3", 3.35e12, 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12, 312e12),
    ],
)
def test_datasheets_are_found_by_the_names_of_drivers(name: str, bandwidth: float, half: float):
    sheet = lookup(name)
    assert sheet is not None
    assert sheet.bandwidth == pytest.approx(bandwidth)
    assert sheet.flops["float16"] == pytest.approx(half)
    assert set(sheet.flops) <= set(DTYPE_BYTES)
    assert sheet.source


@pytest.mark.parametrize("name", ["", "NVIDIA GeForce RTX 4090", "Intel(R) Iris(R) Xe Graphics", "AMD EPYC"])
def test_an_unknown_device_has_no_figure(name: str):
    assert lookup(name) is None
    assert len({sheet.pattern for sheet in DATASHEETS}) == len(DATASHEETS)


class CountingDevice(FakeDevice):
    """Counts its probes."""

    probes = 0

    def copy_bandwidth(self) -> float:
        CountingDevice.probes += 1
        return 1e12 + CountingDevice.probes


def test_peaks_are_measured_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(CountingDevice, "probes", 0)
    names = ("device_name", "driver", "hostname_hash", "threads", "cpu_count", "torch")
    environment: dict[str, Any] = {**dict.fromkeys(names, "x"), "device_name": "NVIDIA H200"}
    device = CountingDevice()
    first = peaks.peaks(device, "float16", environment)
    assert first.bandwidth_measured == 1e12 + 1
    assert first.flops_measured == 1e14
    assert (first.bandwidth_datasheet, first.flops_datasheet) == (4.8e12, 989.4e12)
    assert "H200" in first.source
    assert peaks.peaks(device, "float16", environment) == first
    assert CountingDevice.probes == 1
    (path,) = (tmp_path / "bench").iterdir()
    assert json.loads(path.read_text())["bandwidth"] == first.bandwidth_measured
    assert peaks.peaks(device, "float16", environment, measure_again=True).bandwidth_measured == 1e12 + 2
    assert peaks.peaks(device, "float16", environment).bandwidth_measured == 1e12 + 2
    for changed in names:
        peaks.peaks(device, "float16", {**environment, changed: "y"})
    assert peaks.peaks(device, "bfloat16", environment).bandwidth_measured == 1e12 + 2
    assert CountingDevice.probes == 2 + len(names), "another dtype needs no other bandwidth"
    assert len(list((tmp_path / "bench").iterdir())) == 1 + len(names)
    for torn in (tmp_path / "bench").iterdir():
        torn.write_text("{")
    unknown = peaks.peaks(device, "float16", {**environment, "device_name": "y"})
    assert math.isnan(unknown.bandwidth_datasheet) and math.isnan(unknown.flops_datasheet)
    assert CountingDevice.probes == 2 + len(names) + 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # no writable home: measured each time
    assert peaks.peaks(device, "float16", environment).bandwidth_measured > 1e12


def test_measured_peaks_of_this_processor_are_plausible():
    cpu = Cpu()
    assert 1e8 < cpu.copy_bandwidth() < 1e13
    assert 1e8 < cpu.matmul_flops("float32") < 1e14
