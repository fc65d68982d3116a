"""A block scanned over layers.

The parameters of all blocks are one tree whose leaves begin with the layer axis, `[L, ...]`, whatever the depth, the
unroll or the period of the layers. The scan slices it and applies one `Block` as a pure function, which compiles once
for any depth.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.nn import positions as order
from transformer.nn.attention import View
from transformer.nn.block import Block
from transformer.nn.cache import Cache
from transformer.nn.norms import Normalize
from transformer.nn.positions import PositionEmbedding, RelativeBias
from transformer.nn.tap import Tap
from transformer.ops import positions as ops
from transformer.ops.masks import Mask

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Layers(nn.Module):
    """Positions, blocks and final norm of one stack: `[B, T, D] -> [B, T, D]`.

    Attributes:
      causal: whether a position sees only itself and what came before.
      crosses: whether blocks attend to a memory.
      role: `encoder` or `decoder`, the first part of its sites' names.
    """

    config: ModelConfig
    stack: Stack
    role: str
    causal: bool
    crosses: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        memory: jax.Array | None = None,
        mask: Mask | None = None,
        memory_mask: Mask | None = None,
        prefix: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        tap: Tap,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """Run the stack.

        Args:
          x: embeddings `[B, T, D]`.
          memory: `[B, S, D]`, what cross-attention reads.
          mask: what hides keys besides causality and windows.
          memory_mask: the same for cross-attention.
          prefix: `[B, T]` booleans, keys that causality does not hide; with a cache, which is empty, of its first T.
          positions: `[B, T]` integers; None counts from 0, or from what the cache holds.
          cache: keys and values of earlier positions; extended by T.

        Raises:
          ValueError: if dropout is on and there is no key for it.
        """
        if train and _dropout(self.stack) > 0 and not self.has_rng("dropout"):
            raise ValueError(f"train=True, and the {self.role} has dropout: pass rngs={{'dropout': key}} to apply")
        length = x.shape[1]
        slots = jnp.arange(length)[None]  # [1, T]: order of arrival, which causality goes by
        if cache is not None:
            slots = cache.length[:, None] + slots
        positions = slots if positions is None else positions
        key_positions = positions if cache is None else jnp.arange(cache.capacity)[None]

        x = self._embed(x, positions, tap.under(self.role), train)
        if prefix is not None and cache is not None:
            prefix = jnp.pad(prefix, ((0, 0), (0, cache.capacity - length)))
        mask = mask or Mask()
        if self.causal:
            mask = dataclasses.replace(mask, causal=True, prefix=prefix)
        if cache is not None:
            mask = dataclasses.replace(mask, offset=cache.length)
        views = self._views(mask, positions, key_positions)
        x, cache = self._scan(x, memory, views, View(memory_mask), cache, tap, train)
        if self.stack.norm_placement != "post":
            x = Normalize(self.config, self.stack.norm, name="final_norm")(x)
        if cache is not None:
            cache = cache.replace(length=cache.length + length)
        return tap.under(self.role)("final_norm", x), cache

    def _embed(self, x: jax.Array, positions: jax.Array, tap: Tap, train: bool) -> jax.Array:
        """Add absolute positions, normalise, drop: what enters the first block."""
        stack, width = self.stack, self.config.width
        x = tap("embedding", x)
        if stack.position.kind == "learned":
            added = PositionEmbedding(self.config, stack, name="positions")(positions)
            x = x + tap("positions", jnp.broadcast_to(added, x.shape))
        elif stack.position.kind == "sinusoidal":
            added = ops.sinusoid(positions, width, stack.position.base, halves=stack.position.halves).astype(x.dtype)
            x = x + tap("positions", jnp.broadcast_to(added, x.shape))
        if stack.embedding_norm:
            x = Normalize(self.config, stack.norm, name="embedding_norm")(x)
        return nn.Dropout(stack.dropout, deterministic=not train)(x)

    def _views(self, mask: Mask, positions: jax.Array, key_positions: jax.Array) -> tuple[View, ...]:
        """What each layer of a period may see; the layers differ in their windows alone."""
        kind, heads = self.stack.position.kind, self.stack.attention.heads
        bias = rotate = None
        if kind == "relative":
            bias = RelativeBias(self.config, self.stack, not self.causal, name="relative")(positions, key_positions)
        elif kind == "alibi":
            bias = order.alibi_bias(heads, positions, key_positions)
        elif kind == "rotary":
            rotate = order.rotation(self.config, self.stack, positions)
        windows = self.stack.attention.windows or (0,)
        return tuple(View(dataclasses.replace(mask, window=width), bias, rotate) for width in windows)

    def _scan(self, x, memory, views, cross_view, cache, tap, train):
        """Apply the blocks in order, a period of layers at a time, carrying residual, cache and captures."""
        depth, period = self.stack.depth, len(views)
        block = Block(self.config, self.stack, self.crosses, parent=None)
        params = self.get_variable("params", "blocks")  # blocks check what they are given, also what is prepared
        if params is None:
            params = self.param("blocks", self._init(block))
        unroll = max(1, self.config.unroll // period)
        drops = train and _dropout(self.stack) > 0
        key = self.make_rng("dropout") if drops else None

        def step(x, cache, index, params):
            captured = []
            for offset, view in enumerate(views):
                layer = index * period + offset
                inner = tap.at_layer(self.role, layer)
                one = params if period == 1 else jax.tree.map(lambda leaf: leaf[offset], params)  # noqa: B023
                rngs = {"dropout": jax.random.fold_in(key, layer)} if drops else None
                x, cache = block.apply(
                    {"params": one}, x, memory, view, cross_view, inner, cache, layer, train, rngs=rngs
                )
                captured.append(inner.captured)
            return x, cache, captured

        if self.config.remat != "none":
            # Without a loop the compiler would merge what is recomputed with the original, and keep it after all.
            step = jax.checkpoint(step, policy=POLICIES[self.config.remat], prevent_cse=unroll * period >= depth)
        stacked = params
        if period > 1:
            params = jax.tree.map(lambda leaf: leaf.reshape(depth // period, period, *leaf.shape[1:]), params)
        buffers = self._buffers(step, x, cache, params, tap)

        def body(carry, xs):
            (x, cache, buffers), (index, one) = carry, xs
            x, cache, captured = step(x, cache, index, one)
            for offset, sites in enumerate(captured):
                buffers = _fill(buffers, sites, tap, index * period + offset)
            return (x, cache, buffers), None

        carry, steps = (x, cache, buffers), (jnp.arange(depth // period), params)
        if cache is not None and unroll * period >= depth:
            # Static slices of the parameters as they came: a compiler can lift those out of a loop over tokens.
            for index in range(depth // period):
                layers = index if period == 1 else slice(index * period, (index + 1) * period)
                carry, _ = body(carry, (index, jax.tree.map(lambda leaf: leaf[layers], stacked)))  # noqa: B023
        else:
            carry, _ = jax.lax.scan(body, carry, steps, unroll=unroll)
        x, cache, buffers = carry
        tap.store(buffers)
        return x, cache

    def _init(self, block: Block):
        """Initialise every layer from a key of its own; a block's parameters do not depend on B, T or S."""

        def init(key: jax.Array):
            x = jnp.zeros((1, 1, self.config.width), jnp.dtype(self.config.dtype))
            memory = x if self.crosses else None
            one = lambda key: block.init(key, x, memory, View(), View(), Tap())["params"]  # noqa: E731
            return jax.vmap(one)(jax.random.split(key, self.stack.depth))

        return init

    def _buffers(self, step, x, cache, params, tap: Tap) -> dict[str, jax.Array]:
        """Room for the captured layers alone, `[captured layers, ...]` by site."""
        if not any(site.startswith(f"{self.role}/") for site in tap.capture):
            return {}
        one = jax.tree.map(lambda leaf: leaf[0], params)
        captured = jax.eval_shape(lambda *args: step(*args)[2], x, cache, jnp.zeros((), jnp.int32), one)
        rooms = {}
        for site, array in (item for sites in captured for item in sites.items()):
            rooms[site] = jnp.zeros((len(tap.layers_of(site)), *array.shape), array.dtype)
        return rooms


def _dropout(stack: Stack) -> float:
    """The highest of a stack's rates."""
    return max(stack.dropout, stack.attention.dropout, stack.mlp.dropout if stack.mlp else 0.0)


def _fill(
    buffers: dict[str, jax.Array], sites: dict[str, jax.Array], tap: Tap, layer: jax.Array
) -> dict[str, jax.Array]:
    """Write a layer's captures into their rows; a layer that was not asked for falls outside and is dropped."""
    buffers = dict(buffers)
    for site, array in sites.items():
        layers = jnp.asarray(tap.layers_of(site))
        row = jnp.where(jnp.any(layers == layer), jnp.argmax(layers == layer), len(layers))
        buffers[site] = buffers[site].at[row].set(array, mode="drop")
    return buffers
