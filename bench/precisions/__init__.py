"""The format of the weights: one file per kind."""

from .base import Precision, precisions

__all__ = ["Precision", "precisions"]
