"""The Triton kernels of engine=compiled against plain torch: `TRITON_INTERPRET=1 python -m tests.triton_kernels NAME`.

On a GPU the same comparison runs without the variable.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

GPU = torch.accelerator.is_available()
DEVICE = torch.accelerator.current_accelerator() if GPU else torch.device("cpu")


class Case(NamedTuple):
    """Attention with these sizes, and of this kind."""

    batch: int
    beams: int
    heads: int
    kv_heads: int
    size: int
    prompt: int = 256
    """Room for prompts."""
    own: int = 64
    length: int = 200
    """Of prompts."""
    step: int = 37
    window: int = 0
    softcap: float = 0.0
    biased: bool = False
    """With ALiBi and sinks."""
    dtype: torch.dtype = torch.float32
    values: int = 0
    """Size of values, where it is another."""
    latent: bool = False
    paired: bool = False
    chosen: float = 0.0
    """Share of places that an indexer chooses."""
    each: bool = False
    """It chooses for each head."""


CASES = (
    Case(1, 1, 4, 4, 64, prompt=128, length=100, step=0),
    Case(2, 4, 8, 2, 96),
    Case(3, 3, 4, 1, 80, prompt=64, length=64, step=63, window=30),
    Case(1, 2, 4, 2, 128, prompt=1024, length=1000, step=20, softcap=30.0),
    Case(2, 1, 4, 4, 64, prompt=64, own=1024, length=50, step=1000),
    Case(1, 4, 4, 4, 128, step=10, dtype=torch.float16),
    Case(2, 3, 4, 2, 64, own=128, step=90, biased=True),
    Case(2, 3, 80, 1, 16, prompt=128, length=100, step=50, biased=True, dtype=torch.float16),
    Case(2, 3, 4, 2, 96, values=64, biased=True),
    Case(2, 3, 4, 2, 192, values=128, window=100, dtype=torch.float16),
    Case(2, 2, 40, 1, 256, values=32, latent=True, dtype=torch.float16),
    Case(1, 3, 6, 1, 48, values=16, latent=True, own=128, step=100),
    Case(2, 2, 16, 1, 512, values=64, latent=True, biased=True, chosen=0.1, dtype=torch.float16),
    Case(1, 2, 4, 1, 32, values=24, latent=True, chosen=0.02),
    Case(2, 3, 8, 4, 64, chosen=0.2, each=True),
    Case(2, 2, 8, 4, 48, paired=True),
    Case(1, 4, 4, 2, 64, paired=True, dtype=torch.float16),
    Case(1, 4, 4, 2, 512, dtype=torch.float16),
    Case(1, 4, 4, 2, 512, prompt=64, length=50),
)


def attention() -> None:
    """Shared prompts, few and many heads in a group, head sizes, windows, soft caps, padding, ALiBi, sinks.

    Values of another size, latents, values of two heads, chosen places.
    """
    from bench.compiled import attention, attention_kernel

    tuned = attention_kernel._pieces
    for number, case in enumerate(CASES):
        value_size = case.values or case.size
        torch.manual_seed(0)
        batch, rows, kv_heads = case.batch, case.batch * case.beams, case.kv_heads

        def draw(*shape: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
            return torch.randn(*shape).to(DEVICE, dtype)

        def whole(values: torch.Tensor | list[int]) -> torch.Tensor:
            return torch.as_tensor(values).to(DEVICE, torch.int32)

        ancestry = (
            torch.randint(0, case.beams, (rows, case.own)) + (torch.arange(rows) // case.beams * case.beams)[:, None]
        )
        ancestry[:, case.step :] = torch.arange(rows)[:, None]
        query = draw(rows, case.heads, 1, case.size + value_size * case.latent)
        sizes = {"D2": case.size, "V2": value_size * (1 + case.paired), "LATENT": case.latent}
        fitting = attention_kernel._fitting(None, {"Q": query}, **sizes)
        tried = fitting[number % len(fitting)]
        if GPU:  # one each, because each is compiled
            tuned.configs = [tried]
        else:  # the interpreter measures nothing
            attention_kernel._pieces = _Configured(tuned.fn, **tried.kwargs)
        parts = attention.Parts(
            *(draw(rows, kv_heads, 1, size) for size in (case.size, value_size)),
            *(draw(batch, kv_heads, case.prompt, size) for size in (case.size, value_size)),
            *(draw(rows, kv_heads, case.own, size) for size in (case.size, value_size)),
            whole(ancestry), whole([case.length]), whole([case.step]), whole(torch.randint(0, 20, (batch,))), 64, False,
            draw(case.heads, case.prompt + case.own) if case.biased else None, case.latent, case.paired, case.window,
        )  # fmt: skip
        copy = parts._replace(own_keys=parts.own_keys.clone(), own_values=parts.own_values.clone())
        chosen = None
        if case.chosen:
            drawn = torch.rand(rows, case.heads if case.each else 1, case.prompt + case.own)
            chosen = (drawn < case.chosen).to(DEVICE) & parts.places().seen()[:, None]
            chosen[..., 30] = True
        more = 3 + draw(case.heads) if case.biased else None, chosen, 0.1, case.softcap
        wanted = attention.reference(query, *parts, *more)
        found = attention_kernel.attend(query, *copy, *more)
        exact = 2e-3 if case.dtype == torch.float16 else 2e-6
        torch.testing.assert_close(found, wanted, atol=exact, rtol=exact)
        assert torch.equal(parts.own_keys, copy.own_keys) and torch.equal(parts.own_values, copy.own_values)


def linear() -> None:
    """Widths and inputs that no block divides, one row and several, one layer and four, norm, gate and residual.

    Weights of two bytes and of one, whose scales are rounded or not.
    """
    from bench.compiled import linear_kernel
    from bench.compiled.linear import reference

    if GPU:  # few, because each is compiled
        linear_kernel._vector.configs, linear_kernel._rows.configs = (
            [*sizes[2][:2], *sizes[1][:2]] for sizes in (linear_kernel.VECTOR, linear_kernel.ROWS)
        )
    else:  # the interpreter measures nothing, so the configuration is given
        vector, rows = linear_kernel._vector.fn, linear_kernel._rows.fn
        linear_kernel._vector = _Configured(vector, BN=4, BK=256)
        linear_kernel._rows = _Configured(rows, BN=16, BK=64)
    for inputs, widths, activation, added in (
        (256, [48, 16, 16], "", False),
        (300, [33], "", False),
        (100, [40, 50, 10, 7], "", False),
        (300, [33], "", True),
        (300, [37, 37], "silu", False),
        (256, [74], "silu", False),
        (100, [16, 16], "gelu", True),
    ):
        several = [] if activation or added else [(20 if inputs == 100 else 4, False)]
        for count, normed in ((1, False), (1, True), *several):
            torch.manual_seed(0)
            x = torch.randn(count, inputs).to(DEVICE, torch.float16)
            weights = [(torch.randn(width, inputs) / inputs**0.5).to(DEVICE, torch.float16) for width in widths]
            norm = torch.randn(inputs).to(DEVICE, torch.float16) if normed else None
            width = sum(widths) // 2 if activation else widths[0]
            residual = torch.randn(count, width).to(DEVICE, torch.float16) if added else None
            optional = (norm, 0.3, residual, activation)
            for codes, scales, rounded in (
                (weights, [], False),
                _in_bytes(weights, torch.int8, 127),
                _in_bytes(weights, torch.float8_e4m3fn, 448),
            ):
                kept = [scale.half() if rounded else scale for scale in scales] or [1.0] * len(codes)
                floats = [code.double() * scale for code, scale in zip(codes, kept, strict=True)]
                exact = reference(x.double(), floats, [], False, *_doubles(optional))
                results = linear_kernel.run(x, codes, scales, rounded, *optional)
                for found, wanted in zip(results, exact, strict=True):
                    assert float((found - wanted).norm() / wanted.norm()) < 1e-3, (codes[0].dtype, widths, count)


def _in_bytes(
    weights: list[torch.Tensor], dtype: torch.dtype, largest: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], bool]:
    """Codes, and a scale for each row that int8's products round and those of fp8 do not."""
    scales = [weight.float().abs().amax(1, keepdim=True) / largest for weight in weights]
    codes = [(weight / scale).to(dtype) for weight, scale in zip(weights, scales, strict=True)]
    return codes, scales, dtype == torch.int8


def int4() -> None:
    """Groups of all sizes, both dtypes, rows that fill a tile and that do not; the interpreter only expands.

    Each case has some of the block sizes that fit it, and all have their turn.
    """
    from bench.compiled import int4_cuda
    from bench.compiled.int4 import expand, pack
    from bench.compiled.linear import reference

    configs = int4_cuda._configs()
    for number, (dtype, inputs, group, widths, activation, added, count) in enumerate(
        (
            (torch.float16, 512, 128, [48, 16, 16], "", False, 1),
            (torch.float16, 11008, 128, [40], "", True, 3),
            (torch.float16, 1408, 128, [80], "", True, 1),
            (torch.bfloat16, 1408, 64, [37], "", True, 8),
            (torch.bfloat16, 256, 32, [37, 37], "silu", False, 2),
            (torch.float16, 384, 64, [74], "gelu", False, 1),
            (torch.float16, 4096, 128, [50, 60, 10, 7], "", False, 20),
            (torch.bfloat16, 4096, 128, [70], "", False, 64),
        )
    ):
        torch.manual_seed(0)
        words = [pack(torch.randint(0, 16, (width, inputs))) for width in widths]
        scales = [((torch.rand(width, inputs // group) + 0.5) / inputs**0.5).to(dtype) for width in widths]
        x = torch.randn(count, inputs).to(DEVICE, dtype)
        width = sum(widths) // 2 if activation else widths[0]
        residual = torch.randn(count, width).to(DEVICE, dtype) if added else None
        for word, scale in zip(words, scales, strict=True):
            dense = int4_cuda.expand(word.to(DEVICE), scale.to(DEVICE))
            torch.testing.assert_close(dense.cpu(), expand(word, scale), atol=0, rtol=torch.finfo(dtype).eps)
        if not GPU:
            continue
        weights = [expand(*parts).to(DEVICE).double() for parts in zip(words, scales, strict=True)]
        norm = torch.randn(inputs).to(DEVICE, dtype) if group == 128 else None
        optional = (norm, 0.3, residual, activation)
        exact = reference(x.double(), weights, [], False, *_doubles(optional))
        words, scales = ([part.to(DEVICE) for part in parts] for parts in (words, scales))
        rounding = 2e-3 if dtype == torch.float16 else 1e-2
        fitting = int4_cuda._fitting(configs, {}, BM=max(8, 1 << (count - 1).bit_length()))
        for config in fitting[number % 3 :: 3] or fitting:
            int4_cuda._linears.configs = [config]  # a single one is taken without measuring
            for found, wanted in zip(int4_cuda.run(x, words, scales, *optional), exact, strict=True):
                assert float((found - wanted).norm() / wanted.norm()) < rounding, (dtype, inputs, group, count, config)


def _doubles(arguments: tuple[object, ...]) -> list[object]:
    return [one.double() if isinstance(one, torch.Tensor) else one for one in arguments]


class _Configured:
    """A kernel that is always launched with the same block sizes."""

    def __init__(self, kernel: object, **sizes: int) -> None:
        self.kernel, self.sizes = kernel, sizes

    def __getitem__(self, grid: object):
        def launch(*arguments: object, **fixed: object) -> None:
            self.kernel[grid(self.sizes) if callable(grid) else grid](*arguments, **fixed, **self.sizes)  # type: ignore[index,operator]

        return launch


if __name__ == "__main__":
    {"attention": attention, "linear": linear, "int4": int4}[sys.argv[1]]()
