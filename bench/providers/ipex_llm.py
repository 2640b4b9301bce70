"""ipex-llm: the formats of its `load_in_low_bit`, in an environment of its own (`stack=ipex-llm-2.2`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Provider, Support, providers

if TYPE_CHECKING:
    import torch

    from ..cell import Cell
    from ..precisions.lowbit import LowBit

NAMES = {"woq_int4": "sym_int4", "int8": "sym_int8"}
"""What ipex-llm calls a format where it has another name."""
BLOCK = 64
"""Weights that share a scale: ipex-llm's constant for integers."""
ON_CPU = ("sym_int4", "asym_int4", "sym_int5", "asym_int5", "sym_int8")
REFUSED_ON_CPU = ("nf4", "fp4", "fp8")
"""Formats that it refuses itself, in the first call."""
ABORT_ON_CPU = ("fp6", "mixed_fp4", "mixed_fp8")
"""Formats whose first call ends the process: GGML_ASSERT in ggml.c."""
RANK = {"sym_int4": 30, "asym_int4": 30, "sym_int5": 20, "asym_int5": 20, "sym_int8": 30}


@providers("ipex_llm")
class IpexLlm(Provider):
    """ggml's kernels on CPU, its own on Intel GPUs. Latest and last release 2.2.0."""

    library = "ipex-llm"
    modules = ("ipex_llm",)
    stack = "ipex-llm-2.2"
    engines = ("eager", "ipex_llm")

    def support(self, format: str, device: str) -> Support | str:
        """Integers on CPU, every format on Intel GPUs."""
        name = NAMES.get(format, format)
        if device == "xpu":
            return Support(rank=60, note="not run by us yet")
        if device != "cpu":
            return f"it has no kernels for {device}"
        if name in ABORT_ON_CPU:
            return f"ipex-llm has {format} on Intel GPUs only: on CPU its kernels abort the process"
        if name in REFUSED_ON_CPU:
            return f"ipex-llm has {format} on Intel GPUs only"
        return Support(rank=RANK[name]) if name in ON_CPU else f"it has no {format}"

    def refuses(self, cell: Cell, recipe: LowBit) -> str | None:
        """Other blocks than its own; it rounds to nearest."""
        if recipe.algorithm != "rtn":
            return f"it knows algorithm=rtn only, not {recipe.algorithm}"
        if recipe.symmetric is False and cell.precision.name == "woq_int4":
            return "its woq_int4 is symmetric: precision=asym_int4 has zero points"
        if recipe.group_size not in (BLOCK, -1) or (recipe.group_size == -1 and recipe.bits != 8):
            return f"its blocks have {BLOCK} weights: precision.group_size={BLOCK}"
        return None if recipe.scale_dtype in ("auto", "fp16") else "its scales are fp16"

    def place(self, device: torch.device) -> torch.device:
        """It converts on the host."""
        import torch

        return torch.device("cpu")

    def fits(self, layer: torch.nn.Linear, recipe: LowBit, device: torch.device) -> bool:
        """Rows of whole blocks. It passes over others without a word."""
        return layer.in_features % BLOCK == 0

    def variant(self, cell: Cell) -> str:
        """engine=ipex_llm merges layers before it converts them."""
        return "+optimize" if cell.engine.name == "ipex_llm" else ""

    def quantise(self, model: Any, cell: Cell, recipe: LowBit, device: torch.device) -> Any:
        """`optimize_model`; engine=ipex_llm has the attention and the rest replaced, too."""
        import torch
        from ipex_llm import optimize_model

        whole = cell.engine.name == "ipex_llm"
        model = optimize_model(
            model,
            low_bit=low_bit(cell),
            optimize_llm=whole,
            modules_to_not_convert=recipe.skip.split(),
            cpu_embedding=recipe.cpu_embedding,
            torch_dtype=getattr(torch, recipe.dtype),
        )
        model._bigdl_config["optimize_llm"] = whole  # written by save_low_bit
        last_logits_only(model, whole)
        return model.to(device)

    def save(self, model: Any, folder: Path) -> None:
        """`save_low_bit`, in one file."""
        model.save_low_bit(str(folder), max_shard_size="1000GB")

    def load(self, skeleton: Callable[[], Any], folder: Path, recipe: LowBit, device: torch.device) -> Any:
        """What `load_low_bit` does; that function would convert the layers that were left out, too."""
        import torch
        from accelerate.utils import set_module_tensor_to_device
        from ipex_llm.transformers.convert import ggml_convert_low_bit
        from ipex_llm.transformers.low_bit_linear import ggml_tensor_qtype

        said = json.loads((folder / "bigdl_config.json").read_text())
        model = ggml_convert_low_bit(
            skeleton().to("cpu"),
            ggml_tensor_qtype[said["bigdl_transformers_low_bit"]],
            optimize_model=said["optimize_llm"],
            convert_shape_only=True,
            modules_to_not_convert=recipe.skip.split(),
            cpu_embedding=recipe.cpu_embedding,
            torch_dtype=getattr(torch, recipe.dtype),
        )
        state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        for name, tensor in state.items():
            set_module_tensor_to_device(model, name, "cpu", tensor, dtype=tensor.dtype)
        last_logits_only(model, said["optimize_llm"])
        return model.to(device)


def last_logits_only(model: Any, allowed: bool) -> None:
    """Whether the output layer may leave out all but the last position of prompts with more than 10 tokens.

    Every other layer with as many rows as the vocabulary has tokens is taken for an output layer by ipex-llm, and then
    loses positions, too.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if getattr(module, "optimize_lm_head", False):
            module.optimize_lm_head = allowed and module is head


def low_bit(cell: Cell) -> str:
    """`load_in_low_bit` of the cell's precision."""
    return NAMES.get(cell.precision.name, cell.precision.name)
