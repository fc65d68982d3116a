"""One block: self-attention, cross-attention where there is a memory, feed-forward; each added to the residual.

In a parallel block both halves read the same residual; otherwise each reads what the one before it left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax

from transformer.nn.attention import MultiHeadAttention, View
from transformer.nn.cache import Cache
from transformer.nn.experts import MixtureOfExperts
from transformer.nn.mlp import FeedForward
from transformer.nn.norms import Normalize
from transformer.nn.tap import Tap
from transformer.ops.sharding import constrain

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack


class Block(nn.Module):
    """`[B, T, D] -> [B, T, D]`; each half reads the residual and adds to it.

    `config.Stack` says how the halves follow each other and where their norms stand. Sources: post-norm, Vaswani
    et al. 2017 (arXiv:1706.03762), section 3.1; pre-norm, Xiong et al. 2020 (arXiv:2002.04745); both, Gemma 2
    (arXiv:2408.00118), section 2; parallel, Black et al. 2022 (arXiv:2204.06745), section 2.1, a norm for each half.

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
        x = block_input = tap("residual_pre", x)

        attention = MultiHeadAttention(*parts, name="attention")
        added, cache = self._half("attention", x, lambda h: attention(h, view, tap, cache, layer, train))
        x = tap("residual_mid", self._add("attention", x, added, train))

        if self.crosses:
            cross, under = MultiHeadAttention(*parts, name="cross_attention"), tap.under("cross")
            attend = lambda h: cross.cross(h, memory, cross_view, under, cache, layer, train)  # noqa: E731
            added, cache = self._half("cross", x, attend)
            x = tap("residual_cross", self._add("cross", x, added, train))

        if self.stack.mlp is not None:
            seen = block_input if self.stack.parallel else x
            feed = self._feed_forward(view, tap.under("mlp"), cache, train)
            added, _ = self._half("mlp", seen, lambda h: (feed(h), None))
            x = self._add("mlp", x, added, train)
        return tap("residual_post", x), cache

    def _feed_forward(self, view: View, tap: Tap, cache: Cache | None, train: bool) -> Callable[[jax.Array], jax.Array]:
        """`[B, T, D] -> [B, T, D]`; while a cache is filled experts turn nobody away."""
        if self.stack.mlp.experts is None:
            dense = FeedForward(self.config, self.stack, name="mlp")
            return lambda h: dense(h, tap, train)
        mixture, real = MixtureOfExperts(self.config, self.stack, name="mlp"), getattr(view.mask, "valid", None)
        return lambda h: mixture(h, tap, train, real=real, drops=cache is None)

    def _half(self, name: str, x: jax.Array, part: Callable) -> tuple[jax.Array, Cache | None]:
        """What a half makes of the residual: part(x), part(norm(x)) or norm(part(norm(x)))."""
        placement = self.stack.norm_placement
        out, cache = part(x if placement == "post" else self._norm(f"{name}_norm")(x))
        return (self._norm(f"{name}_post_norm")(out) if placement == "both" else out), cache

    def _add(self, name: str, x: jax.Array, added: jax.Array, train: bool) -> jax.Array:
        """The residual after a half."""
        added = constrain(added, "rows", "residual", None)
        x = x + nn.Dropout(self.stack.dropout, deterministic=not train)(added)
        return self._norm(f"{name}_norm")(x) if self.stack.norm_placement == "post" else x

    def _norm(self, name: str) -> Normalize:
        return Normalize(self.config, self.stack.norm, name=name)
