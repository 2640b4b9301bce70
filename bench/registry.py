"""Names for extensions: a file in `devices/`, `engines/`, `precisions/` or `launchers/` registers itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by name, found by importing every module of one package the first time a name is asked for.

    Extension modules import torch and other heavy libraries inside methods, so that the planning side can ask them
    what they support without paying for the import.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._classes: dict[str, type[T]] = {}
        self._discovered = False

    def __call__(self, name: str) -> Callable[[type[T]], type[T]]:
        """Register the decorated class under `name`; a second class of that name is a programming error."""

        def register(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._classes[name] = cls
            return cls

        return register

    def get(self, name: str) -> type[T]:
        """The class called `name`. Raises ConfigError with the nearest names."""
        self._discover()
        try:
            return self._classes[name]
        except KeyError:
            raise ConfigError(did_you_mean(self.kind, name, self._classes)) from None

    def names(self) -> list[str]:
        """All names, in the order of the alphabet."""
        self._discover()
        return sorted(self._classes)

    def items(self) -> Iterator[tuple[str, type[T]]]:
        """Name and class of every extension, in the order of the alphabet."""
        return ((name, self._classes[name]) for name in self.names())

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._discovered = True
