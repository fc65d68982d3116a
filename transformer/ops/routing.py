"""Routing: which experts a token uses, how tokens come to them and back, and the losses that keep a router even.

With router logits x over N experts (Shazeer et al. 2017, arXiv:1701.06538), a token's output is

    sum of weight[i] * expert[i](token) over the k experts i of the highest logits

where weight is softmax(x) over those k alone (Mixtral: Jiang et al. 2024, arXiv:2401.04088, section 2.1) or over all N
(Switch: Fedus et al. 2021, arXiv:2101.03961, equation 1). A token and one of its k experts are an assignment, counted
token by token and in each token by falling logit: number t k + rank. Experts read rows; a `Plan` says which assignment
stands in which row.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Choice(NamedTuple):
    """The experts of every token, by falling logit."""

    experts: jax.Array  # [..., k] integers
    weights: jax.Array  # [..., k] float32


class Plan(NamedTuple):
    """A bijection between the assignments that are served and the rows that are used."""

    rows: jax.Array  # [R]: the assignment in each row; T k in an empty one
    places: jax.Array  # [T k]: the row of each assignment; R for one that is dropped


def choose(logits: jax.Array, active: int, normalize: bool) -> Choice:
    """The `active` experts of the highest logits `[..., N]`; the first of equal ones.

    Args:
      normalize: whether the weights are a softmax over the chosen ones, rather than over all N.
    """
    logits = logits.astype(jnp.float32)
    chosen, experts = jax.lax.top_k(logits, active)
    if normalize:
        return Choice(experts, jax.nn.softmax(chosen, axis=-1))
    highest = chosen[..., :1]
    return Choice(experts, jnp.exp(chosen - highest) / jnp.sum(jnp.exp(logits - highest), axis=-1, keepdims=True))


def dropless(experts: jax.Array, count: int) -> tuple[Plan, jax.Array]:
    """A row for each assignment, expert by expert: experts `[T, k]` to a plan of T k rows and the experts' sizes `[N]`.

    Inside of an expert rows keep the order of the tokens.
    """
    flat = experts.reshape(-1)
    rows = jnp.argsort(flat, stable=True)
    return Plan(rows, _inverse(rows, flat.size)), jnp.bincount(flat, length=count)


def limited(experts: jax.Array, count: int, capacity: int, real: jax.Array | None = None) -> Plan:
    """`capacity` rows for each expert in turn, given to assignments in their order until they run out.

    Earlier tokens come first, with all their experts, so that what a token gets does not depend on later ones. (GShard,
    arXiv:2006.16668, algorithm 1, serves every token's first expert before any second one, which looks ahead.)

    Args:
      experts: `[T, k]`.
      count: N.
      real: `[T]` booleans; others take no room, and are dropped. None: all are.

    Returns:
      A plan of `count * capacity` rows.
    """
    length = experts.shape[0]
    flat = experts.reshape(-1)
    before = _before(flat, count, None if real is None else jnp.repeat(real, experts.shape[1]))
    size = count * capacity
    places = jnp.where(before < capacity, flat * capacity + before, size)
    rows = jnp.full(size, length * experts.shape[1]).at[places].set(jnp.arange(flat.size), mode="drop")
    return Plan(rows, places)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dispatch(x: jax.Array, plan: Plan, active: int) -> jax.Array:
    """What the experts read: tokens `[T, D]` to rows `[R, D]`, zeros where a row is empty."""
    return jnp.take(x, plan.rows // active, axis=0, mode="fill", fill_value=0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def collect(rows: jax.Array, plan: Plan, active: int) -> jax.Array:
    """What comes back from the experts: rows `[R, D]` to `[T, k, D]`, zeros for what was dropped."""
    found = jnp.take(rows, plan.places, axis=0, mode="fill", fill_value=0)
    return found.reshape(-1, active, rows.shape[-1])


# Each is the other's transpose, and both only read: adding up gradients by index takes CPUs many times as long.
dispatch.defvjp(
    lambda x, plan, active: (dispatch(x, plan, active), plan),
    lambda active, plan, gradient: (jnp.sum(collect(gradient, plan, active), axis=1), None),
)
collect.defvjp(
    lambda rows, plan, active: (collect(rows, plan, active), plan),
    lambda active, plan, gradient: (dispatch(gradient.reshape(-1, gradient.shape[-1]), plan, 1), None),
)


def balance(logits: jax.Array, active: int, tokens: jax.Array) -> jax.Array:
    """N sum of f[i] P[i] over experts i, for each sequence: 1 where all are used alike, N / k at worst.

    f[i] is the share of assignments that go to expert i, which has no gradient, and P[i] the mean of softmax(x)[i].
    Switch (arXiv:2101.03961), equations 4 to 6, sequence by sequence as in DeepSeek-V2 (arXiv:2405.04434), equation 23.

    Args:
      logits: x, `[..., T, N]`.
      active: k.
      tokens: the weight of each token in f and P, `[..., T]`; 0 for padding.

    Returns:
      `[...]` float32; 0 for a sequence of padding alone.
    """
    logits, share = logits.astype(jnp.float32), _share(tokens)
    count = logits.shape[-1]
    hits = jax.nn.one_hot(jax.lax.top_k(logits, active)[1], count).sum(axis=-2) / active
    used, likely = (jnp.sum(share[..., None] * x, axis=-2) for x in (hits, jax.nn.softmax(logits, axis=-1)))
    return count * jnp.sum(used * likely, axis=-1)


def router_z(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean of (log sum exp x)^2 over a sequence's tokens, which keeps logits small: ST-MoE (arXiv:2202.08906),
    equation 5. Shapes as in `balance`."""
    return jnp.sum(_share(tokens) * jnp.square(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)), axis=-1)


def dropped(
    logits: jax.Array, active: int, capacity: int, tokens: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """The share of a sequence's assignments that `limited` drops; shapes as in `balance`, `real` as `[..., T]`."""
    experts = jax.lax.top_k(logits, active)[1]
    flat = experts.reshape(*experts.shape[:-2], -1)
    before = _before(flat, logits.shape[-1], None if real is None else jnp.repeat(real, active, axis=-1))
    late = (before >= capacity).reshape(experts.shape).mean(axis=-1)
    return jnp.sum(_share(tokens) * late, axis=-1)


def _before(experts: jax.Array, count: int, real: jax.Array | None) -> jax.Array:
    """How many real assignments to the same expert come before each `[..., M]`; for one that is not real, M."""
    hits = jax.nn.one_hot(experts, count, dtype=jnp.int32)
    if real is not None:
        hits = hits * real[..., None]
    before = jnp.sum((jnp.cumsum(hits, axis=-2) - hits) * hits, axis=-1)
    return before if real is None else jnp.where(real, before, experts.shape[-1])


def _inverse(permutation: jax.Array, size: int) -> jax.Array:
    return jnp.zeros(size, permutation.dtype).at[permutation].set(jnp.arange(size, dtype=permutation.dtype))


def _share(tokens: jax.Array) -> jax.Array:
    """Weights of tokens, as shares of a sequence's."""
    total = jnp.sum(tokens, axis=-1, keepdims=True)
    return jnp.where(total > 0, tokens / jnp.where(total > 0, total, 1), 0).astype(jnp.float32)
