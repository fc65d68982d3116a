"""Marian (Junczys-Dowmunt et al. 2018, arXiv:1804.00344): the original Transformer, with biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.family import Family, Found
from transformer.interop.fields import ACTIVATIONS, Fields, activation_name, check_heads
from transformer.interop.rows import Row, linear, norm
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack

ROLES = ("encoder", "decoder")
OTHERS = {  # what older configs say of other architectures of their class
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "normalize_before": False,
    "normalize_embedding": False,
    "share_encoder_decoder_embeddings": True,
    "static_position_embeddings": True,
    "tie_word_embeddings": True,  # otherwise both stacks have tables of their own
}


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    fields.ignore("dropout", "attention_dropout", "activation_dropout", "extra_pos_embeddings", "num_hidden_layers",
                  "encoder_layerdrop", "decoder_layerdrop")  # fmt: skip
    for name, value in OTHERS.items():
        fields.expect(name, value)
    vocab = fields.size("vocab_size")
    fields.expect("decoder_vocab_size", vocab)
    activation = fields.choose("activation_function", ACTIVATIONS, "gelu")
    encoder, decoder = (
        Stack(
            fields.layers(f"{role}_layers"),
            Attention(fields.size(f"{role}_attention_heads"), bias=True, output_bias=True),
            Mlp(fields.size(f"{role}_ffn_dim"), activation, gated=False, bias=True),
            Norm("layer", 1e-5, bias=True),
            norm_placement="post",
            position=Position("sinusoidal", halves=True),
        )
        for role in ROLES
    )
    return ModelConfig(
        vocab,
        fields.size("d_model"),
        encoder=encoder,
        decoder=decoder,
        length=fields.size("max_position_embeddings"),
        embedding_scale=fields.take("scale_embedding", False),
        readout=Readout(bias=True),
    )


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    fields = {
        "vocab_size": config.vocab,
        "decoder_vocab_size": config.vocab,
        "d_model": config.width,
        "activation_function": activation_name(config.encoder.mlp.activation),
        "max_position_embeddings": config.length,
        "scale_embedding": config.embedding_scale,
        "is_encoder_decoder": True,
        "decoder_start_token_id": ids.get("pad_token_id", config.vocab - 1),
        "pad_token_id": ids.get("pad_token_id", config.vocab - 1),
        "forced_eos_token_id": ids.get("eos_token_id"),
        **OTHERS,
    }
    for role in ROLES:
        stack = getattr(config, role)
        check_heads(config, role)
        fields[f"{role}_layers"] = stack.depth
        fields[f"{role}_attention_heads"] = stack.attention.heads
        fields[f"{role}_ffn_dim"] = config.mlp_width(stack)
    return fields


def rows(config: ModelConfig, fields: Mapping[str, Any]) -> list[Row]:
    """Their tensors and ours."""
    table = [
        Row("model.shared.weight", "embedding/table", "V D -> V D"),
        Row("final_logits_bias", "readout/bias", "1 V -> V"),
    ]
    for role in ROLES:
        theirs, ours = f"model.{role}.layers.{{}}", f"{role}/blocks"
        table += _attention(f"{theirs}.self_attn", f"{ours}/attention")
        table += norm(f"{theirs}.self_attn_layer_norm", f"{ours}/attention_norm", bias=True)
        if role == "decoder":
            table += _attention(f"{theirs}.encoder_attn", f"{ours}/cross_attention")
            table += norm(f"{theirs}.encoder_attn_layer_norm", f"{ours}/cross_norm", bias=True)
        table += linear(f"{theirs}.fc1", f"{ours}/mlp/up", "F D -> D F", bias=True)
        table += linear(f"{theirs}.fc2", f"{ours}/mlp/down", "D F -> F D", bias=True)
        table += norm(f"{theirs}.final_layer_norm", f"{ours}/mlp_norm", bias=True)
    return table


def _attention(theirs: str, ours: str) -> list[Row]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
    table = [
        row
        for name, part in names.items()
        for row in linear(f"{theirs}.{name}", f"{ours}/{part}", "(H K) D -> D H K", bias=True)
    ]
    return table + linear(f"{theirs}.out_proj", f"{ours}/output", "D (H K) -> H K D", bias=True)


FAMILY = Family(
    "marian",
    ROLES,
    read,
    write,
    rows,
    lambda config: "MarianMTModel",
    prefix="model.",
    heads=("lm_head.", "final_logits_bias"),
    redundant={r"model\.(encoder|decoder)\.embed_positions\.weight": "sinusoids, which are computed"},
    copies={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
)
