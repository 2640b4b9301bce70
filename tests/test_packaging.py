"""What a user installs and runs: the wheel, the scripts, the links of the README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import run_script as script

ROOT = Path(__file__).parents[1]


def test_a_wheel_brings_the_configurations(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    done = subprocess.run(
        [sys.executable, "-m", "bench", "plan", "model=llama-2-7b", "lengths=32/32", "device=fake"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "llama-2-7b" in done.stdout
    names = {path.name for path in (unpacked / "bench" / "configs" / "model").iterdir()}
    assert names == {path.name for path in (ROOT / "configs" / "model").iterdir()}


def test_run_benchmark_honours_its_variables(tmp_path: Path) -> None:
    lines = script(
        "run_benchmark.sh", "results=here", cwd=tmp_path,
        model="tiny", beam="1", bs="1 2", input="7", output="5", iter="3", warmup="1", dtype="float32", device="fake",
    )  # fmt: skip
    import bench

    frame = bench.load(tmp_path / "here")
    assert frame["status"].tolist() == ["ok", "ok"], lines
    assert frame["batch_size"].tolist() == [1, 2]
    for column, value in {"model": "tiny", "num_beams": 1, "input_tokens": 7, "output_tokens": 5, "iterations": 3,
                          "warmup": 1, "precision": "fp32", "device": "fake"}.items():  # fmt: skip
        assert set(frame[column]) == {value}, column


def test_several_values_of_an_outer_axis_are_swept(tmp_path: Path) -> None:
    script("run_benchmark.sh", "results=here", "lengths=4/3", "num_beams=1", cwd=tmp_path,
           dtype="bfloat16,float16", device="fake")  # fmt: skip
    import bench

    assert bench.load(tmp_path / "here")["precision"].tolist() == ["bf16", "fp16"]


def test_the_last_word_is_the_command_line_s(tmp_path: Path) -> None:
    lines = script("run_benchmark.sh", "iterations=0", cwd=tmp_path, iter="3", device="fake")
    assert lines == ["bench: iterations=0: an integer of at least 1 is needed"]


def test_an_unknown_build_of_torch_is_refused(tmp_path: Path) -> None:
    lines = script("run_benchmark.sh", cwd=tmp_path, BENCH_PYTHON="", VENV=str(tmp_path / "venv"), TORCH="metal")
    assert lines[-1] == "setup: TORCH=metal is none of xpu, cuda, cpu"


def test_constraints_pin_torch_as_tested() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints-cpu.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    assert {"transformers", "hydra-core", "pandas", "accelerate", "pytest", "ruff", "mypy"} <= pins.keys()


@pytest.mark.parametrize("page", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))])
def test_links_resolve(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target
