"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral, with a mixture of experts for every feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.interop.families import llama
from transformer.interop.family import Found
from transformer.interop.fields import LAYERS, Fields
from transformer.interop.rows import Row
from transformer.models.config import Attention, Mlp, ModelConfig
from transformer.models.feed_forward import Experts

MIXTURE = f"{llama.PREFIX}layers.{{}}.block_sparse_moe"
PROJECTIONS = {"w1": ("gate", "F D -> D F"), "w3": ("up", "F D -> D F"), "w2": ("down", "D F -> F D")}


def read(fields: Fields, found: Found) -> ModelConfig:
    """Our config from theirs."""
    window = fields.size("sliding_window", None, null=True)
    attention = Attention(windows=() if window is None else (window,))
    experts = Experts(fields.size("num_local_experts", 8, LAYERS), fields.size("num_experts_per_tok", 2))
    fields.ignore("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")  # of training
    mlp = Mlp(activation=llama.activation(fields), experts=experts)
    defaults = {"kv_heads": 8, "length": 4096 * 32, "epsilon": 1e-5, "base": 1e6}
    return llama.read_decoder(fields, attention, mlp=mlp, **defaults)


def write(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config from ours; a dense one has one expert there."""
    experts = config.decoder.mlp.experts or Experts(1, 1)
    fields = llama.write_windows(config.decoder)
    del fields["layer_types"]  # all alike
    fields |= {"num_local_experts": experts.count, "num_experts_per_tok": experts.active}
    return llama.write_decoder(config) | fields


def rows(config: ModelConfig, fields: Mapping[str, Any]) -> list[Row]:
    """Their tensors and ours: one of theirs for each expert in each layer."""
    table = [row for row in llama.rows(config, fields) if "/mlp/" not in row.paths[0]]
    if config.decoder.mlp.experts is None:
        return table
    ours = "decoder/blocks/mlp"
    for theirs, (name, pattern) in PROJECTIONS.items():
        table.append(Row(f"{MIXTURE}.experts.{{}}.{theirs}.weight", f"{ours}/{name}/kernel", pattern))
    return [*table, Row(f"{MIXTURE}.gate.weight", f"{ours}/router/kernel", "N D -> D N")]


FAMILY = llama.family("mixtral", read, write, "MixtralForCausalLM", rows)
