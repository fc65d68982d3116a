"""From logits to tokens: filters, each from logits to logits, and the two ways to choose.

Logits are `[..., V]`. A filter sets what it removes to -inf, always keeps at least the likeliest token, keeps the dtype
and composes with any other; probabilities are computed in float32. Parameters given as Python numbers are checked;
all but `k` may also be traced scalars, which nothing can check.
"""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp


def greedy(logits: jax.Array) -> jax.Array:
    """The likeliest token, the lowest id among equals: `[..., V]` to `[...]` int32."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """One token for each row, drawn with probability softmax(logits): `[..., V]` to `[...]` int32."""
    return jax.random.categorical(key, logits.astype(jnp.float32), axis=-1).astype(jnp.int32)


def temperature(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """`(logits - max(logits)) / temperature`: below 1 sharper, above 1 flatter. Ackley et al. 1985.

    The likeliest logit becomes 0, so that no temperature, however low, makes it infinite.

    Raises:
      ValueError: if `temperature` is not positive.
    """
    _require(temperature, "temperature", lambda t: t > 0, "it must be positive; for temperature 0 use greedy")
    full = logits.astype(jnp.float32)
    least = jnp.finfo(jnp.float32).tiny  # below it a temperature would be 0
    return ((full - jnp.max(full, axis=-1, keepdims=True)) / jnp.maximum(temperature, least)).astype(logits.dtype)


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Exactly the `k` likeliest tokens, all if V <= k; lower ids first among equals.

    Fan et al. 2018 (arXiv:1805.04833), section 5.4.

    Raises:
      ValueError: if `k` is below 1.
    """
    _require(k, "k", lambda k: k >= 1, "keep 1 token or more")
    _, kept = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return _keep(logits, _scatter(kept, jnp.ones(kept.shape, bool), logits.shape[-1]))


def top_p(logits: jax.Array, p: float | jax.Array) -> jax.Array:
    """The smallest set of likeliest tokens whose probability reaches `p`: nucleus sampling, Holtzman et al. 2019
    (arXiv:1904.09751), section 3.1.

    The token that crosses `p` is kept, so at least one is; lower ids come first among equals.

    Raises:
      ValueError: if `p` is outside (0, 1].
    """
    _require(p, "p", lambda p: 0 < p <= 1, "it must lie in (0, 1]; 1 keeps everything")
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    likeliest_first = jnp.take_along_axis(logits, order, axis=-1).astype(jnp.float32)
    probabilities = jax.nn.softmax(likeliest_first, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # A sum that rounds up to 1 early must not cost the tail of p = 1.
    return _keep(logits, _scatter(order, (before < p) | (jnp.asarray(p) >= 1), logits.shape[-1]))


def min_p(logits: jax.Array, p: float | jax.Array) -> jax.Array:
    """Tokens at least `p` times as probable as the likeliest. Nguyen et al. 2024 (arXiv:2407.01082), section 3.

    Raises:
      ValueError: if `p` is outside (0, 1].
    """
    _require(p, "p", lambda p: 0 < p <= 1, "it must lie in (0, 1]; 1 keeps only the likeliest")
    relative = logits.astype(jnp.float32) - jnp.max(logits, axis=-1, keepdims=True)
    return _keep(logits, jnp.exp(relative) >= p)


def repetition_penalty(logits: jax.Array, seen: jax.Array, penalty: float | jax.Array) -> jax.Array:
    """Make seen tokens less likely: positive logits / penalty, negative ones * penalty. Keskar et al. 2019
    (arXiv:1909.05858), section 4.1, with the rule for negative logits that its users adopted.

    Args:
      logits: `[..., V]`.
      seen: booleans that broadcast to `[..., V]`, True where the token has occurred.
      penalty: above 1 discourages, below 1 encourages.

    Raises:
      ValueError: if `penalty` is not positive, or the shapes do not fit.
    """
    _require(penalty, "penalty", lambda x: x > 0, "it must be positive; 1 changes nothing")
    if seen.shape[-1] != logits.shape[-1]:
        raise ValueError(f"seen has shape {seen.shape}; mark each token of the vocabulary, as logits {logits.shape}")
    full = logits.astype(jnp.float32)
    penalised = jnp.where(full > 0, full / penalty, full * penalty)
    return jnp.where(seen.astype(bool), penalised, full).astype(logits.dtype)


def _keep(logits: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.where(kept, logits, -jnp.inf)


def _scatter(indices: jax.Array, values: jax.Array, size: int) -> jax.Array:
    """Booleans `[..., size]` that are `values` at `indices`, both `[..., n]`, and False elsewhere."""
    blank = jnp.zeros((*indices.shape[:-1], size), bool)
    return jnp.put_along_axis(blank, indices, values, axis=-1, inplace=False)


def _require(value, name: str, holds, fix: str) -> None:
    if isinstance(value, numbers.Real) and not holds(value):
        raise ValueError(f"{name}={value}: {fix}")
