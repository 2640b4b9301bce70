"""`bench chat`: talk to one model of the matrix, in a process of its interpreter that takes this one's place."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from . import compose, plan
from .cell import Generate
from .config import Request
from .devices.base import devices
from .engines.base import engines
from .errors import ConfigError
from .launchers.base import module_argv, variables

NOT_OF_CHAT = (
    "num_beams", "batch_size", "lengths", "iterations", "launches", "workload", "accuracy", "results", "name",
    "retry_failed", "timeout_s", "load_timeout_s",
)  # fmt: skip
"""Keys of measuring."""


def main(arguments: Sequence[str]) -> int:
    """Start the conversation. Returns when Hydra answered by itself. Raises ConfigError."""
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0].partition(".")[0]
        if key in NOT_OF_CHAT:
            raise ConfigError(
                f"bench chat does not measure a matrix: leave {key} out (bench chat --help lists its keys)"
            )
    named = any(argument.startswith(("model=", "experiment=")) for argument in arguments)
    begin = [] if named else ["model=tiny-trained"]
    composed = compose.compose([*begin, *(_quoted(argument) for argument in arguments)], "bench chat")
    return _talk(composed[0]) if composed else 0


def _quoted(argument: str) -> str:
    """A sentence is no list, whatever commas it has."""
    key, equals, value = argument.partition("=")
    if key not in ("chat.system", "chat.template") or not equals or value == "null" or value[:1] in ("'", '"'):
        return argument
    escaped = value.replace("'", r"\'")
    return f"{key}='{escaped}'"


def _talk(requests: Sequence[Request]) -> NoReturn:
    """Replace this process by the conversation."""
    request = requests[0]
    sampled = request.cells[0].workload.decoding == "sample"
    work = Generate(1, request.chat.max_new_tokens, decoding="sample" if sampled else "greedy")
    cells = {dataclasses.replace(cell, workload=work) for point in requests for cell in point.cells}
    if len(cells) > 1:
        raise ConfigError("bench chat talks to one model: give each key one value")
    planned = plan.plan([dataclasses.replace(request, cells=tuple(cells))]).planned[0]
    cell = planned.cell
    device = devices.get(cell.device.name)(**cell.device.kwargs)
    engine = device.simulates(engines.get(cell.engine.name)(**cell.engine.kwargs))
    reason = planned.unsupported or engine.no_chat()
    if cell.model.weights == "random":
        reason = "random weights say nothing: weights=real, or model=tiny-trained to try bench chat"
    elif cell.world_size > 1 or cell.launcher.name != "local":
        reason = "bench chat runs in one process: launcher=local world_size=1"
    if reason:
        raise ConfigError(reason)
    task = {"cell": cell.to_json(), "chat": dataclasses.asdict(request.chat), "warmup": cell.warmup > 0}
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(task, file)
    argv = module_argv(cell.python, "bench.conversation", file.name)
    sys.stdout.flush()
    os.execve(argv[0], argv, {**os.environ, **variables(cell)})
