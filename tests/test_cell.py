"""`Cell`: its own key, row label and resume token."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from bench.cell import Cell, Choice, Generate, Job
from bench.models.spec import Model
from bench.schema import AXES
from tests.conftest import ROOT

CELL = Cell(
    model=Model(name="m", id="org/m", architecture='{"model_type":"llama"}', parameters=7),
    workload=Generate(1024, 128, 8, 4, "beam"),
    engine=Choice("static", (("compile", False),)),
    precision=Choice("fp16"),
    device=Choice("xpu"),
    launcher=Choice("local"),
    env=(("OMP_NUM_THREADS", "4"),),
)

OTHER: dict[str, Any] = {
    "engine": Choice("static"),
    "precision": Choice("bf16"),
    "device": Choice("cuda"),
    "launcher": Choice("mpirun"),
    "world_size": 2,
    "tp": "transformers",
    "stack": "ipex-2.8",
    "python": "/opt/python",
    "env": (("OMP_NUM_THREADS", "8"),),
    "stack_env": (("A", "1"),),
    "iterations": 11,
    "warmup": 4,
    "seed": 1,
}
OTHER_MODEL: dict[str, Any] = {
    "name": "n",
    "id": "org/n",
    "source": "path",
    "path": "/m",
    "modelscope_id": "org/m2",
    "revision": "v1",
    "weights": "random",
    "architecture": "{}",
    "parameters": 8,
    "approximation": "another",
    "trust_remote_code": True,
}
OTHER_WORKLOAD: dict[str, Any] = {
    "input_tokens": 1,
    "output_tokens": 1,
    "batch_size": 1,
    "num_beams": 2,
    "decoding": "sample",
}


def test_the_id_is_stable():
    """A change of this id makes every user measure everything again: raise SCHEMA and say so in the CHANGELOG."""
    assert CELL.id == "4cbc5cf2c25e"
    assert dataclasses.replace(CELL).id == CELL.id


def test_the_id_is_the_same_in_another_process():
    code = (
        "import json, sys; from bench.cell import Cell; cell = Cell.from_json(json.load(sys.stdin)); "
        "print(cell.id, hash(cell) is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(CELL.to_json()), capture_output=True, text=True, cwd=ROOT,
        env={"PYTHONHASHSEED": "7"}, check=True,
    )  # fmt: skip
    assert done.stdout == f"{CELL.id} True\n"


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Cell)])
def test_every_field_changes_the_id(name: str):
    if name == "model":
        others = [dataclasses.replace(CELL, model=dataclasses.replace(CELL.model, **{key: value}))
                  for key, value in OTHER_MODEL.items()]  # fmt: skip
        assert {item.name for item in dataclasses.fields(Model)} == set(OTHER_MODEL)
    elif name == "workload":
        others = [dataclasses.replace(CELL, workload=dataclasses.replace(CELL.workload, **{key: value}))
                  for key, value in OTHER_WORKLOAD.items()]  # fmt: skip
        assert {item.name for item in dataclasses.fields(Generate)} == set(OTHER_WORKLOAD)
    else:
        others = [dataclasses.replace(CELL, **{name: OTHER[name]})]
    ids = {other.id for other in others}
    assert len(ids) == len(others)
    assert CELL.id not in ids
    assert all(other != CELL and hash(other) != hash(CELL) for other in others)
    for other in others:
        assert Cell.from_json(json.loads(json.dumps(other.to_json()))) == other


def test_json_round_trip():
    again = Cell.from_json(json.loads(json.dumps(CELL.to_json())))
    assert again == CELL
    assert hash(again) == hash(CELL)
    assert (again.id, again.load_key, again.axes()) == (CELL.id, CELL.load_key, CELL.axes())
    assert isinstance(again.engine.settings, tuple)
    assert again.env == CELL.env


def test_cells_that_share_a_model_share_a_load_key():
    for change in ({"workload": Generate(1, 1)}, {"iterations": 1}, {"warmup": 0}):
        assert dataclasses.replace(CELL, **change).load_key == CELL.load_key
    for name, value in OTHER.items():
        if name not in ("iterations", "warmup"):
            assert dataclasses.replace(CELL, **{name: value}).load_key != CELL.load_key, name
    assert dataclasses.replace(CELL, model=Model("n")).load_key != CELL.load_key


def test_axes_are_the_key_columns_in_their_order():
    axes = CELL.axes()
    assert list(axes) == [column.name for column in AXES]
    assert axes["engine"] == "static(compile=False)"
    assert axes["env"] == "OMP_NUM_THREADS=4"
    assert (axes["input_tokens"], axes["output_tokens"], axes["num_beams"], axes["batch_size"]) == (1024, 128, 4, 8)
    private = dataclasses.replace(CELL, model=Model("m", path="/home/me/m"), python="/home/me/bin/python")
    assert "/home/me" not in json.dumps(private.axes())
    preload = dataclasses.replace(CELL, env=(("LD_PRELOAD", "/home/me/lib/libjemalloc.so"), ("ZE_X", "a:b")))
    assert preload.axes()["env"] == "LD_PRELOAD=<path>/libjemalloc.so ZE_X=a:b"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "m fp16 static(compile=False) xpu bs8 beams4 1024/128 OMP_NUM_THREADS=4"),
        ({"env": (), "engine": Choice("eager")}, "m fp16 eager xpu bs8 beams4 1024/128"),
        ({"env": (), "stack": "s", "workload": Generate(1, 2, 3, 1, "sample")},
         "m fp16 static(compile=False) xpu s bs3 beams1 1/2 sample"),
        ({"env": (), "world_size": 2, "tp": "deepspeed"},
         "m fp16 static(compile=False) xpu local x2 deepspeed bs8 beams4 1024/128"),
    ],
)  # fmt: skip
def test_the_label_of_a_cell(changes: dict[str, Any], text: str):
    assert str(dataclasses.replace(CELL, **changes)) == text


def test_cells_are_frozen_keys():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CELL.seed = 3  # type: ignore[misc]
    assert {CELL: 1}[dataclasses.replace(CELL)] == 1
    assert Job((CELL,), 1, "a") == Job((CELL,), 1, "b")
    assert Job((CELL,), 1) != Job((CELL,), 2)
