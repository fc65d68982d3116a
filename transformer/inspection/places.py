"""Where a head may be looking, as what its mass on each key is worth, for scores that are linear in a pattern.

`segments`, `[B, T]` integers, keep everything within one segment; None makes each row one segment.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.ops import masks


class Place(NamedTuple):
    """Of each query; B, and in some T, are 1 where all are alike.

    Attributes:
      worth: `[B, T, S]` in float32; at most places 1 there and 0 elsewhere.
      counts: `[B, T]` booleans, the queries for which there is such a place.
    """

    worth: jax.Array
    counts: jax.Array


def first(length: int, segments: jax.Array | None, number: int) -> Place:
    """The first keys, so many of each segment."""
    slots = jnp.arange(length)
    before = _same(segments) & (slots < slots[:, None])  # [B, S, S]
    return _at((jnp.sum(before, axis=-1) < number)[:, None])  # [B, 1, S]


def previous(length: int, segments: jax.Array | None) -> Place:
    """The key right before the query."""
    slots = jnp.arange(length)
    return _at((slots == slots[:, None] - 1) & _same(segments))


def duplicates(tokens: jax.Array, segments: jax.Array | None) -> Place:
    """Earlier keys with the query's token, of `[B, T]` ids."""
    return _at(_earlier(tokens, segments))


def successors(tokens: jax.Array, segments: jax.Array | None) -> Place:
    """Keys right after earlier ones with the query's token; the query itself where its token came twice running."""
    after = jnp.pad(_earlier(tokens, segments)[..., :-1], [(0, 0), (0, 0), (1, 0)])
    return _at(after & _same(segments))  # what comes after may be padding


def distances(length: int) -> Place:
    """Every key, worth its distance from the query."""
    slots = jnp.arange(length)
    return Place(jnp.abs(slots[:, None] - slots).astype(jnp.float32)[None], jnp.ones((1, 1), bool))


def _at(keys: jax.Array) -> Place:
    return Place(keys.astype(jnp.float32), jnp.any(keys, axis=-1))


def _earlier(tokens: jax.Array, segments: jax.Array | None) -> jax.Array:
    slots = jnp.arange(tokens.shape[1])
    return (slots < slots[:, None]) & _same(tokens) & _same(segments)


def _same(labels: jax.Array | None) -> jax.Array:
    return jnp.ones((1, 1, 1), bool) if labels is None else masks.segment(labels, labels)[:, 0]
