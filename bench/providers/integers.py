"""Weights as integers, scales and zero points. Worker side; torch is imported inside functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Integers:
    """(codes - zero) * scale, in groups: codes [rows, groups, columns of a group], the others [rows, groups, 1]."""

    codes: torch.Tensor
    """fp32 whole numbers from -2**(bits-1) to 2**(bits-1) - 1."""
    scale: torch.Tensor
    zero: torch.Tensor
    bits: int

    def values(self) -> torch.Tensor:
        """The numbers they stand for, fp32 [rows, columns]."""
        return ((self.codes - self.zero) * self.scale).flatten(1)


def nearest(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> Integers:
    """Each weight [rows, columns] rounded to the nearest integer, `group` columns of a row sharing a scale."""
    import torch

    groups = weight.float().view(weight.shape[0], -1, group)
    half = 2 ** (bits - 1)
    if symmetric:
        scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / (half - 1)
        return coded(groups, scale, torch.zeros_like(scale), bits)
    low = groups.amin(-1, keepdim=True).clamp_max(0.0)
    scale = (groups.amax(-1, keepdim=True).clamp_min(0.0) - low).clamp_min(1e-12) / (2 * half - 1)
    return coded(groups, scale, (-low / scale).round() - half, bits)


def coded(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> Integers:
    """Weights in groups as integers, scales and zero points being known."""
    half = 2 ** (bits - 1)
    codes = ((groups / scale).round() + zero).clamp(-half, half - 1)
    return Integers(codes, scale, zero, bits)
