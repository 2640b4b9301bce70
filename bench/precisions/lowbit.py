"""The low-bit formats: what is asked for. Which library does it is said in `providers/`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfigError, did_you_mean
from ..providers.base import providers
from ..providers.choose import Chosen, candidates, choose, refusal
from ..record import Weights
from .base import Precision, precisions

if TYPE_CHECKING:
    import torch

    from ..cell import Cell

COMPUTE = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""`compute_dtype`, and what torch calls it."""
SCALES = {"auto": 2.0, "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0}
"""`scale_dtype`, and the bytes of a scale; auto is what the provider likes best, int8 are scales quantised again."""
ALGORITHMS = ("rtn", "gptq", "awq", "autoround")


@dataclass(frozen=True)
class LowBit(Precision):
    """Linear layers in few bits, all else in `compute_dtype`. Settings that a provider cannot honour are refused."""

    bits: ClassVar[float]
    """Per weight, without scales."""
    symmetric: ClassVar[bool | None] = None
    """Whether zero is a level in the middle; None leaves it to the provider."""
    algorithm: ClassVar[str] = "rtn"
    calibration: ClassVar[str | None] = None
    steps: ClassVar[int] = 0

    provider: str = "auto"
    """Library that converts and whose kernels run; auto is the best that is installed for the device."""
    group_size: int = 64
    """Weights of a row that share a scale, fewer in layers whose columns are no multiple of it; -1 is the whole row."""
    compute_dtype: str = "bf16"
    """Activations, KV cache and what is not converted: bf16, fp16 or fp32."""
    scale_dtype: str = "auto"
    """fp32, bf16, fp16, or int8 for scales that are quantised themselves; auto is the provider's own."""
    skip: str = "lm_head"
    """Linear layers that stay as they are: the last parts of their names, separated by spaces."""
    cpu_embedding: bool = field(default=False)
    """Keep the input embedding in the memory of the host, for small GPUs."""
    save: bool = field(default=False, metadata={"hidden": True})
    """Keep the converted weights in `quantized/` of bench's cache, and take them from there the next time."""
    force: bool = field(default=False, metadata={"hidden": True})
    """Measure the latency of emulated formats, too."""

    def __post_init__(self) -> None:
        known = {
            "provider": ("auto", *providers.names()),
            "compute_dtype": tuple(COMPUTE),
            "scale_dtype": tuple(SCALES),
            "algorithm": ALGORITHMS,
        }
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                raise ConfigError(did_you_mean(f"precision.{name}", str(value), values))
        if self.group_size != -1 and (self.group_size < 8 or self.group_size & (self.group_size - 1)):
            raise ConfigError(f"precision.group_size={self.group_size}: a power of two of at least 8 is needed, or -1")
        if self.algorithm == "autoround" and self.steps < 1:
            raise ConfigError(f"precision.steps={self.steps}: at least 1 is needed")
        if self.algorithm != "rtn" and self.calibration is None:
            raise ConfigError(
                f"precision.algorithm={self.algorithm} needs text to learn from: precision.calibration=FILE, "
                f"with lines of text or JSON"
            )

    @property
    def format(self) -> str:
        """What `precision=` calls it."""
        return next(name for name, cls in precisions.items() if cls is type(self))

    @property
    def bytes_per_parameter(self) -> float:
        """Bits, and a scale for each group; a zero point is packed like a weight."""
        scale = 0.0 if self.group_size == -1 else SCALES[self.scale_dtype] / self.group_size
        return self.bits / 8 + scale

    @property
    def dtype(self) -> str:
        """That of `compute_dtype`."""
        return COMPUTE[self.compute_dtype]

    def group(self, columns: int) -> int:
        """Weights that share a scale in a layer of so many columns."""
        return columns if self.group_size == -1 else math.gcd(columns, self.group_size)

    def skipped(self, name: str) -> bool:
        """Whether the linear layer of this name stays as it is."""
        return any(name == part or name.endswith(f".{part}") for part in self.skip.split())

    def unsupported(self, cell: Cell) -> str | None:
        """Why no provider does this, in one line; the fake device plays everything."""
        return None if cell.device.name == "fake" else refusal(cell, self)

    def providers(self, cell: Cell) -> tuple[str, ...]:
        """Those of which the first that is installed will be taken."""
        found = candidates(cell, self) if cell.device.name != "fake" else ""
        return () if isinstance(found, str) else tuple(item.name for item in found)

    def load(self, cell: Cell, device: torch.device, **kwargs: Any) -> tuple[Any, Weights]:
        """Load, or build, in `dtype` and convert; or take what an earlier run saved."""
        from ..models import build, cost
        from ..models.host_embedding import keep_on_host

        chosen = choose(cell, self)
        model, reloaded, warnings = self._converted(cell, chosen, device, kwargs)
        model = build.ready(model)
        if self.cpu_embedding and device.type != "cpu":
            keep_on_host(model)
        weights = Weights(
            provider=chosen.name,
            version=chosen.provider.version(),
            kernels=chosen.support.kernels,
            packed_bytes=cost.stored(model),
            reloaded=reloaded,
            warnings=warnings,
        )
        return model, weights

    def _converted(
        self, cell: Cell, chosen: Chosen, device: torch.device, kwargs: dict[str, Any]
    ) -> tuple[Any, bool, tuple[str, ...]]:
        """The model, whether it was there already, and warnings."""
        import torch

        from ..models import build
        from ..providers import layers
        from ..providers.store import store

        provider, dtype = chosen.provider, getattr(torch, self.dtype)
        place = (chosen.name + provider.variant(cell), provider.version(), device.type)
        if self.save:
            saved = store(cell, *place, build.cached_commit(cell.model))
            if saved.exists():
                manifest = saved.check()

                def skeleton() -> Any:
                    empty = build.skeleton(cell.model, dtype, device, **kwargs)
                    build.tables(empty)
                    return empty

                model = provider.load(skeleton, saved.folder, self, device)
                model.config._commit_hash = manifest["revision"]
                return model, True, tuple(manifest["warnings"])
        start = provider.place(device)
        if start == device and not build.has_room(cell.model, dtype, device):
            start = torch.device("cpu")  # the packed weights may fit all the same
        model = build.load(cell.model, dtype, start, cell.seed, **kwargs)
        warnings = layers.left_out(model, self, chosen.name, provider, device)
        commit = build.revision_of(model)
        model = layers.move(provider.quantise(model, cell, self, device), device)
        if self.save:
            saved = store(cell, *place, commit)
            failed = saved.write(partial(provider.save, model), warnings=warnings, revision=commit)
            if failed:
                warnings += (f"the converted weights could not be saved: {failed}",)
        return model, False, warnings


@dataclass(frozen=True)
class Integer(LowBit):
    """Integers with a scale; they can be chosen by looking at what they do to the activations of some text."""

    algorithm: str = "rtn"  # type: ignore[misc]  # a setting here, a constant above
    """rtn rounds to nearest; gptq, awq and autoround learn from `calibration`."""
    calibration: str | None = field(default=None, metadata={"file": True})  # type: ignore[misc]
    """Local text: a .jsonl file with rows of {"text": ...}, or plain text."""
    steps: int = 200  # type: ignore[misc]
    """Training steps of autoround for each block of the model."""


@precisions("woq_int4")
@dataclass(frozen=True)
class WoqInt4(Integer):
    """Weight-only 4-bit integers, as neural-compressor calls them."""

    bits = 4
    symmetric: bool | None = None  # type: ignore[misc]
    """Whether zero is a level in the middle; by default the provider's choice."""


@precisions("sym_int4")
@dataclass(frozen=True)
class SymInt4(Integer):
    """4-bit integers around zero."""

    bits = 4
    symmetric = True


@precisions("asym_int4")
@dataclass(frozen=True)
class AsymInt4(Integer):
    """4-bit integers with a zero point for each group."""

    bits = 4
    symmetric = False


@precisions("sym_int5")
@dataclass(frozen=True)
class SymInt5(Integer):
    """5-bit integers around zero."""

    bits = 5
    symmetric = True


@precisions("asym_int5")
@dataclass(frozen=True)
class AsymInt5(Integer):
    """5-bit integers with a zero point for each group."""

    bits = 5
    symmetric = False


@precisions("int8")
@dataclass(frozen=True)
class Int8(Integer):
    """8-bit integers, one scale for each row; bitsandbytes rounds the activations, too."""

    bits = 8
    group_size: int = -1


@precisions("sym_int8")
@dataclass(frozen=True)
class SymInt8(Integer):
    """Weight-only 8-bit integers around zero, one scale for each row."""

    bits = 8
    symmetric = True
    group_size: int = -1


@precisions("fp8")
@dataclass(frozen=True)
class Fp8(LowBit):
    """8-bit floats (e4m3), one scale for each row."""

    bits = 8
    group_size: int = -1


@precisions("nf4")
@dataclass(frozen=True)
class Nf4(LowBit):
    """16 levels that a normal distribution fills evenly (QLoRA)."""

    bits = 4


@precisions("fp4")
@dataclass(frozen=True)
class Fp4(LowBit):
    """4-bit floats (e2m1)."""

    bits = 4


@precisions("fp6")
@dataclass(frozen=True)
class Fp6(LowBit):
    """6-bit floats (e3m2)."""

    bits = 6


@precisions("mixed_fp4")
@dataclass(frozen=True)
class MixedFp4(LowBit):
    """sym_int4 or fp4, whichever is nearer to the weights of a layer."""

    bits = 4


@precisions("mixed_fp8")
@dataclass(frozen=True)
class MixedFp8(LowBit):
    """sym_int8 or fp8, whichever is nearer to the weights of a layer."""

    bits = 8
