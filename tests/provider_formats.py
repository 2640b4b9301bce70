"""Every format of one provider on the trained model, on CPU: how far it is from fp32, and whether it survives the disk.

Usage: provider_formats.py PROVIDER. Prints one JSON object; a process of its own, because libraries change loggers,
warnings and registries of the one they are imported into.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from bench import accuracy
from bench.cell import Cell, Choice, Evaluate
from bench.models import cost
from bench.models.spec import Model
from bench.precisions.base import precision_of, precisions
from bench.precisions.lowbit import LowBit
from bench.providers import providers
from bench.providers.base import Support

MODEL = Model("tiny-trained", source="package", path="models/tiny_trained")
IDS = torch.arange(5, 133).view(2, 64)
GROUP = 32
"""Rows of the model's layers have 32 and 64 columns."""


def logits(precision: Choice) -> tuple[torch.Tensor, Any, Any]:
    """Of a freshly loaded model, with the model and what the record would say."""
    model, weights = precision_of(cell(precision)).load(cell(precision), torch.device("cpu"))
    with torch.inference_mode():
        return model(IDS).logits.float(), model, weights


def cell(precision: Choice) -> Cell:
    """An accuracy cell of the trained model."""
    return Cell(model=MODEL, workload=Evaluate("passages", limit=400), precision=precision)


def answers(model: Any) -> dict[str, float]:
    """Accuracy and perplexity on the embedded task."""
    return {item.name: item.value for item in accuracy.evaluate(cell(Choice("fp32")), model, lambda _: None).scores}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the second."""
    return float((one - other).norm() / other.norm())


def main(name: str) -> dict[str, Any]:
    """What was found, by format; "missing" alone when the library is not installed."""
    missing = providers.get(name)().missing()
    if missing:
        return {"missing": missing}
    exact, plain, _ = logits(Choice("fp32"))
    found: dict[str, Any] = {"fp32": answers(plain)}
    for format, cls in precisions.items():
        support = providers.get(name)().support(format, "cpu")
        if not issubclass(cls, LowBit) or not isinstance(support, Support):
            continue
        settings = {"provider": name} | ({} if cls().group_size == -1 else {"group_size": GROUP})
        choice = Choice(format, tuple(settings.items()), (("save", True),))
        fresh, model, weights = logits(choice)
        again, reloaded, from_disk = logits(choice)
        assert weights.reloaded is False and from_disk.reloaded is True
        rounded, _, _ = logits(Choice(format, tuple((settings | {"provider": "rounding"}).items())))
        scores = answers(reloaded)
        found[format] = {
            "error": distance(fresh, exact),
            "from_rounding": distance(fresh, rounded),
            "equal": torch.equal(fresh, again),
            "kernels": weights.kernels,
            "version": weights.version,
            "packed_bytes": weights.packed_bytes,
            "warnings": weights.warnings,
            "parameters": cost.of(MODEL, model, 2).active_parameters,
            **scores,
        }
    return found


if __name__ == "__main__":
    result = main(sys.argv[1])
    print("\n" + json.dumps(result))
