"""The Triton kernels of engine=compiled against plain torch: `TRITON_INTERPRET=1 python -m tests.triton_kernels NAME`.

On a GPU the same comparison runs without the variable.
"""

from __future__ import annotations

import sys

import torch

GPU = torch.accelerator.is_available()
DEVICE = torch.accelerator.current_accelerator() if GPU else torch.device("cpu")


def attention() -> None:
    """Shared prompts, few and many heads in a group, head sizes, windows, soft caps, padding, ALiBi, sinks."""
    from bench.compiled import attention, attention_kernel

    tuned = attention_kernel._pieces
    configs = tuned.configs
    for number, case in enumerate((
        (1, 1, 4, 4, 64, 128, 64, 100, 0, 0, 0.0, False, torch.float32),
        (2, 4, 8, 2, 96, 256, 64, 200, 37, 0, 0.0, False, torch.float32),
        (3, 3, 4, 1, 80, 64, 64, 64, 63, 30, 0.0, False, torch.float32),
        (1, 2, 4, 2, 128, 1024, 64, 1000, 20, 0, 30.0, False, torch.float32),
        (2, 1, 4, 4, 64, 64, 1024, 50, 1000, 0, 0.0, False, torch.float32),
        (1, 4, 4, 4, 128, 256, 64, 200, 10, 0, 0.0, False, torch.float16),
        (2, 3, 4, 2, 64, 256, 128, 200, 90, 0, 0.0, True, torch.float32),
        (2, 3, 80, 1, 16, 128, 64, 100, 50, 0, 0.0, True, torch.float16),
    )):  # fmt: skip
        batch, beams, heads, kv_heads, size, prompt, own, length, step, window, softcap, biased, dtype = case
        tried = configs[number % len(configs)]
        if GPU:  # one each, because each is compiled
            tuned.configs = [tried]
        else:  # the interpreter measures nothing
            attention_kernel._pieces = _Configured(tuned.fn, **tried.kwargs)
        torch.manual_seed(0)
        rows = batch * beams

        def draw(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(*shape).to(DEVICE, dtype)

        def whole(values: torch.Tensor | list[int]) -> torch.Tensor:
            return torch.as_tensor(values).to(DEVICE, torch.int32)

        ancestry = torch.randint(0, beams, (rows, own)) + (torch.arange(rows) // beams * beams)[:, None]
        ancestry[:, step:] = torch.arange(rows)[:, None]
        query = draw(rows, heads, 1, size)
        parts = attention.Parts(
            draw(rows, kv_heads, 1, size), draw(rows, kv_heads, 1, size),
            draw(batch, kv_heads, prompt, size), draw(batch, kv_heads, prompt, size),
            draw(rows, kv_heads, own, size), draw(rows, kv_heads, own, size),
            whole(ancestry), whole([length]), whole([step]), whole(torch.randint(0, 20, (batch,))), 64, False,
            draw(heads, prompt + own) if biased else None,
        )  # fmt: skip
        copy = parts._replace(own_keys=parts.own_keys.clone(), own_values=parts.own_values.clone())
        sinks = 3 + draw(heads) if biased else None
        wanted = attention.reference(query, parts, sinks, 0.1, softcap, window)
        found = attention_kernel.attend(query, *copy, sinks, 0.1, softcap, window)
        torch.testing.assert_close(found, wanted, atol=1e-3 if dtype == torch.float16 else 2e-6, rtol=0)
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
