"""Linear layers of the compiled step: what `Linears` joins and folds, and that it computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from bench.cell import Cell, Generate
from bench.compiled.cache import stay
from bench.compiled.linear import Linears
from bench.compiled.step import Decoder, Shape
from bench.devices.base import Device
from bench.devices.cpu import Cpu
from bench.models import build
from bench.models.spec import Model
from bench.precisions.lowbit import SymInt4
from bench.providers.triton import Triton
from tests.test_compiled import FAMILIES, SMALL, VOCABULARY, model, prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # Inductor's own


class Seen(Linears):
    """Keeps what the pass made of the last graph: of each `linears` what it computes, and the products left."""

    def uuid(self) -> None:
        """Not from the cache, which would not call it."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        super().__call__(graph)
        aten = torch.ops.aten
        self.left = sum(
            node.target in (aten.mm.default, aten.addmm.default) and node.meta["val"].dtype != torch.float32
            for node in graph.nodes
        )  # rotary positions are fp32, and a product on GPUs
        self.done = []
        for node in graph.nodes:
            if node.target is torch.ops.bench.linears.default:
                _, weights, scales, norm, _, residual, activation, _ = node.args
                words = [str(len(weights)), scales and "int4", norm and "norm", activation, residual and "residual"]
                self.done.append(" ".join(word for word in words if word))


class Kept(torch.nn.Module):
    """A choice that keeps what it chose from."""

    def __init__(self, choice: Any) -> None:
        super().__init__()
        self.choice, self.tokens = choice, choice.tokens
        self.logits = stay(torch.zeros(choice.tokens.shape[0], VOCABULARY, device=choice.tokens.device))

    def forward(self, scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor | None:
        self.logits.copy_(scores)
        return self.choice(scores, count)


GATED = [*2 * ["3 norm", "1 residual", "2 norm silu", "1 residual"], "1 norm"]
FOLDED = [
    ("llama", 1, GATED),
    ("llama", 2, [*2 * ["3", "1", "2", "1"], "1"]),
    ("qwen2", 1, GATED),
    ("phi3", 1, [*2 * ["1 norm", "1 residual", "1 norm silu", "1 residual"], "1 norm"]),
    ("gemma2", 1, [*2 * ["3", "1", "2 gelu", "1"], "1"]),
    ("opt", 1, [*2 * ["3", "1", "1", "1"], "1"]),
]
"""Family, beams, and what the kernels of two blocks and the output layer do."""


def folded(family: str, beams: int, device: Device, options: dict[str, Any]) -> Seen:
    """What the pass has made of a model in fp16, whose logits are those of the uncompiled step."""
    torch.compiler.reset()
    made = model(family).half()
    for parameter in made.parameters():
        if parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5)  # norms multiply with something
    made, ids = made.to(device.torch_type), prompts(1, False)[0].to(device.torch_type)
    config = GenerationConfig(max_new_tokens=2, num_beams=beams, pad_token_id=0)
    seen = Seen(device.launches_early())
    logits = []
    with torch.inference_mode():
        for settings in (None, {**options, "post_grad_custom_pre_pass": seen}):
            decoder = Decoder(made, Shape.of(1, 20, config), config, settings, device)
            decoder.step.choice = kept = Kept(decoder.choice)
            decoder.generate(ids, None, 2, lambda: None)
            logits.append(kept.logits)
    torch.testing.assert_close(*logits, atol=0.02 * float(logits[0].std()), rtol=0)
    torch.compiler.reset()
    return seen


@pytest.mark.parametrize(("family", "beams", "done"), FOLDED)
def test_what_is_done_together(family: str, beams: int, done: list[str]):
    """Layers with the same input, and what is between products, are one kernel; what looks different stays."""
    seen = folded(family, beams, Cpu(), {})
    assert (sorted(seen.done), seen.left) == (sorted(done), 0)


def packed(dtype: torch.dtype) -> Any:
    """A small Llama in bench's own INT4."""
    torch.compiler.reset()
    torch.manual_seed(0)
    wide = {**SMALL, **FAMILIES["llama"], "hidden_size": 128, "intermediate_size": 256}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **wide), dtype=dtype)
    asked = Cell(model=Model("tiny", weights="random"), workload=Generate(8, 8))
    return build.ready(Triton().quantise(made, asked, SymInt4(group_size=32), torch.device("cpu")))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_packed_layers_are_done_together(beams: int, dtype: torch.dtype, near: float):
    """bench's own INT4; the output layer stays as it is."""
    made = packed(dtype)
    ids, _ = prompts(1, False)
    config = GenerationConfig(max_new_tokens=2, num_beams=beams, pad_token_id=0)
    seen = Seen(early=False)
    logits = []
    with torch.inference_mode():
        for options in (None, {"post_grad_custom_pre_pass": seen}):
            decoder = Decoder(made, Shape.of(1, 20, config), config, options)
            decoder.step.choice = kept = Kept(decoder.choice)
            decoder.generate(ids, None, 2, lambda: None)
            logits.append(kept.logits)
    torch.testing.assert_close(*logits, atol=near * float(logits[0].std()), rtol=0)
    layer = ["3 int4 norm", "1 int4 residual", "2 int4 norm silu", "1 int4 residual"]
    assert (sorted(seen.done), seen.left) == (sorted([*2 * layer, "1 norm" if beams == 1 else "1"]), 0)
    torch.compiler.reset()


class Around(torch.nn.Module):
    """Gate and up of one row, and what is around them, in the ways that `change` names."""

    def __init__(self, change: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.change = change
        self.gate, self.up, self.down = torch.nn.Linear(64, 48), torch.nn.Linear(64, 48), torch.nn.Linear(48, 64)
        self.weight = torch.nn.Parameter(torch.rand(64))
        for layer in (self.gate, self.up, self.down):
            layer.bias = None
        self.requires_grad_(False)
        self.half()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        change = self.change
        wide = x.float()
        square = wide * wide if change == "other forms" else wide.pow(2)
        normed = (wide * torch.rsqrt(square.mean(-1, keepdim=True) + 0.1)).half()
        normed = normed * (1 + self.weight) if change == "one more" else self.weight * normed
        gate, up = self.gate(normed), self.up(normed)
        active = torch.sigmoid(gate) * gate if change == "other forms" else torch.nn.functional.silu(gate)
        active = torch.relu(gate) if change == "relu" else active
        joined = up * active if change == "other forms" else active * up
        down = self.down(joined)
        total = down + (x[0, 0] if change == "broadcast" else x)
        also = {"norm read": normed, "gate read": gate, "active read": active, "down read": down}
        return (total, also[change]) if change in also else (total,)


@pytest.mark.parametrize(
    ("change", "done"),
    [
        ("as usual", ["1 residual", "2 norm silu"]),
        ("other forms", ["1 residual", "2 norm silu"]),
        ("norm read", ["1 residual", "2 silu"]),
        ("one more", ["1 residual", "2 silu"]),
        ("relu", ["1 residual", "2 norm"]),
        ("gate read", ["1 residual", "2 norm"]),
        ("active read", ["1 residual", "2 norm"]),
        ("down read", ["1", "2 norm silu"]),
        ("broadcast", ["1", "2 norm silu"]),
    ],
)
def test_what_is_read_elsewhere_or_looks_different_stays(change: str, done: list[str]):
    torch.compiler.reset()
    module, seen = Around(change), Seen(early=False)
    x = torch.randn(1, 1, 64, dtype=torch.float16)
    compiled = torch.compile(module, options={"post_grad_custom_pre_pass": seen})
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), module(x), atol=2e-3, rtol=1e-2)
    assert sorted(seen.done) == done
    torch.compiler.reset()


@pytest.mark.parametrize(("dtype", "most"), [(torch.int8, 1), (torch.float8_e4m3fn, 2)])
def test_weights_of_one_byte_are_not_written_as_floats(dtype: torch.dtype, most: int):
    """As libraries write their layers: floats are made of bytes, before or after these are turned, for a product."""
    products: list[int] = []

    class Counted(Linears):
        def uuid(self) -> None:
            """Not from the cache, which would not call it."""

        def __call__(self, graph: torch.fx.Graph) -> None:
            super().__call__(graph)
            products.append(sum(node.target == torch.ops.aten.mm.default for node in graph.nodes))

    torch.manual_seed(0)
    one, two = (torch.randn(96, 64).mul(50).to(dtype) for _ in range(2))
    scale = torch.rand(96)

    def layers(x: torch.Tensor) -> torch.Tensor:
        x = (x @ one.t().to(x.dtype) * scale.to(x.dtype))[:, :64]
        return x @ (two.float() * scale[:, None]).to(x.dtype).t()

    torch.compiler.reset()
    made = torch.compile(layers, fullgraph=True, options={"post_grad_custom_pre_pass": Counted(early=False)})
    for rows in range(1, most + 1):  # Inductor of torch 2.13 has an assertion that int8 fails for 2 rows on CPU
        x = torch.randn(rows, 64).to(torch.bfloat16)
        with torch.inference_mode():
            torch.testing.assert_close(made(x), layers(x), rtol=0.02, atol=0.02 * float(layers(x).abs().max()))
    assert products == [0, 2][:most]
    torch.compiler.reset()
