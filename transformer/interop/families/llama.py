"""Llama 2 and 3 (Touvron et al. 2023, arXiv:2307.09288; Dubey et al. 2024, arXiv:2407.21783), and what its descendants
share with it: gated, rotary, RMS-normalised decoders whose fields and tensors have the same names."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from transformer.interop import rotary
from transformer.interop.family import Family, Found
from transformer.interop.fields import ACTIVATIONS, REQUIRED, Fields, activation_name
from transformer.interop.rows import Row, linear, norm
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Readout, Stack

PREFIX = "model."
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
ATTENTIONS = {"full_attention": False, "sliding_attention": True}  # by layer: whether it has a window


def read_decoder(
    fields: Fields,
    attention: Attention,
    *,
    mlp: Mlp = Mlp(),  # noqa: B008
    norm: Norm = Norm(),  # noqa: B008
    tied: bool = False,
    kv_heads: Any = REQUIRED,
    length: Any = REQUIRED,
    head_width: int | None = None,
    epsilon: float = 1e-6,
    base: float = 10_000.0,
    **stack: Any,
) -> ModelConfig:
    """Our config from the fields that all of them have.

    Args:
      attention, mlp, norm: what the family adds; numbers of heads, widths and epsilon are taken from the fields.
      tied: the read-out where the fields leave it out.
      kv_heads: G where the fields leave it out; None is as many as heads.
      length: the longest sequence where the fields leave it out.
      head_width: K where the fields leave it out; None is width / heads.
      epsilon, base: of norms and of rotary positions where the fields leave them out.
      **stack: what the family's `Stack` adds.
    """
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads, length = (
        fields.size("num_key_value_heads", kv_heads) or heads,
        fields.size("max_position_embeddings", length),
    )
    head = fields.size("head_dim", None) or head_width or width // heads
    fields.ignore("attention_dropout")
    decoder = Stack(
        fields.layers("num_hidden_layers"),
        dataclasses.replace(attention, heads=heads, kv_heads=kv_heads, head_width=head),
        dataclasses.replace(mlp, width=fields.size("intermediate_size")),
        dataclasses.replace(norm, epsilon=fields.number("rms_norm_eps", epsilon)),
        position=rotary.read(fields, length, head, base),
        **stack,
    )
    readout = Readout(fields.take("tie_word_embeddings", tied))
    return ModelConfig(fields.size("vocab_size"), width, decoder=decoder, length=length, readout=readout)


def activation(fields: Fields) -> str:
    """The activation in `hidden_act`."""
    return fields.choose("hidden_act", ACTIVATIONS, "silu")


def windows(fields: Fields, width: int | None, default: list[bool]) -> tuple[int, ...]:
    """The window of every layer, from `layer_types` or, in older files, from a rule.

    Args:
      width: of a window; None: no layer has one.
      default: by layer, whether it has a window, where the fields do not say.
    """
    types = fields.take("layer_types", None, (list, type(None)))
    if types is not None and len(types) != len(default):
        raise ValueError(f"{fields.where}: layer_types has {len(types)} entries for {len(default)} layers")
    for kind in types or ():
        if not isinstance(kind, str) or kind not in ATTENTIONS:
            raise ValueError(
                f"{fields.where}: layer_types holds {reprlib.repr(kind)}; there are {', '.join(ATTENTIONS)}"
            )
    banded = default if types is None else [ATTENTIONS[kind] for kind in types]
    if width is None and types is not None and any(banded):
        raise ValueError(f"{fields.where}: layer_types has sliding_attention, but sliding_window is {width}")
    if width is None or not any(banded):
        return ()
    return tuple(width if band else 0 for band in banded)


def write_windows(stack: Stack) -> dict[str, Any]:
    """The fields of windows: `sliding_window` and, by layer, `layer_types`; raises ValueError if widths differ."""
    every = stack.attention.windows * (stack.depth // max(1, len(stack.attention.windows))) or (0,) * stack.depth
    widths = sorted(set(every) - {0})
    if len(widths) > 1:
        raise ValueError(f"attention.windows={stack.attention.windows} of several widths")
    types = ["sliding_attention" if width else "full_attention" for width in every]
    return {"sliding_window": widths[0] if widths else None, "layer_types": types}


def write_decoder(config: ModelConfig) -> dict[str, Any]:
    """The fields that all of them have."""
    stack = config.decoder
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "num_key_value_heads": config.kv_heads(stack),
        "head_dim": config.head_width(stack),
        "intermediate_size": config.mlp_width(stack),
        "hidden_act": activation_name(stack.mlp.activation),
        "rms_norm_eps": stack.norm.epsilon,
        "max_position_embeddings": config.length,
        "tie_word_embeddings": config.readout.tied,
        "attention_dropout": 0.0,
        **rotary.write(config, stack),
    }


def rows(config: ModelConfig, fields: Mapping[str, Any], norms: Mapping[str, str] = NORMS) -> list[Row]:
    """Their tensors and ours; `norms` are those of a block."""
    stack = config.decoder
    theirs, ours, bias = f"{PREFIX}layers.{{}}", "decoder/blocks", stack.attention.bias
    table = [
        Row(f"{PREFIX}embed_tokens.weight", "embedding/table", "V D -> V D"),
        *linear(f"{theirs}.self_attn.q_proj", f"{ours}/attention/query", "(H K) D -> D H K", bias),
        *linear(f"{theirs}.self_attn.k_proj", f"{ours}/attention/key", "(G K) D -> D G K", bias),
        *linear(f"{theirs}.self_attn.v_proj", f"{ours}/attention/value", "(G K) D -> D G K", bias),
        *linear(
            f"{theirs}.self_attn.o_proj", f"{ours}/attention/output", "D (H K) -> H K D", stack.attention.output_bias
        ),
        *linear(f"{theirs}.mlp.gate_proj", f"{ours}/mlp/gate", "F D -> D F", stack.mlp.bias),
        *linear(f"{theirs}.mlp.up_proj", f"{ours}/mlp/up", "F D -> D F", stack.mlp.bias),
        *linear(f"{theirs}.mlp.down_proj", f"{ours}/mlp/down", "D F -> F D", stack.mlp.bias),
        *norm(f"{PREFIX}norm", "decoder/final_norm", bias=False),
    ]
    for name, norm_of_ours in norms.items():
        table += norm(f"{theirs}.{name}", f"{ours}/{norm_of_ours}", bias=False)
    if stack.attention.query_key_norm:
        for name in ("query", "key"):
            table += norm(f"{theirs}.self_attn.{name[0]}_norm", f"{ours}/attention/{name}_norm", bias=False)
    return table if config.readout.tied else [*table, Row("lm_head.weight", "readout/kernel", "V D -> D V")]


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    bias = fields.take("attention_bias", False)
    mlp = Mlp(activation=activation(fields), bias=fields.take("mlp_bias", False))
    fields.ignore("max_sequence_length")  # an older name, beside max_position_embeddings
    return read_decoder(fields, Attention(bias=bias, output_bias=bias), mlp=mlp, kv_heads=None, length=2048)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    stack = config.decoder
    return write_decoder(config) | {"attention_bias": stack.attention.bias, "mlp_bias": stack.mlp.bias}


def family(
    name: str,
    read: Callable[[Fields, Found], ModelConfig],
    write: Callable[[ModelConfig, Mapping[str, int]], dict[str, Any]],
    architecture: str,
    rows: Callable[[ModelConfig, Mapping[str, Any]], list[Row]] = rows,
) -> Family:
    """A family of this kind, from what is its own."""
    return Family(
        name,
        ("decoder",),
        read,
        write,
        rows,
        lambda config: architecture,
        prefix=PREFIX,
        heads=("lm_head.",),
        redundant={r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "rotary frequencies, which are computed"},
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )


FAMILY = family("llama", read, write, "LlamaForCausalLM")
