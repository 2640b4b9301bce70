"""How a model is split over ranks: one file per mode."""

from .base import Sharded, TensorParallel, tensor_parallel

__all__ = ["Sharded", "TensorParallel", "tensor_parallel"]
