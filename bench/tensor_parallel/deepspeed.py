"""DeepSpeed's automatic tensor parallelism, with repairs for what it does not know of current transformers."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import importlib.util
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cell import Cell
from ..errors import CellError, Unsupported
from ..peaks import cache_folder
from .base import Sharded, TensorParallel, check, layers, tensor_parallel

if TYPE_CHECKING:
    import torch

    from ..models.spec import Model

log = logging.getLogger(__name__)

SHARED_MEMORY = "BENCH_DS_SHM"
"""Set to 0, DeepSpeed's all-reduce through shared memory is not built and gloo takes its place. CPU only."""


@tensor_parallel("deepspeed")
class DeepSpeed(TensorParallel):
    """`deepspeed.init_inference`; the model inside the engine is used, which alone does beam search."""

    name = "deepspeed"

    def unsupported(self, cell: Cell) -> str | None:
        """Needs the package, in the worker's interpreter."""
        if cell.python is None and importlib.util.find_spec("deepspeed") is None:
            return "deepspeed is not installed: pip install 'bench[deepspeed]', or use tp=transformers"
        return None

    def prepare(self) -> None:
        """Import DeepSpeed, told which device it is on, and build what it compiles when first used."""
        import torch
        import torch.distributed as dist

        from ..models import build, cost  # noqa: F401

        backend = dist.get_backend()
        os.environ.setdefault("DS_ACCELERATOR", "cpu" if backend in ("gloo", "ccl") else _accelerator(torch))
        import deepspeed

        if os.environ["DS_ACCELERATOR"] == "cpu" and not _shared_memory():
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)

    def load(
        self, model: Model, dtype: torch.dtype, device: torch.device, seed: int, kv_bytes: int, **kwargs: Any
    ) -> Sharded:
        """Random weights are made layer by layer, so a rank holds its part and one whole layer at a time.

        Published ones are read whole into the host memory of each rank first.
        """
        import deepspeed
        import torch.distributed as dist

        from ..models import build, cost

        kwargs.pop("device_map", None)
        ranks = dist.get_world_size()
        try:
            if model.weights == "random":
                with linears_on_meta():
                    whole = build.skeleton(model, dtype, device, **kwargs)
                build.tables(whole)
                making: AbstractContextManager[None] = layer_by_layer(whole, dtype, device, seed)
            else:
                whole = build.load(model, dtype, _cpu(), seed, device_map={"": "cpu"}, **kwargs)
                making = contextlib.nullcontext()
            figures, before = cost.of(model, whole, kv_bytes), layers(whole)
            if model.weights != "random":
                untie(whole)
            with making:
                engine = deepspeed.init_inference(
                    whole, tensor_parallel={"tp_size": ranks}, dtype=dtype, replace_with_kernel_inject=False
                )
        except CellError:
            raise
        except AssertionError as error:  # what DeepSpeed says of a family that it does not know
            what = str(error).partition(".")[0]
            raise Unsupported(f"tp=deepspeed cannot split {whole.config.model_type}: {what}") from error
        except Exception as error:
            raise build.explain(error, model) from error
        split = engine.module
        repair(split, dist.get_rank(), ranks)
        warnings = check(self.name, before, layers(split), ranks) + _by_gloo()
        return Sharded(build.ready(split), figures, warnings)


def repair(model: Any, rank: int, ranks: int) -> None:
    """Tell the families that count heads by themselves how many of them this rank has.

    Phi-3 slices its fused projection by `config.num_attention_heads`, in every release of transformers tried (4.48 to
    5.23). Bloom of transformers 5 makes its ALiBi slopes in a function that DeepSpeed does not replace.
    """
    for module in model.modules():
        if type(module).__name__ == "Phi3Attention":
            module.config = copy.copy(module.config)
            module.config.num_attention_heads //= ranks
    if model.config.model_type == "bloom":
        from transformers.models.bloom import modeling_bloom

        slopes = getattr(modeling_bloom, "_get_alibi_slopes", None)
        if slopes is not None:
            heads = model.config.n_head
            mine = slice(rank * heads // ranks, (rank + 1) * heads // ranks)
            modeling_bloom._get_alibi_slopes = lambda num_heads, *args, **kwargs: slopes(heads, *args, **kwargs)[mine]


def untie(model: Any) -> None:
    """Give the output layer a weight of its own: DeepSpeed cuts its input, and leaves a weight that is shared whole."""
    import torch

    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


@contextlib.contextmanager
def linears_on_meta() -> Iterator[None]:
    """Linear layers made inside have shapes and no memory; everything else is made where it is asked for."""
    import torch

    original = torch.nn.Linear.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "device": "meta"})

    torch.nn.Linear.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Linear.__init__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def layer_by_layer(model: Any, dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[None]:
    """Fill what has memory now, and each linear layer just before DeepSpeed takes its part of it."""
    import torch
    from deepspeed.module_inject.auto_tp import AutoTP

    from ..models.noise import Noise, parameters

    noise = Noise(seed, dtype, device)
    names: dict[int, list[tuple[str, str]]] = {}
    owners = {id(parameter): module for module in model.modules() for parameter in module.parameters(recurse=False)}
    for name, (parameter, kind) in parameters(model).items():
        if parameter.is_meta:
            names.setdefault(id(owners[id(parameter)]), []).append((name, kind))
        else:
            noise.put(name, kind, parameter)

    def fill(module: Any) -> None:
        for name, kind in names.pop(id(module), []):
            own = name.rpartition(".")[2]
            full = torch.empty_like(getattr(module, own), device=device)
            noise.put(name, kind, full)
            setattr(module, own, torch.nn.Parameter(full, requires_grad=False))

    original = AutoTP._replace

    @wraps(original)
    def replace(self: Any, child: Any, *args: Any, **kwargs: Any) -> Any:
        fill(child)
        return original(self, child, *args, **kwargs)

    AutoTP._replace = replace
    try:
        yield
    finally:
        AutoTP._replace = original


def _shared_memory() -> bool:
    """Whether the all-reduce through shared memory can be used: built here when it is asked for the first time.

    It works within one node only, and crashes elsewhere. One rank of the node builds it, which takes a minute, in a
    folder of bench's own and under a lock: a build that was killed leaves a lock file, on which torch waits for ever.
    """
    import torch
    import torch.distributed as dist

    if not _may_share() or not (shutil.which("c++") and shutil.which("ninja")):
        return False
    build = f"python{platform.python_version()}-torch{torch.__version__}"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_folder() / "torch_extensions" / build))
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    built = [True]
    if dist.get_rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".bench-lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for stale in folder.glob("**/deepspeed_shm_comm/lock"):
                    stale.unlink()
                from deepspeed.ops.op_builder import ShareMemCommBuilder

                ShareMemCommBuilder().load(verbose=False)
        except Exception:
            log.exception("DeepSpeed's shared-memory operation cannot be built; gloo takes its place")
            built = [False]
    dist.broadcast_object_list(built, 0)
    return built[0]


def _by_gloo() -> tuple[str, ...]:
    """What the record says where the ranks of a CPU's node could share memory, and do not, without being told so."""
    import deepspeed

    shared = deepspeed.ops.__compatible_ops__.get("deepspeed_shm_comm", True)
    if os.environ["DS_ACCELERATOR"] != "cpu" or shared or not _may_share():
        return ()
    return (
        "DeepSpeed's all-reduce through shared memory could not be built, so gloo took its place: "
        "it needs a C++ compiler and ninja, and the job's log says what failed",
    )


def _may_share() -> bool:
    """Whether all ranks are on one node, and the user has not said otherwise."""
    return os.environ["LOCAL_SIZE"] == os.environ["WORLD_SIZE"] and os.environ.get(SHARED_MEMORY) != "0"


def _accelerator(torch: Any) -> str:
    return str(torch.accelerator.current_accelerator().type)


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")
