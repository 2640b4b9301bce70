"""transformers' own tensor parallelism: a plan per model family, DTensors, each rank reads only its part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..cell import Cell
from ..errors import CellError, Unsupported
from ..models.shape import Shape
from .base import Sharded, TensorParallel, check, layers, tensor_parallel

if TYPE_CHECKING:
    import torch

    from ..models.spec import Model

WITHOUT_PLAN = ("bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gptj", "mpt", "opt", "stablelm")
"""Families for which transformers has no plan. Source: base_model_tp_plan of every config of transformers 5.23."""


@tensor_parallel("transformers")
class TransformersPlan(TensorParallel):
    """The plan that the model's family brings."""

    name = "transformers"

    def unsupported(self, cell: Cell) -> str | None:
        """Needs a plan, and key-value heads that can be dealt out evenly."""
        family = cell.model.config.get("model_type", "")
        if family in WITHOUT_PLAN:
            return f"transformers has no tensor-parallel plan for {family}: use tp=deepspeed"
        shape = Shape.of(cell.model)
        if shape is not None and shape.num_kv_heads % cell.world_size:
            return (
                f"tp=transformers cannot deal {shape.num_kv_heads} key-value heads out to {cell.world_size} ranks: "
                f"use tp=deepspeed"
            )
        return None

    def load(
        self, model: Model, dtype: torch.dtype, device: torch.device, seed: int, kv_bytes: int, **kwargs: Any
    ) -> Sharded:
        """`from_pretrained` with a DistributedConfig; random weights come from a checkpoint that is made as it is read.

        No rank ever holds more than its part and, while reading, a few whole parameters.
        """
        import torch
        import torch.distributed as dist

        from ..models import build, cost

        if build.RELEASE < (5, 0):
            raise Unsupported("tp=transformers needs transformers 5: use tp=deepspeed")
        from transformers.distributed import DistributedConfig

        found = torch.accelerator.current_accelerator()
        if found is not None and found.type != device.type:
            raise Unsupported(
                f"tp=transformers runs on the {found.type} that it finds: "
                f"hide it to run on {device.type}, such as with env.CUDA_VISIBLE_DEVICES=-1"
            )
        ranks = dist.get_world_size()
        # from_pretrained says by itself where each part goes.
        kwargs.pop("device_map", None)
        skeleton = build.skeleton(model, dtype, torch.device("meta"), kwargs.get("attn_implementation"))
        if not getattr(skeleton.config, "base_model_tp_plan", None):
            family = skeleton.config.model_type
            raise Unsupported(f"transformers has no tensor-parallel plan for {family}: use tp=deepspeed")
        plan = DistributedConfig(tp_size=ranks, tp_plan="auto")
        try:
            if model.weights == "random":
                sharded = type(skeleton).from_pretrained(
                    None,
                    config=skeleton.config,
                    state_dict=_made_when_read(skeleton, dtype, device, seed),
                    distributed_config=plan,
                    **{build.DTYPE: dtype},
                    **kwargs,
                )
                build.ready(sharded)
            else:
                sharded = build.load(model, dtype, device, seed, distributed_config=plan, **kwargs)
        except CellError:
            raise
        except Exception as error:
            raise build.explain(error, model) from error
        warnings = check(self.name, layers(skeleton), layers(sharded), ranks)
        return Sharded(sharded, cost.of(model, skeleton, kv_bytes), warnings)


class _Slice:
    """One parameter of a checkpoint that is made when read, with the three methods of safetensors' own slices."""

    def __init__(self, noise: Any, name: str, kind: str, like: torch.Tensor) -> None:
        self._make = (noise, name, kind)
        self._like = like
        self.dtype = like.dtype

    def get_shape(self) -> list[int]:
        """Sizes of the whole parameter."""
        return list(self._like.shape)

    def get_dtype(self) -> str:
        """safetensors' name of the dtype."""
        return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[str(self.dtype).partition(".")[2]]

    def __getitem__(self, index: Any) -> torch.Tensor:
        import torch

        noise, name, kind = self._make
        whole = torch.empty(self._like.shape, dtype=self.dtype, device=noise.block.device)
        noise.put(name, kind, whole)
        return whole[index].clone()


def _made_when_read(skeleton: Any, dtype: torch.dtype, device: torch.device, seed: int) -> dict[str, _Slice]:
    from ..models.noise import Noise, parameters

    noise = Noise(seed, dtype, device)
    return {name: _Slice(noise, name, kind, like) for name, (like, kind) in parameters(skeleton).items()}
