"""What the page needs of a model, each in one compiled program for all texts of about one length."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.inspection.explorer.attentions import Attention
from transformer.inspection.lens import read
from transformer.models.transformer import Transformer
from transformer.nn.tap import Tap

STEPS = 255  # of a weight in a byte


class Overview(NamedTuple):
    """One reading of a text.

    Attributes:
      patterns: by attention, `[layers, 1, H, T, S]` bytes, 255 times the weights.
      residuals: by role, `[L + 1, 1, T, D]`: the input of each block, and what the last one leaves.
      features: what the read-out reads, `[1, T, D]`.
    """

    patterns: dict[str, jax.Array]
    residuals: dict[str, jax.Array]
    features: jax.Array


def overview(model: Transformer, params, inputs: dict, layers: dict[Attention, tuple[int, ...]]) -> Overview:
    """The patterns of these layers of each attention, and every residual."""
    return _overview(params, inputs, model=model, layers=tuple(layers.items()))


@functools.partial(jax.jit, static_argnames=("model", "layers"))
def _overview(params, inputs, *, model, layers):
    roles = {attention.role: getattr(model.config, attention.role).depth for attention, _ in layers}
    capture = {attention.site(layer, "pattern"): _bytes for attention, chosen in layers for layer in chosen}
    for role, depth in roles.items():
        names = [f"{role}/{layer}/residual_pre" for layer in range(depth)]
        capture |= dict.fromkeys([*names, f"{role}/{depth - 1}/residual_post"])
    tap = Tap(capture)
    features, _ = model.apply({"params": params}, **inputs, tap=tap, method="features")
    found = tap.taps().stacked()
    patterns = {attention.name: found[attention.site("*", "pattern")] for attention, _ in layers}
    ends = ("residual_pre", "residual_post")
    residuals = {role: jnp.concatenate([found[f"{role}/*/{end}"] for end in ends]) for role in roles}
    return Overview(patterns, residuals, features)


def _bytes(pattern: jax.Array) -> jax.Array:
    return jnp.round(STEPS * pattern).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("model", "count"))
def lens(params, residuals: jax.Array, *, model: Transformer, count: int) -> tuple[jax.Array, jax.Array]:
    """The likeliest tokens if the model ended after each layer: ids and probabilities, each `[L + 1, T, count]`.

    The residuals `[L + 1, 1, T, D]` go through the final norm and the read-out. The logit lens, nostalgebraist 2020.
    """

    def one(residual):
        logits = read(model, params, residual)[0]
        best, ids = jax.lax.top_k(logits, count)
        return ids, jnp.exp(best - jax.nn.logsumexp(logits, axis=-1, keepdims=True))

    return jax.lax.map(one, residuals)


@functools.partial(jax.jit, static_argnames=("model", "count", "bins"))
def next_tokens(params, features: jax.Array, *, model: Transformer, count: int, bins: int):
    """The `count` largest logits of every position, and the others in bins of equal width.

    Returns:
      ids and logits `[T, count]`; the others' number and mean logit `[T, bins, 2]`; log-sum-exp of all `[T]`.
    """

    def one(row):
        logits = model.apply({"params": params}, row[None, None], method="read")[0, 0]
        best, ids = jax.lax.top_k(logits, count)
        low = jnp.min(logits)
        places = jnp.clip((logits - low) / jnp.maximum(best[-1] - low, 1e-30) * bins, 0, bins - 1).astype(jnp.int32)
        places = places.at[ids].set(bins)
        inside = lambda place: jnp.stack([jnp.sum(places == place), jnp.sum(jnp.where(places == place, logits, 0))])  # noqa: E731
        counts, sums = jax.lax.map(inside, jnp.arange(bins)).T
        tail = jnp.stack([counts, sums / jnp.maximum(counts, 1)], axis=-1)
        return ids, best, tail, jax.nn.logsumexp(logits)

    return jax.lax.map(one, features[0])


@functools.partial(jax.jit, static_argnames="model")
def logits_at(params, features: jax.Array, position: jax.Array, *, model: Transformer) -> jax.Array:
    """All logits of one position: `[V]`."""
    row = jax.lax.dynamic_index_in_dim(features, position, axis=1)
    return model.apply({"params": params}, row, method="read")[0, 0]
