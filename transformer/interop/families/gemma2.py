"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): soft caps, windows in every other layer, norms before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from transformer.interop.families import gemma, llama
from transformer.interop.family import Found
from transformer.interop.fields import ACTIVATIONS, Fields
from transformer.models.config import Attention, ModelConfig

NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    fields.ignore("hidden_act")  # an older name that the publisher's library does not read here
    activation = fields.choose("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    depth, window = fields.layers("num_hidden_layers"), fields.size("sliding_window", 4096, null=True)
    fields.expect("sliding_window_size", window)  # an older name of the same
    squared = fields.number("query_pre_attn_scalar", 256.0)
    if squared <= 0:
        raise ValueError(f"{fields.where}: query_pre_attn_scalar={squared:g} cannot work: it must be positive")
    attention = Attention(
        scale=squared**-0.5,
        softcap=fields.number("attn_logit_softcapping", 50.0, null=True),
        windows=llama.windows(fields, window, [layer % 2 == 0 for layer in range(depth)]),
    )
    config = gemma.decoder(fields, attention, activation, norm_placement="both")
    readout = dataclasses.replace(config.readout, softcap=fields.number("final_logit_softcapping", 30.0, null=True))
    return dataclasses.replace(config, readout=readout)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    attention = config.decoder.attention
    fields = llama.write_decoder(config) | llama.write_windows(config.decoder)
    scale = config.head_width(config.decoder) ** -0.5 if attention.scale is None else attention.scale
    if not 1e-100 < scale < 1e100:  # which has no inverse square
        raise ValueError(f"decoder.attention.scale={scale!r}")
    squared = scale**-2
    return fields | {
        "hidden_activation": fields.pop("hidden_act"),
        "attention_bias": attention.bias,
        "query_pre_attn_scalar": round(squared) if abs(squared - round(squared)) < 1e-6 * squared else squared,
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": config.readout.softcap,
    }


FAMILY = llama.family("gemma2", read, write, "Gemma2ForCausalLM", partial(llama.rows, norms=NORMS))
