"""Converted weights on disk: `quantized/<hash>/` in bench's cache, with a manifest that says what they are.

Written into a folder of its own and then renamed, so that jobs which run at the same time see all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cell import Cell
from ..devices.cpu import processor_name
from ..errors import LoadError
from ..models.spec import Model
from ..peaks import cache_folder

MANIFEST = "manifest.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".json", ".model")


@dataclass(frozen=True)
class Store:
    """One set of converted weights, which may not have been saved yet."""

    what: dict[str, Any]
    """Everything that decides their bytes: format, settings, model, device, library."""

    @property
    def name(self) -> str:
        """The last part of the folder's path: a hash of `what`."""
        return hashlib.sha256(json.dumps(self.what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where they are."""
        return cache_folder() / "quantized" / self.name

    def exists(self) -> bool:
        """Whether something lies there; `check` says whether it is sound."""
        return self.folder.exists()

    def check(self) -> dict[str, Any]:
        """The manifest. Raises LoadError when the folder is damaged or something else."""
        again = f"delete quantized/{self.name} in bench's cache, and it is made again"
        try:
            manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text())
            what, files = manifest["what"], dict(manifest["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LoadError(f"quantized/{self.name} has no {MANIFEST} that bench wrote: {again}") from error
        if what != self.what:
            raise LoadError(f"quantized/{self.name} holds other weights than its name says: {again}")
        present = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        for name in sorted(present ^ {*files, MANIFEST}):
            state = "does not belong there" if name in present else "is missing"
            raise LoadError(f"quantized/{self.name} is damaged: {name} {state}; {again}")
        for name, wanted in files.items():
            if _checksum(self.folder / name) != wanted:
                raise LoadError(f"quantized/{self.name} is damaged: {name} is not what was saved; {again}")
        return manifest

    def write(self, save: Callable[[Path], None], **more: Any) -> str | None:
        """Let `save` fill the folder; or why that failed, in one line. A folder that is there already is left alone."""
        temporary = self.folder.with_name(f".{self.name}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            save(temporary)
            files = {str(path.relative_to(temporary)): _checksum(path) for path in _files(temporary)}
            manifest = {"what": self.what, "files": files, **more}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
            if not self.folder.exists():
                temporary.rename(self.folder)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a disk is full
            if self.folder.exists():  # another job was faster
                return None
            return str(error).splitlines()[0]
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return None


def store(cell: Cell, provider: str, version: str, device: str, commit: str | None) -> Store:
    """The place of a cell's weights as this provider converts them on this device."""
    import torch
    import transformers

    index = torch.accelerator.current_device_index() if device != "cpu" else 0
    name = processor_name() if device == "cpu" else torch.get_device_module(device).get_device_name(index)
    places = {"provider", "cpu_embedding"}
    return Store(
        {
            "precision": cell.precision.name,
            "settings": {key: value for key, value in cell.precision.settings if key not in places},
            "provider": provider,
            "provider_version": version,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": device,
            "device_name": name,
            "model": _identity(cell.model, cell.seed, commit),
        }
    )


def _identity(model: Model, seed: int, commit: str | None) -> dict[str, Any]:
    """What tells one set of float weights from another."""
    if model.weights == "random":
        return {"architecture": model.config, "seed": seed}
    if model.source in ("path", "package"):
        folder = Path(model.path or "")
        if model.source == "package":
            folder = Path(__file__).parents[1] / folder
        kept = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS) if folder.is_dir() else []
        return {"files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in kept]}
    return {"source": model.source, "id": model.id, "modelscope_id": model.modelscope_id,
            "revision": commit or model.revision}  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()
