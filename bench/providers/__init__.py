"""Who converts weights to a low-bit format, and whose kernels then read them: one file per library."""

from .base import Provider, providers

__all__ = ["Provider", "providers"]
