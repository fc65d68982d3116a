"""Qwen2 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on query, key and value; windows in its last layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.families import llama
from transformer.interop.family import Found
from transformer.interop.fields import Fields
from transformer.models.config import Attention, Mlp, ModelConfig


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    attention = Attention(bias=True, windows=windows(fields))
    return llama.read_decoder(fields, attention, mlp=Mlp(activation=llama.activation(fields)))


def windows(fields: Fields) -> tuple[int, ...]:
    """The window of every layer: off by default, else in those from `max_window_layers` on."""
    used, width = fields.take("use_sliding_window", False), fields.size("sliding_window", None)
    first, depth = fields.take("max_window_layers", 28), fields.layers("num_hidden_layers")
    return llama.windows(fields, width if used else None, [used and layer >= first for layer in range(depth)])


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The fields of windows."""
    fields = llama.write_windows(config.decoder)
    banded = [kind == "sliding_attention" for kind in fields["layer_types"]]
    first = banded.index(True) if any(banded) else len(banded)
    return fields | {"use_sliding_window": any(banded), "max_window_layers": first}


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    return llama.write_decoder(config) | write_windows(config)


FAMILY = llama.family("qwen2", read, write, "Qwen2ForCausalLM")
