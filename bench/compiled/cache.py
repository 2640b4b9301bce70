"""Caches whose tensors stay where they are, so that a captured graph finds them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ..errors import Unsupported
from . import own_attention
from .attention import NAME, Parts


class Place:
    """Where decoding stands, on the device: shared by all layers, and read inside the graph.

    `rows` is batch x beams; `capacity` is how many generated tokens fit.
    """

    def __init__(self, batch: int, beams: int, capacity: int, device: torch.device, units: int, early: bool) -> None:
        def integers(*shape: int) -> torch.Tensor:
            return stay(torch.zeros(shape, dtype=torch.int32, device=device))

        self.batch, self.beams, self.rows, self.capacity = batch, beams, batch * beams, capacity
        self.prompt_length = integers(1)
        self.step = integers(1)
        self.pad = integers(batch)
        self.ancestry = integers(self.rows, capacity)
        self.units, self.early = units, early

    def begin(self, prompt_length: int, pad: torch.Tensor) -> None:
        """Stand at the first generated position after prompts of `prompt_length`, of which `pad` are padding."""
        self.prompt_length.fill_(prompt_length)
        self.step.zero_()
        self.pad.copy_(pad)
        self.ancestry.copy_(torch.arange(self.rows, device=self.ancestry.device)[:, None].expand_as(self.ancestry))

    def inherit(self, parents: torch.Tensor) -> None:
        """Let each row continue row `parents` of shape [rows]; call it before `step` moves on."""
        rows, capacity = self.ancestry.shape
        device = self.ancestry.device
        past = torch.arange(capacity, device=device) <= self.step
        fresh = torch.arange(rows, device=device, dtype=torch.int32)[:, None]
        self.ancestry.copy_(torch.where(past, self.ancestry[parents], fresh))


def stay(tensor: torch.Tensor) -> torch.Tensor:
    """Tell torch.compile that the tensor keeps its address, so that the graph may write to it."""
    torch._dynamo.mark_static_address(tensor)
    return tensor


class SharedPromptLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """The prompt once per prompt, the generated positions once per row. `update` gives the attention its parts."""

    is_compileable = True
    is_sliding = False

    def __init__(self, place: Place, prompt_capacity: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.place, self.bias = place, bias
        self.prompt_capacity = prompt_capacity
        self.filling = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate everything; the shapes are those of the first prompt."""
        _, heads, _, size = key_states.shape

        def room(rows: int, length: int) -> torch.Tensor:
            return stay(torch.zeros(rows, heads, length, size, dtype=key_states.dtype, device=key_states.device))

        self.prompt_keys, self.prompt_values = (room(self.place.batch, self.prompt_capacity) for _ in range(2))
        self.keys, self.values = (room(self.place.rows, self.place.capacity) for _ in range(2))
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Prompts, of shape [batch, heads, length, size], are kept and given back; one new position becomes `Parts`."""
        if self.filling:
            if key_states.shape != value_states.shape:
                raise Unsupported("engine=compiled needs keys and values of one size: use engine=eager")
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.prompt_keys[:, :, : key_states.shape[2]] = key_states
            self.prompt_values[:, :, : key_states.shape[2]] = value_states
            return key_states, value_states
        place = self.place
        parts = Parts(
            key_states, value_states, self.prompt_keys, self.prompt_values, self.keys, self.values,
            place.ancestry, place.prompt_length, place.step, place.pad, place.units, place.early, self.bias,
        )  # fmt: skip
        return parts, parts

    def get_seq_length(self) -> Any:
        """Filled positions: a tensor while decoding, because a number would be baked into the graph."""
        return 0 if self.filling else self.place.prompt_length + self.place.step

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Only asked for prompts, which start at 0."""
        return query_length, 0

    def get_max_length(self) -> int:
        """Prompt and continuation."""
        return self.prompt_capacity + self.place.capacity

    get_max_cache_shape = get_max_length  # its name before transformers 5.13


class SharedPrompt:
    """The cache of all layers, and the attention that reads it."""

    def __init__(self, model: Any, place: Place, prompt_capacity: int) -> None:
        config = model.config.get_text_config(decoder=True)
        self.model, self.place = model, place
        bias = own_attention.bias(model, prompt_capacity + place.capacity)
        if bias is not None:
            stay(bias)
        self.layers = [SharedPromptLayer(place, prompt_capacity, bias) for _ in range(config.num_hidden_layers)]
        self.cache = Cache(layers=list(self.layers))
        self.config = config
        self.usual = config._attn_implementation
        self.groups_experts = getattr(config, "_experts_implementation", None) == "grouped_mm"
        self.methods = own_attention.methods(model)
        self.mask = stay(torch.ones(place.rows, 1, dtype=torch.int64, device=place.step.device))

    def fill(self, ids: torch.Tensor, mask: torch.Tensor | None, position_ids: torch.Tensor) -> torch.Tensor:
        """Run prompts of shape [batch, length] through the model; logits of the last position, [batch, vocabulary].

        Raises Unsupported when a layer does not use the cache.
        """
        logits: torch.Tensor = self.model(
            input_ids=ids, attention_mask=mask, position_ids=position_ids, past_key_values=self.cache, use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        if not all(layer.is_initialized for layer in self.layers):
            raise Unsupported(
                f"engine=compiled has no cache for layers of {self.config.model_type} that are no attention: "
                "use engine=eager"
            )
        return logits

    def arguments(self) -> dict[str, Any]:
        """What the model needs for one new token beside ids and positions.

        No attention reads the mask; OPT would make one for the filled positions, and ask the host how many there are.
        """
        return {"past_key_values": self.cache, "attention_mask": self.mask}

    def decoding(self, yes: bool) -> None:
        """Switch between the model's own attention, for prompts, and `attention.attend`.

        Experts change, too, as `generate` has it: grouped products may wait for the host, which no graph holds.
        """
        for layer in self.layers:
            layer.filling = not yes
        for method in self.methods:
            method.replace(yes)
        self.config._attn_implementation = NAME if yes else self.usual
        if self.groups_experts:
            self.config._experts_implementation = "batched_mm" if yes else "grouped_mm"
