"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): RMSNorm over each head's query and key, and no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.families import lineage, qwen2
from transformer.interop.family import Family, Found
from transformer.interop.fields import Fields
from transformer.models.config import Attention, Mlp, ModelConfig


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    bias = fields.take("attention_bias", False)
    attention = Attention(bias=bias, output_bias=bias, query_key_norm=True, windows=qwen2.windows(fields))
    return lineage.read(fields, attention, mlp=Mlp(activation=lineage.activation(fields)), head_width=128)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    return lineage.write(config) | qwen2.write_windows(config) | {"attention_bias": config.decoder.attention.bias}


FAMILY = Family(
    "qwen3",
    ("decoder",),
    read,
    write,
    lineage.rows,
    lambda config: "Qwen3ForCausalLM",
    prefix=lineage.PREFIX,
    heads=lineage.HEADS,
    redundant=lineage.REDUNDANT,
    copies=lineage.COPIES,
)
