"""How a stack knows order. Absolute positions are added to embeddings; the others act inside attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.ops import positions as ops

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows `[..., D]` of a table `[N, D]`; an id below 0 or beyond the table gives NaN, never another id's row."""
    return jnp.asarray(table).at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


class PositionEmbedding(nn.Module):
    """A learned table `[offset + length, D]`, looked up by position."""

    config: ModelConfig
    stack: Stack

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        """`[B, T]` or `[1, T]` integers to `[B, T, D]` or `[1, T, D]`."""
        config, offset = self.config, self.stack.position.offset
        start = nn.initializers.normal(config.init.embedding)
        table = self.param("table", start, (config.length + offset, config.width), jnp.dtype(config.param_dtype))
        rows = jnp.where(positions < 0, -1, positions + offset) if offset else positions  # below 0 stays no position
        return look_up(table, rows).astype(jnp.dtype(config.dtype))


class RelativeBias(nn.Module):
    """T5's learned score for each head and bucket of distance, shared by all layers (Raffel et al. 2020, 2.1)."""

    config: ModelConfig
    stack: Stack
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """`[B, T]` and `[B, S]` integers to `[B, H, T, S]` in float32 (B may be 1)."""
        config, position, heads = self.config, self.stack.position, self.stack.attention.heads
        start = nn.initializers.normal(config.init.embedding)
        table = self.param("table", start, (position.buckets, heads), jnp.dtype(config.param_dtype))
        distances = key_positions[:, None, :] - query_positions[:, :, None]
        buckets = ops.relative_buckets(
            distances, bidirectional=self.bidirectional, buckets=position.buckets, distance=position.distance
        )
        return jnp.moveaxis(table.astype(jnp.float32)[buckets], -1, 1)


def alibi_bias(heads: int, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    """Minus slope times distance (Press et al. 2022): `[B, T]` and `[B, S]` integers to `[B, H, T, S]`."""
    distances = jnp.abs(key_positions[:, None, :] - query_positions[:, :, None])
    return -ops.alibi_slopes(heads)[:, None, None] * distances[:, None].astype(jnp.float32)


def rotation(config: ModelConfig, stack: Stack, positions: jax.Array):
    """The function that turns queries and keys at these positions, `[B, T]` or `[1, T]`."""
    position, scaling = stack.position, stack.position.scaling
    frequencies, magnitude = ops.rotary_frequencies(
        config.rotary_width(stack),
        base=position.base,
        kind=scaling.kind,
        factor=scaling.factor,
        original_length=scaling.original_length,
        low=scaling.low,
        high=scaling.high,
        magnitude=scaling.magnitude,
        length=jnp.max(positions) + 1 if scaling.kind == "dynamic" else None,
    )
    return lambda heads: ops.rotate(heads, positions, frequencies, magnitude)
