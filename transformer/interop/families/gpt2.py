"""GPT-2 (Radford et al. 2019): matrices lie as inputs by outputs, and query, key and value in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.family import Family, Found
from transformer.interop.fields import ACTIVATIONS, Fields, activation_name, check_heads
from transformer.interop.rows import Row, norm
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    width, length = fields.size("n_embd"), fields.size("n_positions")
    fields.ignore("n_ctx", "embd_pdrop", "attn_pdrop", "resid_pdrop", "reorder_and_upcast_attn")
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    stack = Stack(
        fields.layers("n_layer"),
        Attention(
            fields.size("n_head"),
            bias=True,
            output_bias=True,
            scale=None if fields.take("scale_attn_weights", True) else 1.0,
        ),
        Mlp(
            fields.size("n_inner", None) or 4 * width,
            fields.choose("activation_function", ACTIVATIONS, "gelu_new"),
            gated=False,
            bias=True,
        ),
        Norm("layer", fields.number("layer_norm_epsilon", 1e-5), bias=True),
        position=Position("learned"),
    )
    readout = Readout(fields.take("tie_word_embeddings", True))
    return ModelConfig(fields.size("vocab_size"), width, decoder=stack, length=length, readout=readout)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    stack = config.decoder
    check_heads(config, "decoder")
    return {
        "vocab_size": config.vocab,
        "n_positions": config.length,
        "n_ctx": config.length,
        "n_embd": config.width,
        "n_layer": stack.depth,
        "n_head": stack.attention.heads,
        "n_inner": config.mlp_width(stack),
        "activation_function": activation_name(stack.mlp.activation),
        "layer_norm_epsilon": stack.norm.epsilon,
        "scale_attn_weights": stack.attention.scale != 1.0,
        "tie_word_embeddings": config.readout.tied,
    }


def rows(config: ModelConfig, fields: Mapping[str, Any]) -> list[Row]:
    """Their tensors and ours."""
    theirs, ours = "transformer.h.{}", "decoder/blocks"
    heads = tuple(f"{ours}/attention/{name}" for name in ("query", "key", "value"))
    table = [
        Row("transformer.wte.weight", "embedding/table", "V D -> V D"),
        Row("transformer.wpe.weight", "decoder/positions/table", "T D -> T D"),
        *norm(f"{theirs}.ln_1", f"{ours}/attention_norm", bias=True),
        Row(f"{theirs}.attn.c_attn.weight", tuple(f"{head}/kernel" for head in heads), "D (N H K) -> N D H K"),
        Row(f"{theirs}.attn.c_attn.bias", tuple(f"{head}/bias" for head in heads), "(N H K) -> N H K"),
        Row(f"{theirs}.attn.c_proj.weight", f"{ours}/attention/output/kernel", "(H K) D -> H K D"),
        Row(f"{theirs}.attn.c_proj.bias", f"{ours}/attention/output/bias", "D -> D"),
        *norm(f"{theirs}.ln_2", f"{ours}/mlp_norm", bias=True),
        Row(f"{theirs}.mlp.c_fc.weight", f"{ours}/mlp/up/kernel", "D F -> D F"),
        Row(f"{theirs}.mlp.c_fc.bias", f"{ours}/mlp/up/bias", "F -> F"),
        Row(f"{theirs}.mlp.c_proj.weight", f"{ours}/mlp/down/kernel", "F D -> F D"),
        Row(f"{theirs}.mlp.c_proj.bias", f"{ours}/mlp/down/bias", "D -> D"),
        *norm("transformer.ln_f", "decoder/final_norm", bias=True),
    ]
    return table if config.readout.tied else [*table, Row("lm_head.weight", "readout/kernel", "V D -> D V")]


FAMILY = Family(
    "gpt2",
    ("decoder",),
    read,
    write,
    rows,
    lambda config: "GPT2LMHeadModel",
    prefix="transformer.",
    heads=("lm_head.",),
    redundant={
        r"transformer\.h\.\d+\.attn\.bias": "the causal mask",
        r"transformer\.h\.\d+\.attn\.masked_bias": "the score of what is masked",
    },
    copies={"lm_head.weight": "transformer.wte.weight"},
)
