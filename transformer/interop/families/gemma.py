"""Gemma 1 (Gemma Team 2024, arXiv:2403.08295): scaled embeddings, zero-centred norms, gates of GELU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer.interop.families import llama
from transformer.interop.family import Found
from transformer.interop.fields import ACTIVATIONS, Fields
from transformer.models.config import Attention, Mlp, ModelConfig, Norm

# The first configs say "gelu" and mean the approximation with tanh, which the models were trained with.
MEANT = ACTIVATIONS | {"gelu": "gelu_tanh"}


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    said = fields.choose("hidden_act", MEANT, "gelu_pytorch_tanh")
    newer = fields.choose("hidden_activation", {None: None} | MEANT, None)
    if newer not in (None, said) and "hidden_act" in fields.values:
        raise ValueError(
            f"{fields.where}: hidden_act and hidden_activation differ: leave out the one that is not meant"
        )
    return decoder(fields, Attention(), newer or said)


def decoder(fields: Fields, attention: Attention, activation: str, **stack: Any) -> ModelConfig:
    """What all Gemmas share."""
    bias = fields.take("attention_bias", False)
    fields.choose("use_bidirectional_attention", {None: None, False: None}, None)
    config = llama.read_decoder(
        fields,
        dataclasses.replace(attention, bias=bias, output_bias=bias),
        mlp=Mlp(activation=activation),
        norm=Norm(zero_centred=True),
        tied=True,
        head_width=256,
        **stack,
    )
    return dataclasses.replace(config, embedding_scale=True)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    fields = llama.write_decoder(config)
    return fields | {"attention_bias": config.decoder.attention.bias, "hidden_activation": fields["hidden_act"]}


FAMILY = llama.family("gemma", read, write, "GemmaForCausalLM")
