"""How a token is produced: one file per engine."""

from .base import Engine, Loaded, engines

__all__ = ["Engine", "Loaded", "engines"]
