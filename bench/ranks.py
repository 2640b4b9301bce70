"""`Ranks`: the worker's place among the processes that measure one cell together, and what they do together.

One process is the simple case: nothing is joined, `barrier` does nothing and `gather` gives back one item. torch is
imported inside methods.
"""

from __future__ import annotations

import os
import platform
import select
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from . import affinity, roll
from .devices.base import Device
from .errors import CellError, Unsupported
from .measure import Samples
from .record import Iteration

PARENT = "BENCH_PARENT"
"""`host:pid` of the process whose end ends the ranks. Set by the parent."""
PIN = "BENCH_PIN"
"""Set to 1 by launchers whose ranks share out the node's processors among themselves."""

NAMES = {
    "rank": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID", "PMIX_RANK", "RANK"),
    "size": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PALS_SIZE", "WORLD_SIZE"),
    "local_rank": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "LOCAL_RANK"),
    "local_size": ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "PALS_LOCAL_SIZE", "LOCAL_WORLD_SIZE"),
}
"""What Hydra (Intel MPI and MPICH), Open MPI, PALS and torchrun call the same four numbers."""


@dataclass(frozen=True)
class Ranks:
    """Where this process is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    folder: Path | None = None
    """The job's folder; None for a worker that a launcher for one process started."""
    _device: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, launcher: str, folder: Path, environment: Mapping[str, str]) -> Ranks:
        """The place that `launcher` gave this process. Raises CellError when the environment does not say."""
        if launcher == "local":
            return cls()
        found = {}
        for what, names in NAMES.items():
            # torchrun may itself run under mpirun, whose variables then describe the outer job.
            known = names[-1:] if "TORCHELASTIC_RUN_ID" in environment else names
            value = next((environment[name] for name in known if environment.get(name)), None)
            if value is None:
                raise CellError(f"launcher={launcher} did not say the {what}: none of {', '.join(known)} is set")
            found[what] = int(value)
        return cls(**found, folder=folder)

    @property
    def several(self) -> bool:
        """Whether a launcher of ranks started this process, even if it is the only one."""
        return self.folder is not None

    def begin(self) -> None:
        """Take one's own log, sign the roll, say it in torch's words, and end when the parent ends."""
        if self.folder is None:
            return
        log = os.open(self.folder / roll.log_name(self.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        self._sign(roll.RUNNING)
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.size),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_SIZE=str(self.local_size),
            LOCAL_WORLD_SIZE=str(self.local_size),
        )
        if os.environ.get(PIN) == "1":
            affinity.pin(self.local_rank, self.local_size)
        if hasattr(os, "pidfd_open"):
            threading.Thread(target=_die_with, args=(_guardians(),), daemon=True).start()

    def join(self, device: Device) -> None:
        """Choose this rank's device and meet the others. Raises Unsupported when there are fewer devices than ranks."""
        if not self.several:
            return
        import torch
        import torch.distributed as dist

        target = torch.device(device.torch_type)
        if device.torch_type != "cpu":
            count = torch.accelerator.device_count()
            if 1 < count < self.local_size:
                raise Unsupported(f"{self.local_size} ranks on this node need as many devices, it has {count}")
            index = self.local_rank if count > 1 else 0  # a launcher may show each rank one device only
            torch.accelerator.set_device_index(index)
            os.environ["LOCAL_RANK"] = str(index)  # by which transformers and DeepSpeed choose it again
            target = torch.device(device.torch_type, index)
        self._device.append(target)
        # A rank that fails or hangs is the parent's to find, by its own limits of time.
        dist.init_process_group(
            _backend(device.torch_type), rank=self.rank, world_size=self.size, timeout=timedelta(hours=24)
        )
        self.barrier()

    def barrier(self) -> None:
        """Wait for the other ranks, device included."""
        if not self._device:
            return
        import torch
        import torch.distributed as dist

        token = torch.ones(1, device=self._device[0])
        dist.all_reduce(token)
        token.item()

    def gather(self, item: Any) -> list[Any]:
        """`item` of every rank, in their order. Items are pickled."""
        if not self._device:
            return [item]
        import torch.distributed as dist

        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def leave(self) -> None:
        """Part from the others and end this process. One process simply goes on.

        Without all of it, one run in two ends with an abort: gloo's threads do not survive the interpreter.
        """
        if not self.several:
            return
        if self._device:
            import torch.distributed as dist

            self.barrier()
            dist.destroy_process_group()
        self._end(roll.DONE)

    def fail(self, kind: str, error: str) -> NoReturn:
        """Say why, and end at once: the others may be waiting in a collective operation, and the parent ends them."""
        self._end(roll.FAILED, kind, error)

    def _end(self, state: str, kind: str = "", error: str = "") -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        self._sign(state, kind, error)
        os._exit(state != roll.DONE)

    def _sign(self, state: str, kind: str = "", error: str = "") -> None:
        assert self.folder is not None
        roll.sign(self.folder, roll.Entry(self.rank, os.getpid(), platform.node(), state, kind, error))


def merge(ranks: Sequence[Samples]) -> Samples:
    """Samples of a cell as the slowest rank saw it. Raises CellError when the ranks produced different tokens.

    The end of a step is the maximum over ranks, its skew the maximum minus the minimum; memory is the maximum, with the
    sum beside it. What the ranks of one node keep busy is not counted as somebody else's work.
    """
    if len(ranks) == 1:
        return ranks[0]
    nodes: dict[str, list[Samples]] = {}
    for item in ranks:
        nodes.setdefault(item.host, []).append(item)
    own = {host: sum(item.own_cores for item in group) for host, group in nodes.items()}
    busiest = max(ranks, key=lambda item: item.busy_cores - own[item.host])
    return replace(
        ranks[0],
        warmups=_merged([item.warmups for item in ranks]),
        iterations=_merged([item.iterations for item in ranks]),
        peak_memory_bytes=max(item.peak_memory_bytes for item in ranks),
        peak_reserved_bytes=max(item.peak_reserved_bytes for item in ranks),
        total_memory_bytes=sum(item.peak_memory_bytes for item in ranks),
        hook_s=max(item.hook_s for item in ranks),
        busy_cores=busiest.busy_cores,
        own_cores=own[busiest.host],
    )


def _merged(ranks: Sequence[Sequence[Iteration]]) -> tuple[Iteration, ...]:
    merged = []
    for together in zip(*ranks, strict=True):
        if len({item.output_hash for item in together}) > 1:
            raise CellError("the ranks produced different tokens: their weights or their random numbers differ")
        steps = list(zip(*(item.steps_s for item in together), strict=True))
        merged.append(
            Iteration(
                steps_s=tuple(max(ends) for ends in steps),
                e2e_s=max(item.e2e_s for item in together),
                output_hash=together[0].output_hash,
                skew_s=tuple(max(ends) - min(ends) for ends in steps),
            )
        )
    return tuple(merged)


def _backend(torch_type: str) -> str:
    """oneCCL's bindings where they are installed, else what torch has built in."""
    import importlib.util

    if torch_type == "cuda":
        return "nccl"
    if importlib.util.find_spec("oneccl_bindings_for_pytorch"):
        importlib.import_module("oneccl_bindings_for_pytorch")
        return "ccl"
    return "xccl" if torch_type == "xpu" else "gloo"


def _guardians() -> list[int]:
    """The processes without which a rank must not live: who started it, and bench itself when it is on this host."""
    host, _, pid = os.environ.get(PARENT, "").rpartition(":")
    return [os.getppid(), *([int(pid)] if host == platform.node() else [])]


def _die_with(pids: Sequence[int]) -> None:
    """End when one of these processes ends; sleeps until then."""
    poll = select.poll()
    for pid in pids:
        try:
            poll.register(os.pidfd_open(pid), select.POLLIN)
        except ProcessLookupError:
            os._exit(1)
        except OSError:  # a kernel before 5.3, or one that forbids it
            return
    poll.poll()
    os._exit(1)
