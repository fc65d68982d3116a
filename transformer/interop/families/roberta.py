"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT whose positions count from the id of padding plus one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.families import bert
from transformer.interop.family import Family, Found
from transformer.interop.fields import Fields
from transformer.interop.rows import Row, linear, norm
from transformer.models.config import ModelConfig

PAD = 1  # the id of padding where the fields leave it out
HEAD = "lm_head"


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs; heads are told by their tensors."""
    if fields.take("pad_token_id", PAD) < 0:
        raise ValueError(
            f"{fields.where}: pad_token_id={fields.values['pad_token_id']} cannot work: it counts positions"
        )
    offset = fields.values.get("pad_token_id", PAD) + 1  # rows of the position table that no token has
    length = fields.size("max_position_embeddings") - offset
    if length < 1:
        raise ValueError(f"{fields.where}: max_position_embeddings leaves no position beyond pad_token_id: restore it")
    head = f"{HEAD}.dense.weight" in found
    if head:
        fields.expect("hidden_act", "gelu")  # the head has GELU whatever the blocks have
    return bert.encoder(fields, length=length, head=head, pooler="roberta.pooler.dense.weight" in found, offset=offset)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours."""
    if config.readout.transform and config.encoder.mlp.activation != "gelu":
        raise ValueError(f"encoder.mlp.activation={config.encoder.mlp.activation!r} below a read-out with transform")
    offset = config.encoder.position.offset
    if offset == 0:
        raise ValueError("encoder.position.offset=0, which is the id of padding plus 1")
    if (pad := ids.get("pad_token_id", offset - 1)) != offset - 1:
        raise ValueError(
            f"encoder.position.offset={offset} makes {offset - 1} the id of padding, but the tokenizer's is {pad}: "
            "save the model with its own tokenizer"
        )
    places = {"pad_token_id": offset - 1, "max_position_embeddings": config.length + offset}
    return bert.write(config, ids) | places


def rows(config: ModelConfig, fields: Mapping[str, Any]) -> list[Row]:
    """Their tensors and ours."""
    table = bert.body("roberta", config)
    if config.readout.transform:
        table += linear(f"{HEAD}.dense", "readout/transform", "E D -> D E", bias=True)
        table += norm(f"{HEAD}.layer_norm", "readout/norm", bias=True)
        table += bert.readout(HEAD, config.readout.tied)
    return table


FAMILY = Family(
    "roberta",
    ("encoder",),
    read,
    write,
    rows,
    lambda config: "RobertaForMaskedLM" if config.readout.transform else "RobertaModel",
    prefix="roberta.",
    heads=("lm_head.",),
    redundant={
        r"roberta\.embeddings\.(position|token_type)_ids": "counts from 0, and zeros",
        r"lm_head\.bias": "not read beside a matrix of its own, which has another bias",
    },
    copies={
        f"{HEAD}.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        f"{HEAD}.decoder.bias": f"{HEAD}.bias",
    },
)
