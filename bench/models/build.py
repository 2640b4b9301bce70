"""Build or load a model, in the worker: transformers 4.37 to 5, random or real weights.

Everything that differs between releases of transformers is mapped in this file: the name of the dtype argument and the
place of `no_init_weights`.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from ..errors import CellError, LoadError, OutOfMemory, Unsupported
from .noise import Noise, parameters
from .shape import Shape
from .spec import Model

try:
    from transformers.initialization import no_init_weights
except ImportError:  # before transformers 5
    from transformers.modeling_utils import no_init_weights

RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
DTYPE = "dtype" if RELEASE >= (4, 56) else "torch_dtype"
"""What `from_pretrained` and `from_config` call the data type."""


def load(
    model: Model, dtype: torch.dtype, device: torch.device, seed: int, **from_pretrained_kwargs: Any
) -> PreTrainedModel:
    """The model on `device` in `dtype`, ready to generate: no dropout, no gradients, no EOS, no shipped sampling.

    Random weights depend on `seed` and parameter names alone (see `Noise`); real ones are read from the hub,
    ModelScope or a folder, with `from_pretrained_kwargs` passed on. Random weights take `attn_implementation` only.
    Raises `LoadError`, `OutOfMemory` or `Unsupported`, in one line that says what to do.
    """
    try:
        if model.weights == "random":
            loaded = _random(model, dtype, device, seed, **from_pretrained_kwargs)
        else:
            loaded = _real(model, dtype, device, **from_pretrained_kwargs)
    except CellError:
        raise
    except Exception as error:
        raise explain(error, model) from error
    return ready(loaded)


def tokenizer(model: Model) -> Any:
    """The tokenizer of the model. Raises whatever a tokenizer's files, packages or remote code raise."""
    source, options = origin(model)
    return transformers.AutoTokenizer.from_pretrained(source, **options)


def shipped(model: Model, config: Any) -> GenerationConfig:
    """How the model's authors generate: its generation_config.json, else what its configuration says, with EOS."""
    source, options = origin(model)
    try:
        return GenerationConfig.from_pretrained(source, **options)
    except OSError:
        return GenerationConfig.from_model_config(config)


def revision_of(model: PreTrainedModel) -> str | None:
    """The commit that the hub resolved; None for random weights, folders and ModelScope."""
    return getattr(model.config, "_commit_hash", None)


def has_room(model: Model, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the weights in `dtype` fit into the device's free memory, as far as that can be known before loading."""
    shape = Shape.of(model)
    weights = shape.weight_bytes(dtype.itemsize) if shape is not None else None
    if device.type == "cpu" or weights is None:
        return True
    free, _ = torch.get_device_module(device.type).mem_get_info()
    return bool(weights < 0.95 * free)


def cached_commit(model: Model) -> str | None:
    """The commit that a hub model stands for as far as this machine knows; None when it is not in the cache."""
    if model.weights == "random" or model.source != "hub" or model.id is None:
        return None
    return _commit(model.id, model.revision, None)


def origin(model: Model) -> tuple[str, dict[str, Any]]:
    """Where configuration, weights and tokenizer come from: a folder or hub id, and the arguments that go with it.

    Downloads the whole snapshot when `model.source` is `modelscope`. The hub is asked for nothing when it does not
    answer within seconds, so a cached model loads at once without a network (the hub's own client retries for 23 s).
    """
    options = {"trust_remote_code": model.trust_remote_code}
    if model.source in ("path", "package"):
        folder = Path(model.path or "")
        if model.source == "package":
            folder = Path(__file__).parents[1] / folder
        if not folder.is_dir():
            raise LoadError(f"model.path={model.path} is not a folder: name one that save_pretrained wrote")
        if not (folder / "config.json").is_file():
            raise LoadError(f"no config.json in {folder}: model.path must be a folder that save_pretrained wrote")
        return str(folder), options
    name = model.modelscope_id or model.id if model.source == "modelscope" else model.id
    if name is None:
        raise LoadError(f"{model.name} has no published weights: use weights=random")
    if model.source == "modelscope":
        try:
            from modelscope import snapshot_download
        except ImportError as error:
            raise LoadError("source=modelscope needs the modelscope package: pip install bench[modelscope]") from error
        return str(snapshot_download(name, revision=model.revision)), options
    return name, {**options, "revision": model.revision, "local_files_only": not hub_answers()}


def explain(error: BaseException, model: Model) -> CellError:
    """The error that says in one line why `model` could not be loaded and what to do."""
    chain = list(_chain(error))
    kinds = {type(link).__name__ for link in chain}
    text = " ".join(str(link) for link in chain)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    what = model.id or model.path or model.name
    if any(_is_out_of_memory(link) for link in chain):
        size = f" ({model.parameters / 1e9:.1f} billion parameters)" if model.parameters else ""
        return OutOfMemory(f"out of memory while loading {model.name}{size}: use a smaller dtype or more devices")
    if "GatedRepoError" in kinds:
        return LoadError(f"{what} is gated: accept its licence on the hub and run hf auth login, or use weights=random")
    if "RevisionNotFoundError" in kinds:
        return LoadError(f"{what} has no revision {model.revision}: check model.revision")
    if "RepositoryNotFoundError" in kinds:
        return LoadError(f"the hub does not know {what}: check the id, run hf auth login if it is private")
    if "trust_remote_code" in text:
        return LoadError(f"{what} brings its own code: read it, then set model.trust_remote_code=true")
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"} or "cached files" in text:
        why = "HF_HUB_OFFLINE is set" if offline() else "the hub does not answer"
        return LoadError(f"{what} is not in the local cache and {why}: download it first, or use weights=random")
    if "file named" in text and "model.safetensors" in text:
        return LoadError(f"{what} has no weights beside its configuration: download them, or use weights=random")
    if "model type" in text or "model identifier" in text:
        kind = model.config.get("model_type", what)
        return LoadError(f"transformers {transformers.__version__} does not know {kind}: use a newer one, or stack=")
    if isinstance(error, ImportError):
        return LoadError(f"{what} needs a package that is missing here: {first}")
    return LoadError(f"{what} could not be loaded: {type(error).__name__}: {first}")


def skeleton(
    model: Model, dtype: torch.dtype, device: torch.device, attn_implementation: str | None = None, **other: Any
) -> PreTrainedModel:
    """The exact architecture in `dtype` on `device`, which may be meta, its parameters not yet filled."""
    if other:
        raise Unsupported(f"weights=random cannot be loaded with {', '.join(sorted(other))}: use real weights")
    if model.config:
        config = AutoConfig.for_model(**model.config)
    else:
        source, options = origin(model)
        config = AutoConfig.from_pretrained(source, **options)
    options = {DTYPE: dtype, "trust_remote_code": model.trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with torch.device(device), no_init_weights():
        built = AutoModelForCausalLM.from_config(config, **options)
    built.tie_weights()
    return built


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """The model, ready to generate: no dropout, no gradients, no EOS, no shipped sampling."""
    model.eval()
    model.requires_grad_(False)
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=_pad(model.config))
    return model


def _random(model: Model, dtype: torch.dtype, device: torch.device, seed: int, **kwargs: Any) -> PreTrainedModel:
    """The exact architecture, allocated once, on the device and in the target dtype, then filled."""
    built = skeleton(model, dtype, device, **kwargs)
    noise = Noise(seed, dtype, device)
    tables(built)
    for name, (parameter, kind) in parameters(built).items():
        noise.put(name, kind, parameter)
    return built


def tables(built: PreTrainedModel) -> None:
    """Give position tables that were computed in the target dtype (GPT-J) their fp32 values."""
    with torch.no_grad():
        for module in built.modules():
            if module._buffers and not list(module.parameters(recurse=False)):
                built._init_weights(module)


def _real(model: Model, dtype: torch.dtype, device: torch.device, **kwargs: Any) -> PreTrainedModel:
    """Published weights, put on the device shard by shard where accelerate is installed."""
    source, options = origin(model)
    sharded = "distributed_config" in kwargs
    if not sharded and importlib.util.find_spec("accelerate"):
        kwargs.setdefault("device_map", {"": device})
    # A thread that asks the hub to convert old checkpoints would run beside the measurement.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")
    loaded = AutoModelForCausalLM.from_pretrained(source, **{DTYPE: dtype}, **options, **kwargs)
    if model.source == "hub" and revision_of(loaded) is None:
        loaded.config._commit_hash = _commit(source, model.revision, kwargs.get("cache_dir"))
    return loaded if kwargs.get("device_map") or sharded else loaded.to(device)


def _commit(name: str, revision: str | None, cache_dir: str | None) -> str | None:
    """The commit in the hub's cache that `revision` stands for. Transformers 5 no longer keeps it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _pad(config: Any) -> int:
    """An id that may fill beams that ended: the configuration's, or else its EOS, or else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def offline() -> bool:
    """Whether the user told the hub's client to stay off the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def hub_answers() -> bool:
    """Whether the hub's host accepts a connection. Behind a proxy that cannot be known, and True is assumed."""
    if offline():
        return False
    if "https" in urllib.request.getproxies():
        return True
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=5):
            return True
    except OSError:
        return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA and XPU raise their own class, Level Zero and the CPU allocator a RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    signs = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "OUT_OF_DEVICE_MEMORY",
        "OUT_OF_HOST_MEMORY",
    )
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
