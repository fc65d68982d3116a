"""Llama 2 and 3 (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.families import lineage
from transformer.interop.family import Family, Found
from transformer.interop.fields import Fields
from transformer.models.config import Attention, Mlp, ModelConfig


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    bias = fields.take("attention_bias", False)
    mlp = Mlp(activation=lineage.activation(fields), bias=fields.take("mlp_bias", False))
    return lineage.read(fields, Attention(bias=bias, output_bias=bias), mlp=mlp, kv_heads=None)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    stack = config.decoder
    return lineage.write(config) | {"attention_bias": stack.attention.bias, "mlp_bias": stack.mlp.bias}


FAMILY = Family(
    "llama",
    ("decoder",),
    read,
    write,
    lineage.rows,
    lambda config: "LlamaForCausalLM",
    prefix=lineage.PREFIX,
    heads=lineage.HEADS,
    redundant=lineage.REDUNDANT,
    copies=lineage.COPIES,
)
