"""One block: self-attention, cross-attention where there is a memory, feed-forward; each added to the residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax

from transformer.nn.attention import MultiHeadAttention, View
from transformer.nn.cache import Cache
from transformer.nn.mlp import FeedForward
from transformer.nn.norms import Normalize
from transformer.nn.tap import Tap

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack


class Block(nn.Module):
    """`[B, T, D] -> [B, T, D]`; the residual is read and written by each half in turn.

    Attributes:
      crosses: whether the block attends to a memory between self-attention and feed-forward.
    """

    config: ModelConfig
    stack: Stack
    crosses: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None,
        view: View,
        cross_view: View,
        tap: Tap,
        cache: Cache | None = None,
        layer: jax.Array | int = 0,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """Everything but `x` is as in `MultiHeadAttention`; `memory` is `[B, S, D]`, or None if the cache holds it."""
        parts = (self.config, self.stack)
        x = tap("residual_pre", x)

        attention = MultiHeadAttention(*parts, name="attention")
        x, cache = self._half("attention_norm", x, lambda h: attention(h, view, tap, cache, layer, train), train)
        x = tap("residual_mid", x)

        if self.crosses:
            cross, under = MultiHeadAttention(*parts, name="cross_attention"), tap.under("cross")
            attend = lambda h: cross.cross(h, memory, cross_view, under, cache, layer, train)  # noqa: E731
            x, cache = self._half("cross_norm", x, attend, train)
            x = tap("residual_cross", x)

        if self.stack.mlp is not None:
            mlp = FeedForward(*parts, name="mlp")
            x, _ = self._half("mlp_norm", x, lambda h: (mlp(h, tap.under("mlp"), train), None), train)
        return tap("residual_post", x), cache

    def _half(self, name: str, x: jax.Array, part: Callable, train: bool) -> tuple[jax.Array, Cache | None]:
        """Pre-norm: x + part(norm(x)). Post-norm: norm(x + part(x))."""
        norm = Normalize(self.config, self.stack.norm, name=name)
        pre = self.stack.norm_placement == "pre"
        out, cache = part(norm(x) if pre else x)
        x = x + nn.Dropout(self.stack.dropout, deterministic=not train)(out)
        return (x if pre else norm(x)), cache
