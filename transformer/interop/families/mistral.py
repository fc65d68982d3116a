"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): Llama with grouped heads and a window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.families import llama
from transformer.interop.family import Found
from transformer.interop.fields import Fields
from transformer.models.config import Attention, Mlp, ModelConfig


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    window = fields.size("sliding_window", 4096, null=True)
    attention = Attention(windows=() if window is None else (window,))
    return llama.read_decoder(fields, attention, mlp=Mlp(activation=llama.activation(fields)))


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    fields = llama.write_windows(config.decoder)
    del fields["layer_types"]  # all alike
    return llama.write_decoder(config) | fields


FAMILY = llama.family("mistral", read, write, "MistralForCausalLM")
