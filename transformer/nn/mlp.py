"""The feed-forward half of a block."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import flax.linen as nn
import jax

from transformer.nn.projection import Projection
from transformer.nn.tap import Tap
from transformer.ops.sharding import constrain

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


class FeedForward(nn.Module):
    """`down(activation(up(x)))`, or gated `down(activation(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    config: ModelConfig
    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array, tap: Tap, train: bool = False) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`."""
        mlp, config = self.stack.mlp, self.config
        width, inner = config.width, config.mlp_width(self.stack)
        activation = ACTIVATIONS[mlp.activation]
        hidden = Projection(config, (width,), (inner,), mlp.bias, name="up")(x)  # [B, T, F]
        if mlp.gated:
            hidden = activation(Projection(config, (width,), (inner,), mlp.bias, name="gate")(x)) * hidden
        else:
            hidden = activation(hidden)
        hidden = constrain(hidden, "rows", "positions", "inner")
        hidden = tap("inner", nn.Dropout(mlp.dropout, deterministic=not train)(hidden))
        multiplier = config.output_multiplier(self.stack)
        return tap("outer", Projection(config, (inner,), (width,), mlp.bias, multiplier, name="down")(hidden))
