"""The feed-forward half of a block."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.nn.projection import Projection
from transformer.nn.tap import Tap
from transformer.ops.sharding import constrain

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack
    from transformer.models.feed_forward import Mlp


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """`x * P(X <= x)` of a normal X (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    `jax.nn.gelu` computes the same from `erfc`, whose two branches take CPUs twice as long. What is lost are digits of
    results around 0, far below what any x of that size adds to a sum.
    """
    return x * _normal(x, 0.5**0.5)


@gelu.defjvp
def _gelu_jvp(primals: tuple, tangents: tuple) -> tuple:
    (x,), (change,) = primals, tangents
    # P(X <= x) by way of -x: a compiler that saw the same erf twice would write it to memory and read it back.
    slope = 1 - _normal(x, -(0.5**0.5)) + x * jnp.exp(-0.5 * x * x) * ((2 * math.pi) ** -0.5)
    return gelu(x), change * slope


def _normal(x: jax.Array, scale: float) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * jnp.asarray(scale, x.dtype)))


def _rounded_once(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """In float32 inside, as fused kernels compute: rounding bfloat16 after each step is slower on CPUs, and worse."""
    return lambda x: function(x.astype(jnp.float32)).astype(x.dtype)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": _rounded_once(gelu),
    "gelu_tanh": _rounded_once(partial(jax.nn.gelu, approximate=True)),
    "silu": _rounded_once(jax.nn.silu),
}


class FeedForward(nn.Module):
    """`down(activation(up(x)))`, or gated `down(activation(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    config: ModelConfig
    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array, tap: Tap, train: bool = False) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`."""
        mlp, config = self.stack.mlp, self.config
        width, between = config.width, config.mlp_width(self.stack)
        hidden = inner(mlp, lambda name: Projection(config, (width,), (between,), mlp.bias, name=name)(x))  # [B, T, F]
        hidden = constrain(hidden, "rows", "positions", "inner")
        hidden = tap("inner", nn.Dropout(mlp.dropout, deterministic=not train)(hidden))
        multiplier = config.output_multiplier(self.stack)
        return tap("outer", Projection(config, (between,), (width,), mlp.bias, multiplier, name="down")(hidden))


def inner(mlp: Mlp, project: Callable[[str], jax.Array]) -> jax.Array:
    """The inner activations `[..., F]` of a feed-forward layer, from its projections `up` and `gate` by name."""
    activation, up = ACTIVATIONS[mlp.activation], project("up")
    return activation(project("gate")) * up if mlp.gated else activation(up)
