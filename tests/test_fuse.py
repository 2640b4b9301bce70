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


KINDS = {torch.int32: "int4", torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


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
                _, weights, scales, _, norm, _, residual, activation, _ = node.args
                kind = scales and KINDS[weights[0].meta["val"].dtype]
                words = [str(len(weights)), kind, norm and "norm", activation, residual and "residual"]
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


class InBytes(torch.nn.Module):
    """A layer as libraries have it: int8's products are scaled, of fp8 the weights are; `form` is another way."""

    def __init__(self, columns: int, inputs: int, dtype: torch.dtype, form: str = "") -> None:
        super().__init__()
        weights = torch.randn(columns, inputs) / inputs**0.5
        scale = weights.abs().amax(1, keepdim=True) / (127 if dtype == torch.int8 else 448)
        self.form = form
        codes = (weights / scale).to(dtype)
        self.register_buffer("codes", codes.t().contiguous() if form == "turned" else codes)
        self.register_buffer("scale", torch.rand(1, inputs) if form == "of inputs" else scale)
        self.register_buffer("bias", torch.randn(columns).half() if form == "bias" else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = self.codes.t() if self.form == "turned" else self.codes, self.scale
        if self.form == "computed":
            scale = scale.abs()
        if codes.dtype == torch.int8 and self.form != "of inputs":
            y = (x.flatten(0, -2) @ codes.t().to(x.dtype) * scale.to(x.dtype).reshape(-1)).unflatten(0, x.shape[:-1])
        else:
            floats = (codes.t().float() * scale.t()).to(x.dtype)
            if self.bias is not None:
                return torch.addmm(self.bias, x.flatten(0, -2), floats).unflatten(0, x.shape[:-1])
            y = x @ floats
        return y if self.bias is None else y + self.bias


def around_bytes(dtype: torch.dtype, form: str = "") -> Around:
    """Of the three layers the first has this form."""
    made = Around("as usual")
    made.gate, made.up, made.down = InBytes(48, 64, dtype, form), InBytes(48, 64, dtype), InBytes(64, 48, dtype)
    return made


FORMS = [
    ("", 1, ["1 {} residual", "2 {} norm silu"], 0),
    ("", 3, ["1 {}", "2 {}"], 0),
    ("bias", 1, ["1 {} residual", "2 {} norm"], 0),
    ("turned", 1, ["1 {}", "1 {} residual"], 0),
    ("of inputs", 1, ["1 {}", "1 {} residual"], 0),
    ("computed", 1, ["1 {}", "1 {} residual"], 0),
]
UNCHANGED = ("turned", 3, ["1 {}", "1 {}"], 1)
"""A product of int8 that is left, Inductor of torch 2.13 does not compile on CPU."""


@pytest.mark.parametrize(
    ("kind", "form", "rows", "done", "left"),
    [("int8", *case) for case in FORMS] + [("fp8", *case) for case in (*FORMS, UNCHANGED)],
)
def test_weights_in_bytes_are_not_written_as_floats(kind: str, form: str, rows: int, done: list[str], left: int):
    """Kernels read them, and do what is around them; another form is a sum for one row, which Inductor joins."""
    torch.compiler.reset()
    (dtype,) = (dtype for dtype, name in KINDS.items() if name == kind)
    module, seen = around_bytes(dtype, form), Seen(early=False, fp8=True)
    x = torch.randn(1, rows, 64, dtype=torch.float16)
    compiled = torch.compile(module, options={"post_grad_custom_pre_pass": seen})
    with torch.inference_mode():
        expected = module(x)[0]
        torch.testing.assert_close(compiled(x)[0], expected, atol=0.02 * float(expected.std()), rtol=0)
    assert (sorted(seen.done), seen.left) == ([each.format(kind) for each in done], left)
    torch.compiler.reset()


@pytest.mark.parametrize("rows", [1, 3])
def test_fp8_is_left_to_inductor_where_kernels_cannot_read_it(rows: int):
    torch.compiler.reset()
    module, seen = around_bytes(torch.float8_e4m3fn), Seen(early=False)
    x = torch.randn(1, rows, 64, dtype=torch.float16)
    compiled = torch.compile(module, options={"post_grad_custom_pre_pass": seen})
    with torch.inference_mode():
        expected = module(x)[0]
        torch.testing.assert_close(compiled(x)[0], expected, atol=0.02 * float(expected.std()), rtol=0)
    assert (seen.done, seen.left) == ([], 0 if rows == 1 else 3)
    torch.compiler.reset()
