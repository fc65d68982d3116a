"""Directions among vectors of tokens: analogies, nearest tokens, and how one token's vector moves through the layers.

    king, man, woman = 5, 8, 13  # ids
    analogy(params, plus=[king, woman], minus=[man]).ids  # the nearest tokens to king - man + woman
    plurality = difference(params, plurals, singulars)  # [D]
    project(embeddings(params, ids), plurality)  # how plural each token is

Vectors of tokens are rows of the embedding table, without the `embedding_scale` that some models multiply them by.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.nn.positions import look_up

MEASURES = ("cosine", "dot")


class Neighbours(NamedTuple):
    """Tokens in order of nearness, nearest first.

    Attributes:
      ids: `[..., k]`.
      scores: `[..., k]`, cosines or dot products.
    """

    ids: jax.Array
    scores: jax.Array


class Movement(NamedTuple):
    """How vectors move through the layers, `[L + 1, ...]` each.

    Attributes:
      norm: their lengths.
      to_start: their cosines with where they started, 1 in row 0.
      to_previous: their cosines with where they were one layer before; 1 in row 0, which has none.
    """

    norm: jax.Array
    to_start: jax.Array
    to_previous: jax.Array


class Parting(NamedTuple):
    """Where two contexts of a token part.

    Attributes:
      cosines: `[L + 1, ...]`, of one context's vector with the other's.
      first: `[...]` integers, the first row in which the cosine is below the threshold; -1: none.
    """

    cosines: jax.Array
    first: jax.Array


def embeddings(params, ids: jax.Array) -> jax.Array:
    """Rows `[..., D]` of the embedding table in float32; an id outside the vocabulary gives NaN."""
    return look_up(params["embedding"]["table"], jnp.asarray(ids)).astype(jnp.float32)


def nearest(
    params, vectors: jax.Array, *, top: int = 10, by: str = "cosine", exclude: jax.Array | None = None
) -> Neighbours:
    """The tokens whose vectors are nearest to each of some vectors.

    Args:
      vectors: `[..., D]`.
      top: k, how many.
      by: `cosine`, or `dot`, which favours long vectors.
      exclude: ids of tokens to leave out.

    Raises:
      ValueError: if by is unknown, or so many tokens are not left.
    """
    if by not in MEASURES:
        raise ValueError(f"by={by!r} is unknown; choose one of {', '.join(MEASURES)}")
    table = jnp.asarray(params["embedding"]["table"], jnp.float32)
    vectors = jnp.asarray(vectors)
    exclude = jnp.zeros(0, jnp.int32) if exclude is None else jnp.ravel(jnp.asarray(exclude, jnp.int32))
    left = len(table) - len(exclude)
    if not 1 <= top <= left:
        raise ValueError(f"top={top} is out of range: {left} of {len(table)} tokens are not excluded")
    scores = (unit(vectors) @ unit(table).T) if by == "cosine" else vectors @ table.T  # [..., V]
    scores = scores.at[..., exclude].set(-jnp.inf, wrap_negative_indices=False)
    scores, ids = jax.lax.top_k(scores, top)
    return Neighbours(ids, scores)


def analogy(params, *, plus: jax.Array, minus: jax.Array, top: int = 10, by: str = "cosine") -> Neighbours:
    """The tokens nearest to the sum of some less the sum of others, such as king - man + woman; none of these.

    Args:
      plus, minus: `[n]` ids.
      top, by: as in `nearest`.

    Raises:
      ValueError: as `nearest`.

    Source: Mikolov et al. 2013 (aclanthology.org/N13-1090), section 4.
    """
    vector = jnp.sum(embeddings(params, plus), axis=0) - jnp.sum(embeddings(params, minus), axis=0)
    return nearest(params, vector, top=top, by=by, exclude=jnp.concatenate([jnp.asarray(plus), jnp.asarray(minus)]))


def difference(params, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """A direction `[D]`: the mean vector of some tokens `[n]` less that of others `[m]`, of plurals and singulars."""
    return jnp.mean(embeddings(params, positive), axis=0) - jnp.mean(embeddings(params, negative), axis=0)


def project(vectors: jax.Array, direction: jax.Array) -> jax.Array:
    """How far vectors `[..., D]` reach along a direction `[D]` of any length: `[...]`."""
    return vectors @ unit(direction)


def movement(residuals: jax.Array) -> Movement:
    """How vectors move from layer to layer: `[L + 1, ..., D]`, as `lens.residuals` gives them."""
    residuals = jnp.asarray(residuals, jnp.float32)
    before = jnp.concatenate([residuals[:1], residuals[:-1]])
    norm = jnp.linalg.norm(residuals, axis=-1)
    return Movement(norm, cosine(residuals, residuals[:1]), cosine(residuals, before))


def parting(residuals: jax.Array, others: jax.Array, *, threshold: float = 0.5) -> Parting:
    """Where a token's vectors in two contexts part, layer by layer.

        bank = residuals(model, params, tokens, positions=3)[:, 0, 0]  # [L + 1, D]
        shore = residuals(model, params, others, positions=5)[:, 0, 0]
        parting(bank, shore, threshold=0.8).first

    Args:
      residuals, others: `[L + 1, ..., D]`.
      threshold: cosines below it count as parted.
    """
    cosines = cosine(residuals, others)
    parted = cosines < threshold
    return Parting(cosines, jnp.where(jnp.any(parted, axis=0), jnp.argmax(parted, axis=0), -1))


def cosine(vectors: jax.Array, others: jax.Array) -> jax.Array:
    """Of the angle between vectors `[..., D]`, in float32; 0 where one is zero."""
    return jnp.sum(unit(vectors) * unit(others), axis=-1)


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors `[..., D]` at length 1 in float32; zero stays zero."""
    vectors = jnp.asarray(vectors, jnp.float32)
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length == 0, 1.0, length)
