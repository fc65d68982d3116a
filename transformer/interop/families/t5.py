"""T5 (Raffel et al. 2020, arXiv:1910.10683), versions 1.0 and 1.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.family import Family, Found
from transformer.interop.fields import ACTIVATIONS, Fields, activation_name
from transformer.interop.rows import Row, linear, norm
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack

LENGTH = 512  # at which the published ones were trained; relative positions have no end


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    fields.ignore("dropout_rate")
    attention = Attention(fields.size("num_heads"), head_width=fields.size("d_kv"), scale=1.0)
    depth = fields.layers("num_layers")
    buckets, distance = (fields.size(f"relative_attention_{name}", default) for name, default in
                         (("num_buckets", 32), ("max_distance", 128)))  # fmt: skip
    shared = (
        attention,
        _mlp(fields),
        Norm("rms", fields.number("layer_norm_epsilon", 1e-6)),
        "pre",
        Position("relative", buckets=buckets, distance=distance),
    )
    # Version 1.1 says in this field that its read-out is not tied, and its features are then not scaled either.
    scaled = fields.take("scale_decoder_outputs", fields.take("tie_word_embeddings", True))
    own = "lm_head.weight" in found and not found.same("lm_head.weight", "shared.weight")
    return ModelConfig(
        fields.size("vocab_size"),
        fields.size("d_model"),
        encoder=Stack(depth, *shared),
        decoder=Stack(fields.layers("num_decoder_layers", None) or depth, *shared),
        length=fields.size("n_positions", LENGTH),
        readout=Readout(tied=not own, scale=scaled),
    )


def _mlp(fields: Fields) -> Mlp:
    kind = fields.take("feed_forward_proj", "relu")
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    name = "gelu_new" if kind == "gated-gelu" else name
    if fields.take("dense_act_fn", name) != name or fields.take("is_gated_act", gated) != gated:
        raise ValueError(f"{fields.where}: dense_act_fn or is_gated_act contradicts feed_forward_proj={kind!r}")
    if name not in ACTIVATIONS:
        raise ValueError(f"{fields.where}: feed_forward_proj={kind!r} has no counterpart here")
    return Mlp(fields.size("d_ff"), ACTIVATIONS[name], gated=gated)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    stack = config.encoder
    name = activation_name(stack.mlp.activation)
    if stack.mlp.gated:
        name = "gated-gelu" if stack.mlp.activation == "gelu_tanh" else f"gated-{name}"
    return {
        "vocab_size": config.vocab,
        "d_model": config.width,
        "d_kv": config.head_width(stack),
        "d_ff": config.mlp_width(stack),
        "num_layers": stack.depth,
        "num_decoder_layers": config.decoder.depth,
        "num_heads": stack.attention.heads,
        "feed_forward_proj": name,
        "layer_norm_epsilon": stack.norm.epsilon,
        "relative_attention_num_buckets": stack.position.buckets,
        "relative_attention_max_distance": stack.position.distance,
        "n_positions": config.length,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.readout.scale,
        "decoder_start_token_id": ids.get("pad_token_id", 0),
    }


def rows(config: ModelConfig, fields: Mapping[str, Any]) -> list[Row]:
    """Their tensors and ours."""
    table = [Row("shared.weight", "embedding/table", "V D -> V D")]
    for role, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        halves = [("attention", "SelfAttention"), *([("cross", "EncDecAttention")] if role == "decoder" else [])]
        for index, (ours, theirs) in enumerate(halves):
            layer, block = f"{role}.block.{{}}.layer.{index}", f"{role}/blocks"
            table += _attention(f"{layer}.{theirs}", f"{block}/{'cross_' * (ours == 'cross')}attention")
            table += norm(f"{layer}.layer_norm", f"{block}/{ours}_norm", bias=False)
        table += _feed_forward(f"{role}.block.{{}}.layer.{len(halves)}", f"{role}/blocks", stack)
        bias = f"{role}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(Row(bias, f"{role}/relative/table", "N H -> N H"))
        table += norm(f"{role}.final_layer_norm", f"{role}/final_norm", bias=False)
    return table if config.readout.tied else [*table, Row("lm_head.weight", "readout/kernel", "V D -> D V")]


def _attention(theirs: str, ours: str) -> list[Row]:
    names = ("query", "key", "value")
    table = [
        row for name in names for row in linear(f"{theirs}.{name[0]}", f"{ours}/{name}", "(H K) D -> D H K", False)
    ]
    return table + linear(f"{theirs}.o", f"{ours}/output", "D (H K) -> H K D", bias=False)


def _feed_forward(theirs: str, ours: str, stack: Stack) -> list[Row]:
    names = {"wi_0": "gate", "wi_1": "up"} if stack.mlp.gated else {"wi": "up"}
    dense = f"{theirs}.DenseReluDense"
    table = [
        row
        for name, part in names.items()
        for row in linear(f"{dense}.{name}", f"{ours}/mlp/{part}", "F D -> D F", False)
    ]
    table += linear(f"{dense}.wo", f"{ours}/mlp/down", "D F -> F D", bias=False)
    return table + norm(f"{theirs}.layer_norm", f"{ours}/mlp_norm", bias=False)


FAMILY = Family(
    "t5",
    ("encoder", "decoder"),
    read,
    write,
    rows,
    lambda config: "T5ForConditionalGeneration",
    redundant={
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "never read: cross-attention "
        "has no positions",
    },
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
)
