"""A mixture of experts: many feed-forward layers, of which each token uses the few that a router picks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.nn.mlp import inner
from transformer.nn.projection import Projection, standard_deviation
from transformer.nn.tap import Tap
from transformer.ops import grouped, routing

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack


class ExpertProjection(nn.Module):
    """A linear map for each expert, with parameters `kernel [N, I, O]` and `bias [N, O]`, initialised as one alone is.

    Attributes:
      multiplier: as in `Projection`.
    """

    config: ModelConfig
    count: int
    inputs: int
    outputs: int
    use_bias: bool = False
    multiplier: float = 1.0

    @nn.compact
    def __call__(self, rows: jax.Array, sizes: jax.Array | None) -> jax.Array:
        """Rows `[R, I]` of experts with these sizes `[N]`, or, without, as many for each `[N, R, I]`; `[..., O]`."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        deviation = standard_deviation(config.init, self.inputs, self.outputs) * self.multiplier
        shape = (self.count, self.inputs, self.outputs)
        stored = jnp.dtype(config.param_dtype)
        kernel = self.param("kernel", nn.initializers.normal(deviation), shape, stored).astype(dtype)
        out = jnp.matmul(rows, kernel) if sizes is None else grouped.product(rows, kernel, sizes)
        if not self.use_bias:
            return out
        bias = self.param("bias", nn.initializers.zeros, (self.count, self.outputs), stored).astype(dtype)
        if sizes is None:
            return out + bias[:, None]
        return out + jnp.repeat(bias, sizes, axis=0, total_repeat_length=len(rows))


class MixtureOfExperts(nn.Module):
    """The feed-forward half of a block as `ops.routing` has it; without experts it is `mlp.FeedForward`.

    The router, its softmax and the sum over a token's experts are in float32 whatever the model's dtype. Where
    `capacity` bounds the experts, what finds no room adds nothing to the residual.
    """

    config: ModelConfig
    stack: Stack

    @nn.compact
    def __call__(
        self, x: jax.Array, tap: Tap, train: bool = False, *, real: jax.Array | None = None, drops: bool = True
    ) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`.

        Args:
          real: `[B, T]` booleans, tokens that take room where it is bounded; None: all do.
          drops: whether the config's capacity bounds the experts.
        """
        experts, width = self.stack.mlp.experts, self.config.width
        exact = dataclasses.replace(self.config, dtype="float32")
        with jax.default_matmul_precision("highest"):
            logits = Projection(exact, (width,), (experts.count,), name="router")(x)
        chosen = routing.choose(tap("router", logits), experts.active, experts.normalize)
        capacity = experts.places(x.shape[1]) if drops else None
        if capacity is None:
            out = self._dropless(x, chosen, train)
        else:
            out = self._limited(x, chosen, capacity, real, train)
        return tap("outer", out)

    def _dropless(self, x: jax.Array, chosen: routing.Choice, train: bool) -> jax.Array:
        """All tokens of the batch together: experts read as many rows as come to them."""
        experts, (batch, length, width) = self.stack.mlp.experts, x.shape
        active = experts.active
        plan, sizes = routing.dropless(chosen.experts.reshape(-1, active), experts.count)
        rows = self._feed(routing.dispatch(x.reshape(-1, width), plan, active), sizes, train)
        served = routing.collect(rows, plan, active).reshape(batch, length, active, width)
        return _mix(served, chosen.weights)

    def _limited(
        self, x: jax.Array, chosen: routing.Choice, capacity: int, real: jax.Array | None, train: bool
    ) -> jax.Array:
        """Row by row of the batch, `capacity` tokens for every expert: axes B and N stay whole, so both can be shared
        among devices."""
        experts, (batch, _, width) = self.stack.mlp.experts, x.shape
        count, active = experts.count, experts.active
        planned = lambda ids, real: routing.limited(ids, count, capacity, real)  # noqa: E731
        plan = jax.vmap(planned, in_axes=(0, None if real is None else 0))(chosen.experts, real)
        rows = jax.vmap(lambda x, plan: routing.dispatch(x, plan, active))(x, plan)  # [B, N C, D]
        rows = rows.reshape(batch, count, capacity, width).swapaxes(0, 1)  # [N, B, C, D]
        rows = self._feed(rows.reshape(count, batch * capacity, width), None, train)
        rows = rows.reshape(count, batch, capacity, width).swapaxes(0, 1).reshape(batch, count * capacity, width)
        return _mix(jax.vmap(lambda rows, plan: routing.collect(rows, plan, active))(rows, plan), chosen.weights)

    def _feed(self, rows: jax.Array, sizes: jax.Array | None, train: bool) -> jax.Array:
        """Rows `[..., D]` through their experts."""
        mlp, config = self.stack.mlp, self.config
        parts = (config, mlp.experts.count)
        width, between = config.width, config.mlp_width(self.stack)

        def project(name: str) -> jax.Array:
            return ExpertProjection(*parts, width, between, mlp.bias, name=name)(rows.astype(config.dtype), sizes)

        hidden = nn.Dropout(mlp.dropout, deterministic=not train)(inner(mlp, project))  # [..., F]
        multiplier = config.output_multiplier(self.stack)
        return ExpertProjection(*parts, between, width, mlp.bias, multiplier, name="down")(hidden, sizes)


def _mix(served: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum over a token's experts: `[B, T, k, D]` and `[B, T, k]` to `[B, T, D]`."""
    return jnp.sum(served.astype(jnp.float32) * weights[..., None], axis=2).astype(served.dtype)
