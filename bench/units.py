"""Numbers as people read them. Files hold seconds and bytes; only what is printed is rounded."""

from __future__ import annotations

import math

GIB = 2**30


def significant(value: float, digits: int = 4) -> str:
    """A number with so many significant digits and no exponent; a dash for unknown."""
    if not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.{digits}g}")
    if rounded == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{min(decimals, 6)}f}"


def perplexity(value: float) -> str:
    """4 significant digits, with an exponent where the model knows nothing."""
    return f"{value:.3e}" if math.isfinite(value) and value >= 1e6 else significant(value)


def milliseconds(seconds: float) -> str:
    """Seconds as ms with 4 significant digits."""
    return f"{significant(seconds * 1e3)} ms" if math.isfinite(seconds) else "-"


def gibibytes(size: float | None) -> str:
    """Bytes as GiB, or as MiB when that is small."""
    if size is None or not math.isfinite(size):
        return "-"
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float) -> str:
    """A proportion as a percentage."""
    return f"{share * 100:.1f} %" if math.isfinite(share) else "-"


def times(ratio: float) -> str:
    """How many times as long, with 2 decimals."""
    return f"{ratio:.2f}" if math.isfinite(ratio) else "-"


def duration(seconds: float) -> str:
    """A span of time for a person who waits."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
