"""`Noise`: the weights of a random model. Worker side: imports torch."""

from __future__ import annotations

import hashlib

import torch

STD = 0.02
BLOCK = 4_194_301
"""Values drawn, a prime: read in a circle, no two rows of a matrix repeat before the 4194301st row."""


NOISE, ONE, ZERO = "noise", "one", "zero"
"""What a parameter holds: noise, or as part of a norm one (its weight) or zero (its bias)."""


def parameters(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Parameter, str]]:
    """Every parameter and what it holds, by name. A tied one is there once, under the first of its names."""
    found = {}
    seen = set()
    for prefix, module in model.named_modules():
        norm = type(module).__name__.endswith("Norm")
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                kind = NOISE if not norm else ONE if name == "weight" else ZERO
                found[f"{prefix}.{name}"] = (parameter, kind)
    return found


class Noise:
    """Normal(0, 0.02) values that depend on the seed and a parameter's name alone.

    One block of values is drawn, on the CPU whatever the device, and each parameter is a circular copy of it from an
    offset that is a hash of seed and name. So every process, rank and device holds the same weights, in whatever order
    parameters are filled, and filling runs at the speed of memory: on two CPU cores, drawing each value would take 16
    times as long in fp32 and 65 times in bf16. The values of one parameter are those of a normal sample; two
    parameters share values at unrelated positions.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.seed = seed
        drawn = torch.empty(BLOCK, dtype=torch.float32, device="cpu")
        drawn.normal_(0.0, STD, generator=torch.Generator("cpu").manual_seed(seed))
        self.block = drawn.to(device=device, dtype=dtype)

    @torch.no_grad()
    def put(self, name: str, kind: str, out: torch.Tensor) -> None:
        """Overwrite the contiguous tensor `out` with what the parameter called `name` holds."""
        if kind == NOISE:
            self.fill(name, out)
        else:
            out.fill_(1.0 if kind == ONE else 0.0)

    def fill(self, name: str, out: torch.Tensor) -> None:
        """Overwrite the contiguous tensor `out` with the noise of the parameter called `name`."""
        start = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8], "big") % BLOCK
        flat = out.detach().view(-1)
        done = 0
        while done < flat.numel():
            part = self.block[start : start + flat.numel() - done]
            flat[done : done + part.numel()].copy_(part)
            done += part.numel()
            start = 0
