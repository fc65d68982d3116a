"""A mixture of experts: many feed-forward layers, of which each token uses the few that a router picks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.nn.mlp import inner
from transformer.nn.projection import Projection, standard_deviation
from transformer.nn.tap import Tap
from transformer.ops import grouped, routing, sharding

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack


class Map(NamedTuple):
    """A linear map for each expert: `kernel [N, I, O]`, and `bias [N, O]` or None."""

    kernel: jax.Array
    bias: jax.Array | None

    def __call__(self, rows: jax.Array, sizes: jax.Array | None) -> jax.Array:
        """Rows `[R, I]` of experts with these sizes `[N]`, or, without, as many for each `[N, ..., I]`; `[..., O]`."""
        if sizes is None:
            out = jnp.einsum("N...I,NIO->N...O", rows, self.kernel)
            return out if self.bias is None else out + jnp.expand_dims(self.bias, range(1, out.ndim - 1))
        out = grouped.product(rows, self.kernel, sizes)
        return out if self.bias is None else out + jnp.repeat(self.bias, sizes, axis=0, total_repeat_length=len(rows))


class ExpertProjection(nn.Module):
    """The parameters of a linear map for each expert, initialised as one alone is.

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
    def __call__(self) -> Map:
        """The parameters, in the compute dtype."""
        config, shape = self.config, (self.count, self.inputs, self.outputs)
        deviation = standard_deviation(config.init, self.inputs, self.outputs) * self.multiplier
        stored = jnp.dtype(config.param_dtype)
        kernel = self.param("kernel", nn.initializers.normal(deviation), shape, stored).astype(config.dtype)
        if not self.use_bias:
            return Map(kernel, None)
        bias = self.param("bias", nn.initializers.zeros, (self.count, self.outputs), stored)
        return Map(kernel, bias.astype(config.dtype))


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
        capacity, maps = experts.places(x.shape[1]) if drops else None, self._maps()
        if capacity is not None:
            return tap("outer", self._limited(x, chosen, capacity, real, maps, train))
        if train and self.stack.mlp.dropout:  # one mask for the whole batch
            return tap("outer", self._dropless(x, chosen, maps, train))
        # Each device of a mesh groups its own tokens, and gathers the experts for them.
        tokens = ("rows", "residual", None)
        meanings = (tokens, routing.Choice(tokens, tokens), jax.tree.map(lambda leaf: (None,) * leaf.ndim, maps))
        out = sharding.per_device(self._dropless, (x, chosen, maps), meanings, (x.shape, tokens))
        return tap("outer", out)

    def _maps(self) -> dict[str, Map]:
        mlp, config = self.stack.mlp, self.config
        parts, widths = (config, mlp.experts.count), (config.width, config.mlp_width(self.stack))
        maps = {
            name: ExpertProjection(*parts, *widths, mlp.bias, name=name)() for name in ("up", "gate")[: 1 + mlp.gated]
        }
        multiplier = config.output_multiplier(self.stack)
        return maps | {"down": ExpertProjection(*parts, *widths[::-1], mlp.bias, multiplier, name="down")()}

    def _dropless(self, x: jax.Array, chosen: routing.Choice, maps: dict[str, Map], train: bool = False) -> jax.Array:
        """All tokens of the batch together: experts read as many rows as come to them."""
        experts, (batch, length, width) = self.stack.mlp.experts, x.shape
        active = experts.active
        plan, sizes = routing.dropless(chosen.experts.reshape(-1, active), experts.count)
        rows = self._feed(routing.dispatch(x.reshape(-1, width), plan, active), sizes, maps, train)
        served = routing.collect(rows, plan, active).reshape(batch, length, active, width)
        return _mix(served, chosen.weights)

    def _limited(
        self,
        x: jax.Array,
        chosen: routing.Choice,
        capacity: int,
        real: jax.Array | None,
        maps: dict[str, Map],
        train: bool,
    ) -> jax.Array:
        """Row by row of the batch, `capacity` tokens for every expert: axes B and N stay whole, so both can be shared
        among devices."""
        experts, (batch, _, width) = self.stack.mlp.experts, x.shape
        count, active = experts.count, experts.active
        planned = lambda ids, real: routing.limited(ids, count, capacity, real)  # noqa: E731
        plan = jax.vmap(planned, in_axes=(0, None if real is None else 0))(chosen.experts, real)
        rows = jax.vmap(lambda x, plan: routing.dispatch(x, plan, active))(x, plan)  # [B, N C, D]
        rows = rows.reshape(batch, count, capacity, width).swapaxes(0, 1)
        rows = sharding.constrain(rows, "experts", "groups", None, None)  # [N, B, C, D], sent to who has the experts
        rows = sharding.constrain(self._feed(rows, None, maps, train), "experts", "groups", None, None)
        rows = rows.swapaxes(0, 1).reshape(batch, count * capacity, width)
        return _mix(jax.vmap(lambda rows, plan: routing.collect(rows, plan, active))(rows, plan), chosen.weights)

    def _feed(self, rows: jax.Array, sizes: jax.Array | None, maps: dict[str, Map], train: bool) -> jax.Array:
        """Rows `[..., D]` through their experts."""
        mlp, rows = self.stack.mlp, rows.astype(self.config.dtype)
        hidden = inner(mlp, lambda name: maps[name](rows, sizes))  # [..., F]
        if train and mlp.dropout:
            hidden = nn.Dropout(mlp.dropout, deterministic=False)(hidden)
        return maps["down"](hidden, sizes)


def _mix(served: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum over a token's experts: `[B, T, k, D]` and `[B, T, k]` to `[B, T, D]`."""
    return jnp.sum(served.astype(jnp.float32) * weights[..., None], axis=2).astype(served.dtype)
