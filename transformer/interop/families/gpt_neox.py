"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia: parallel halves, and a part of each head that turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop import rotary
from transformer.interop.family import Family, Found
from transformer.interop.fields import ACTIVATIONS, Fields, activation_name, check_heads
from transformer.interop.rows import Row, linear, norm
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Readout, Stack


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    length, bias = fields.size("max_position_embeddings"), fields.take("attention_bias", True)
    base, fraction = fields.number("rotary_emb_base", 10_000.0), fields.number("rotary_pct", 0.25)
    fields.ignore("attention_dropout", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob")
    stack = Stack(
        fields.layers("num_hidden_layers"),
        Attention(heads, bias=bias, output_bias=bias),
        Mlp(
            fields.size("intermediate_size"),
            fields.choose("hidden_act", ACTIVATIONS, "gelu"),
            gated=False,
            bias=True,
        ),
        Norm("layer", fields.number("layer_norm_eps", 1e-5), bias=True),
        position=rotary.read(fields, length, width // heads, base, fraction),
        parallel=fields.take("use_parallel_residual", True),
    )
    readout = Readout(fields.take("tie_word_embeddings", False))
    return ModelConfig(fields.size("vocab_size"), width, decoder=stack, length=length, readout=readout)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    stack = config.decoder
    check_heads(config, "decoder")
    positions = rotary.write(config, stack)
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "intermediate_size": config.mlp_width(stack),
        "hidden_act": activation_name(stack.mlp.activation),
        "layer_norm_eps": stack.norm.epsilon,
        "max_position_embeddings": config.length,
        "attention_bias": stack.attention.bias,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "use_parallel_residual": stack.parallel,
        "tie_word_embeddings": config.readout.tied,
        "rotary_emb_base": positions["rope_theta"],
        "rotary_pct": stack.position.fraction,
        "rope_scaling": positions["rope_scaling"],
    }


def rows(config: ModelConfig, fields: Mapping[str, Any]) -> list[Row]:
    """Their tensors and ours."""
    theirs, ours, bias = "gpt_neox.layers.{}", "decoder/blocks", config.decoder.attention.bias
    heads = tuple(f"{ours}/attention/{name}" for name in ("query", "key", "value"))
    table = [
        Row("gpt_neox.embed_in.weight", "embedding/table", "V D -> V D"),
        *norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm", bias=True),
        *norm(f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm", bias=True),
        Row(
            f"{theirs}.attention.query_key_value.weight",
            tuple(f"{head}/kernel" for head in heads),
            "(H N K) D -> N D H K",
        ),
        *linear(f"{theirs}.attention.dense", f"{ours}/attention/output", "D (H K) -> H K D", bias),
        *linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}/mlp/up", "F D -> D F", bias=True),
        *linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}/mlp/down", "D F -> F D", bias=True),
        *norm("gpt_neox.final_layer_norm", "decoder/final_norm", bias=True),
    ]
    if bias:
        biases = tuple(f"{head}/bias" for head in heads)
        table.append(Row(f"{theirs}.attention.query_key_value.bias", biases, "(H N K) -> N H K"))
    return table if config.readout.tied else [*table, Row("embed_out.weight", "readout/kernel", "V D -> D V")]


FAMILY = Family(
    "gpt_neox",
    ("decoder",),
    read,
    write,
    rows,
    lambda config: "GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    heads=("embed_out.",),
    renames={r"lm_head\.": "embed_out."},
    redundant={
        r"gpt_neox\.layers\.\d+\.attention\.bias": "the causal mask",
        r"gpt_neox\.layers\.\d+\.attention\.masked_bias": "the score of what is masked",
        r"gpt_neox\.(layers\.\d+\.attention\.)?rotary_emb\.inv_freq": "rotary frequencies, which are computed",
    },
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
)
