"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): RMSNorm over each head's query and key, and no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.families import llama, qwen2
from transformer.interop.family import Found
from transformer.interop.fields import Fields
from transformer.models.config import Attention, Mlp, ModelConfig


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    bias = fields.take("attention_bias", False)
    attention = Attention(bias=bias, output_bias=bias, query_key_norm=True, windows=qwen2.windows(fields))
    return llama.read_decoder(fields, attention, mlp=Mlp(activation=llama.activation(fields)), head_width=128)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    return llama.write_decoder(config) | qwen2.write_windows(config) | {"attention_bias": config.decoder.attention.bias}


FAMILY = llama.family("qwen3", read, write, "Qwen3ForCausalLM")
