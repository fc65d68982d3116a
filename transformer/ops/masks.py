"""Boolean attention masks: True where a query may attend to a key. Each broadcasts to `[B, H, T, S]`.

Positions are absolute indices, so that one function serves a whole sequence and a cached step alike.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def causal(query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    """Keys at or before the query.

    Args:
      query_positions: `[T]` or `[B, T]` integers.
      key_positions: `[S]` or `[B, S]` integers.

    Returns:
      `[1, 1, T, S]` or `[B, 1, T, S]` booleans.
    """
    return _distances(query_positions, key_positions) >= 0


def window(query_positions: jax.Array, key_positions: jax.Array, width: int) -> jax.Array:
    """Keys fewer than `width` positions before the query (the query's own counts); later keys are left to `causal`.

    Sliding-window attention, Beltagy et al. 2020 (arXiv:2004.05150), in the one-sided form of Mistral 7B
    (arXiv:2310.06825). Shapes as in `causal`.

    Raises:
      ValueError: if `width` is not positive.
    """
    if width < 1:
        raise ValueError(f"width={width}: a window holds at least the query's own position; pass 1 or more")
    return _distances(query_positions, key_positions) < width


def padding(valid: jax.Array) -> jax.Array:
    """Keys that are real: `valid` is `[B, S]` booleans, the result `[B, 1, 1, S]`."""
    return valid.astype(bool)[:, None, None, :]


def prefix(visible: jax.Array) -> jax.Array:
    """Keys that later and earlier queries alike may attend to: `visible` is `[B, S]` booleans, the result
    `[B, 1, 1, S]`. Joined by "or" to `causal` it makes a prefix language model, Liu et al. 2018 (arXiv:1801.10198)."""
    return visible.astype(bool)[:, None, None, :]


def segment(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """Keys of the query's own segment: `[B, T]` and `[B, S]` integers to `[B, 1, T, S]` booleans."""
    return query_segments[:, None, :, None] == key_segments[:, None, None, :]


def combine(*masks: jax.Array | None) -> jax.Array | None:
    """The conjunction of all masks that are not None; None if there are none (everything may attend)."""
    combined = None
    for mask in masks:
        if mask is not None:
            combined = mask if combined is None else jnp.logical_and(combined, mask)
    return combined


def _distances(query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    query, key = jnp.atleast_2d(query_positions), jnp.atleast_2d(key_positions)
    return query[:, None, :, None] - key[:, None, None, :]
