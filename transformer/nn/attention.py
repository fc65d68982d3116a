"""Multi-head attention: the parameters of its heads around `ops.attention.attend`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from transformer.nn.cache import Cache
from transformer.nn.norms import Normalize
from transformer.nn.projection import Projection
from transformer.nn.tap import Tap
from transformer.ops import attention as ops
from transformer.ops.masks import Mask
from transformer.ops.sharding import constrain

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack


@flax.struct.dataclass
class View:
    """What one attention may see, and how it tells positions apart.

    Attributes:
      mask: who may attend to whom, as its parts or as booleans that broadcast to `[B, H, T, S]`; None = everything.
      bias: added to scores; broadcasts to `[B, H, T, S]`.
      rotate: applied to queries and keys, `[B, T, H, K] -> [B, T, H, K]`.
    """

    mask: Mask | jax.Array | None = None
    bias: jax.Array | None = None
    rotate: Callable[[jax.Array], jax.Array] | None = flax.struct.field(pytree_node=False, default=None)


class MultiHeadAttention(nn.Module):
    """Queries from x, keys and values from x (self-attention) or from a memory (cross-attention)."""

    config: ModelConfig
    stack: Stack

    def setup(self):
        config, attention = self.config, self.stack.attention
        width, head = config.width, config.head_width(self.stack)
        heads, groups = attention.heads, config.kv_heads(self.stack)
        self.query = Projection(config, (width,), (heads, head), attention.bias)
        self.key = Projection(config, (width,), (groups, head), attention.bias)
        self.value = Projection(config, (width,), (groups, head), attention.bias)
        multiplier = config.output_multiplier(self.stack)
        self.output = Projection(config, (heads, head), (width,), attention.output_bias, multiplier)
        if attention.query_key_norm:
            norm = dataclasses.replace(self.stack.norm, kind="rms", bias=False)
            self.query_norm, self.key_norm = Normalize(config, norm), Normalize(config, norm)

    def __call__(
        self, x: jax.Array, view: View, tap: Tap, cache: Cache | None, layer: jax.Array, train: bool
    ) -> tuple[jax.Array, Cache | None]:
        """Self-attention, `[B, T, D] -> [B, T, D]`; with a cache, also over what it holds."""
        key, value = self._keys_and_values(x, view, tap)
        if cache is not None:
            cache = cache.write(layer, key, value)
            key, value = cache.layer(layer)
        return self._attend(x, key, value, view, tap, train, cache is not None), cache

    def cross(
        self,
        x: jax.Array,
        memory: jax.Array | None,
        view: View,
        tap: Tap,
        cache: Cache | None,
        layer: jax.Array,
        train: bool,
    ) -> tuple[jax.Array, Cache | None]:
        """Cross-attention to a memory `[B, S, D]`, or, where memory is None, to what the cache kept of it."""
        if memory is not None:
            key, value = self._keys_and_values(memory, View(), tap)
            if cache is not None:
                cache = cache.write_source(layer, key, value)
        else:
            key, value = cache.source_layer(layer)
        return self._attend(x, key, value, view, tap, train, cache is not None), cache

    def _keys_and_values(self, x: jax.Array, view: View, tap: Tap) -> tuple[jax.Array, jax.Array]:
        key = self.key(x)  # [B, S, G, K]
        if self.stack.attention.query_key_norm:
            key = self.key_norm(key)
        if view.rotate is not None:
            key = view.rotate(key)
        # Every query sees all keys: where positions are shared, each device gathers the others' (context parallelism).
        key, value = (constrain(array, "rows", None, "heads", None) for array in (key, self.value(x)))
        return tap("key", key), tap("value", value)

    def _attend(
        self, x: jax.Array, key: jax.Array, value: jax.Array, view: View, tap: Tap, train: bool, cached: bool
    ) -> jax.Array:
        attention = self.stack.attention
        query = self.query(x)  # [B, T, H, K]
        if attention.query_key_norm:
            query = self.query_norm(query)
        if view.rotate is not None:
            query = view.rotate(query)
        query = constrain(query, "rows", "positions", "heads", None)
        drops = train and attention.dropout > 0
        mixed = ops.attend(
            tap("query", query),
            key,
            value,
            mask=view.mask,
            bias=view.bias,
            scale=attention.scale,
            softcap=attention.softcap,
            dropout=attention.dropout,
            dropout_key=self.make_rng("dropout") if drops else None,
            observe=tap if tap.wants("scores") or tap.wants("pattern") else None,
            # What was chosen is for whole sequences; few kernels take a step with a cache, or the token of an `init`.
            implementation="auto" if cached or x.shape[1] == 1 else self.config.attention_implementation,
        )
        return tap("output", self._output(tap("mixed", mixed), tap))

    def _output(self, mixed: jax.Array, tap: Tap) -> jax.Array:
        if not tap.wants("head_output"):
            return self.output(mixed)
        # Looking alone changes no number: the sum of parts is rounded in another way than the product.
        changes = tap.changes("head_output")
        kernel = self.output.kernel.astype(mixed.dtype)
        parts = tap("head_output", jnp.einsum("BTHK,HKD->BTHD", mixed, kernel))
        if not changes:
            return self.output(mixed)
        bias = self.output.bias
        return jnp.sum(parts, axis=2) + (0 if bias is None else bias.astype(parts.dtype))
