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
      key, value: `[L, B, G, S, K]` of self-attention, heads first, as products of matrices want them;
        bfloat16 as its bits. Read them with `layer` and `source_layer`. In a cache that is `apart`, L arrays.
      length: `[B]` integers, tokens held by each row; the next token's position.
      cross_key, cross_value: the same of the source, `[L, B, G, S', K]`, or None without an encoder.
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
        return jax.tree.leaves(self.key)[0].shape[-2]

    def layer(self, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """A layer's keys and values, `[B, S, G, K]` each."""
        return _layer(self.key, index), _layer(self.value, index)

    def source_layer(self, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """A layer's keys and values of the source, `[B, S', G, K]` each."""
        return _layer(self.cross_key, index), _layer(self.cross_value, index)

    def apart(self) -> Cache:
        """With an array for each layer, read without a copy where layers are no loop; `write` wants an integer then."""
        names = [name for name in ("key", "value", "cross_key", "cross_value") if getattr(self, name) is not None]
        return self.replace(**{name: tuple(getattr(self, name)) for name in names})

    def write(self, layer: jax.Array, key: jax.Array, value: jax.Array) -> Cache:
        """Put `[B, T, G, K]` keys and values into a layer at each row's next positions. `length` stays."""
        rows = jnp.arange(key.shape[0])[:, None]
        slots = self.length[:, None] + jnp.arange(key.shape[1])

        def put(array: jax.Array | tuple, new: jax.Array) -> jax.Array | tuple:
            if isinstance(array, tuple):
                one = array[layer].at[rows, :, slots].set(_kept(new, array[layer].dtype), mode="drop")
                return (*array[:layer], one, *array[layer + 1 :])
            return _laid_out(array.at[layer, rows, :, slots].set(_kept(new, array.dtype), mode="drop"))

        return self.replace(key=put(self.key, key), value=put(self.value, value))

    def write_source(self, layer: jax.Array, key: jax.Array, value: jax.Array) -> Cache:
        """Put the source's `[B, S', G, K]` keys and values into a layer."""

        def put(array: jax.Array, new: jax.Array) -> jax.Array:
            return _laid_out(array.at[layer].set(_kept(new, array.dtype).swapaxes(1, 2)))

        return self.replace(cross_key=put(self.cross_key, key), cross_value=put(self.cross_value, value))


# XLA for CPUs writes into bfloat16 by way of float32, all of the cache at every token; into its bits it does not.
BITS = {jnp.dtype(jnp.bfloat16): jnp.dtype(jnp.uint16)}
NUMBERS = {bits: dtype for dtype, bits in BITS.items()}


def _kept(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """As a cache of this dtype keeps it."""
    if dtype not in NUMBERS:
        return array.astype(dtype)
    return jax.lax.bitcast_convert_type(array.astype(NUMBERS[dtype]), dtype)


def _layer(array: jax.Array, index: jax.Array | int) -> jax.Array:
    """`[B, S, G, K]`, a layer of what is kept, as numbers."""
    one = array[index].swapaxes(1, 2)
    return jax.lax.bitcast_convert_type(one, NUMBERS[one.dtype]) if one.dtype in NUMBERS else one


def _laid_out(array: jax.Array) -> jax.Array:
    return constrain(array, None, "rows", "heads", None, None)


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
    shape = (stack.depth, batch, config.kv_heads(stack), length, config.head_width(stack))
    dtype = BITS.get(jnp.dtype(config.dtype), jnp.dtype(config.dtype))
    cache = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))
    if source_length is None:
        return cache
    source = (*shape[:3], source_length, shape[4])
    mask = jnp.ones((batch, source_length), bool)
    return cache.replace(cross_key=jnp.zeros(source, dtype), cross_value=jnp.zeros(source, dtype), cross_mask=mask)
