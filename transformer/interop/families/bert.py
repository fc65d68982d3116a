"""BERT (Devlin et al. 2019, arXiv:1810.04805), with its masked-language-model head, its pooler, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.family import Family, Found
from transformer.interop.fields import ACTIVATIONS, Fields, activation_name, check_heads
from transformer.interop.rows import Row, linear, norm
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack

HEAD = "cls.predictions"
POOLERS = tuple(
    f"pooler_{name}" for name in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")
)


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs; heads are told by their tensors."""
    return encoder(
        fields,
        length=fields.size("max_position_embeddings"),
        head=f"{HEAD}.transform.dense.weight" in found,
        pooler="bert.pooler.dense.weight" in found,
    )


def encoder(fields: Fields, *, length: int, head: bool, pooler: bool, offset: int = 0) -> ModelConfig:
    """What BERT and RoBERTa share."""
    fields.ignore("attention_probs_dropout_prob", "hidden_dropout_prob", "directionality", *POOLERS)
    fields.expect("position_embedding_type", "absolute")
    stack = Stack(
        fields.layers("num_hidden_layers"),
        Attention(fields.size("num_attention_heads"), bias=True, output_bias=True),
        Mlp(
            fields.size("intermediate_size"),
            fields.choose("hidden_act", ACTIVATIONS, "gelu"),
            gated=False,
            bias=True,
        ),
        Norm("layer", fields.number("layer_norm_eps", 1e-12), bias=True),
        norm_placement="post",
        position=Position("learned", offset=offset),
        embedding_norm=True,
    )
    tied = fields.take("tie_word_embeddings", True)
    return ModelConfig(
        fields.size("vocab_size"),
        fields.size("hidden_size"),
        encoder=stack,
        length=length,
        token_types=fields.size("type_vocab_size", 2),
        readout=Readout(tied, bias=True, transform=True) if head else Readout(),
        pooler=pooler,
    )


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    stack = config.encoder
    if config.token_types == 0:
        raise ValueError("token_types=0")
    check_heads(config, "encoder")
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "intermediate_size": config.mlp_width(stack),
        "hidden_act": activation_name(stack.mlp.activation),
        "layer_norm_eps": stack.norm.epsilon,
        "max_position_embeddings": config.length,
        "type_vocab_size": config.token_types,
        "tie_word_embeddings": config.readout.tied,
    }


def rows(config: ModelConfig, fields: Mapping[str, Any]) -> list[Row]:
    """Their tensors and ours."""
    table = body("bert", config)
    if config.readout.transform:
        table += linear(f"{HEAD}.transform.dense", "readout/transform", "E D -> D E", bias=True)
        table += norm(f"{HEAD}.transform.LayerNorm", "readout/norm", bias=True)
        table += readout(HEAD, config.readout.tied)
    return table


def body(prefix: str, config: ModelConfig) -> list[Row]:
    """The tensors below all heads."""
    theirs, ours = f"{prefix}.encoder.layer.{{}}", "encoder/blocks"
    embeddings = f"{prefix}.embeddings"
    table = [
        Row(f"{embeddings}.word_embeddings.weight", "embedding/table", "V D -> V D"),
        Row(f"{embeddings}.token_type_embeddings.weight", "embedding/types", "N D -> N D"),
        Row(f"{embeddings}.position_embeddings.weight", "encoder/positions/table", "T D -> T D"),
        *norm(f"{embeddings}.LayerNorm", "encoder/embedding_norm", bias=True),
        *linear(f"{theirs}.attention.output.dense", f"{ours}/attention/output", "D (H K) -> H K D", bias=True),
        *norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm", bias=True),
        *linear(f"{theirs}.intermediate.dense", f"{ours}/mlp/up", "F D -> D F", bias=True),
        *linear(f"{theirs}.output.dense", f"{ours}/mlp/down", "D F -> F D", bias=True),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}/mlp_norm", bias=True),
    ]
    for name in ("query", "key", "value"):
        table += linear(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}", "(H K) D -> D H K", bias=True)
    if config.pooler:
        table += linear(f"{prefix}.pooler.dense", "pooler", "E D -> D E", bias=True)
    return table


def readout(head: str, tied: bool) -> list[Row]:
    """The matrix of a head and its bias, which is of another name where the matrix is the embedding's."""
    if tied:
        return [Row(f"{head}.bias", "readout/bias", "V -> V")]
    return [
        Row(f"{head}.decoder.weight", "readout/kernel", "V D -> D V"),
        Row(f"{head}.decoder.bias", "readout/bias", "V -> V", alias=f"{head}.bias"),
    ]


def _architecture(config: ModelConfig) -> str:
    if not config.readout.transform:
        return "BertModel"
    return "BertForPreTraining" if config.pooler else "BertForMaskedLM"


FAMILY = Family(
    "bert",
    ("encoder",),
    read,
    write,
    rows,
    _architecture,
    prefix="bert.",
    heads=("cls.",),
    renames={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    redundant={
        r"bert\.embeddings\.(position|token_type)_ids": "counts from 0, and zeros",
        r"cls\.predictions\.bias": "not read beside a matrix of its own, which has another bias",
        r"cls\.seq_relationship\.(weight|bias)": "the classifier of next sentences, which pre-training alone uses",
    },
    copies={
        f"{HEAD}.decoder.weight": "bert.embeddings.word_embeddings.weight",
        f"{HEAD}.decoder.bias": f"{HEAD}.bias",
    },
)
