"""The key/value cache of a decoder: a pytree that goes in and comes out, of static shape.

Slot s of a row holds the key and value of that row's position s. Rows may hold different numbers of tokens: slots at or
beyond a row's `length` are never attended to, because the causal mask compares slots with the queries' positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp

from transformer.ops.sharding import constrain

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig


@flax.struct.dataclass
class Cache:
    """Keys and values of every layer.

    Attributes:
      key, value: `[L, B, S, G, K]` of self-attention.
      length: `[B]` integers, tokens held by each row; the next token's position.
      cross_key, cross_value: `[L, B, S', G, K]` of the source, or None without an encoder.
      cross_mask: `[B, S']` booleans, the real source tokens, or None.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array
    cross_key: jax.Array | None = None
    cross_value: jax.Array | None = None
    cross_mask: jax.Array | None = None

    @property
    def capacity(self) -> int:
        """The number of slots in each row."""
        return self.key.shape[2]

    def write(self, layer: jax.Array, key: jax.Array, value: jax.Array) -> Cache:
        """Put `[B, T, G, K]` keys and values into a layer at each row's next positions. `length` stays."""
        rows = jnp.arange(key.shape[0])[:, None]
        slots = self.length[:, None] + jnp.arange(key.shape[1])
        return self.replace(
            key=_laid_out(self.key.at[layer, rows, slots].set(key.astype(self.key.dtype), mode="drop")),
            value=_laid_out(self.value.at[layer, rows, slots].set(value.astype(self.value.dtype), mode="drop")),
        )

    def write_source(self, layer: jax.Array, key: jax.Array, value: jax.Array) -> Cache:
        """Put the source's `[B, S', G, K]` keys and values into a layer."""
        return self.replace(
            cross_key=_laid_out(self.cross_key.at[layer].set(key.astype(self.cross_key.dtype))),
            cross_value=_laid_out(self.cross_value.at[layer].set(value.astype(self.cross_value.dtype))),
        )


def _laid_out(array: jax.Array) -> jax.Array:
    return constrain(array, None, "rows", None, "heads", None)


def empty(config: ModelConfig, batch: int, length: int, source_length: int | None = None) -> Cache:
    """A cache for `batch` rows of up to `length` tokens, in the compute dtype.

    Args:
      source_length: S', needed by models with an encoder.

    Raises:
      ValueError: if the model has no decoder, `length` exceeds a learned position table, or `source_length` is missing.
    """
    stack = config.decoder
    if stack is None:
        raise ValueError(
            "this model has no decoder, so there is nothing to cache: use a config with decoder=Stack(...)"
        )
    if stack.position.kind == "learned" and length > config.length:
        raise ValueError(f"length={length} exceeds the model's {config.length} learned positions")
    if (config.encoder is None) != (source_length is None):
        raise ValueError(f"source_length={source_length}: give it exactly when the model has an encoder")
    shape = (stack.depth, batch, length, config.kv_heads(stack), config.head_width(stack))
    dtype = jnp.dtype(config.dtype)
    cache = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))
    if source_length is None:
        return cache
    source = (*shape[:2], source_length, *shape[3:])
    mask = jnp.ones((batch, source_length), bool)
    return cache.replace(cross_key=jnp.zeros(source, dtype), cross_value=jnp.zeros(source, dtype), cross_mask=mask)
