"""What the page needs of a model, each in one compiled program for all texts of about one length."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer.inspection.explorer.attentions import Attention
from transformer.inspection.lens import read
from transformer.models.transformer import Transformer
from transformer.nn.tap import Tap

STEPS = 255  # of a weight in a byte
ROWS = 16  # whose logits are on the host at a time


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


class Following(NamedTuple):
    """Which tokens may follow each position.

    Attributes:
      ids, logits: `[T, count]`, the largest logits.
      tail: `[T, bins, 2]`, number and mean of the other logits, in bins of equal width from the smallest to those.
      log_sum_exp: `[T]`, of all logits.
    """

    ids: np.ndarray
    logits: np.ndarray
    tail: np.ndarray
    log_sum_exp: np.ndarray


def next_tokens(model: Transformer, params, features: jax.Array, length: int, *, count: int, bins: int) -> Following:
    """The next token at the first `length` of the features `[1, T, D]`: the largest logits, and the rest in bins.

    Raises:
      ValueError: if a logit is not finite.
    """
    parts = []
    for start in range(0, length, ROWS):
        places = np.minimum(np.arange(start, start + ROWS), length - 1)
        read = jax.device_get(_next_tokens(params, features, places, model=model, count=count))
        ids, best, total, logits = (array[: length - start] for array in read)
        if not np.isfinite(logits).all():
            raise ValueError("the model gives logits that are not finite: load parameters that work, or more bits")
        tail = np.stack([_bins(*row, bins) for row in zip(logits, ids, best, strict=True)])
        parts.append(Following(ids, best, tail, total))
    return Following(*map(np.concatenate, zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames=("model", "count"))
def _next_tokens(params, features, places, *, model, count):
    logits = model.apply({"params": params}, features[:, places], method="read")[0]
    best, ids = jax.lax.top_k(logits, count)
    return ids, best, jax.nn.logsumexp(logits, axis=-1), logits


def _bins(logits: np.ndarray, listed: np.ndarray, best: np.ndarray, bins: int) -> np.ndarray:
    """Number and mean of a row's logits, those that are not listed, in bins up to the least that is: `[bins, 2]`."""
    rest = np.delete(logits.astype(np.float64), listed)
    low = rest.min()
    places = np.clip((rest - low) / max(best[-1] - low, 1e-30) * bins, 0, bins - 1).astype(np.int64)
    counts, sums = np.bincount(places, minlength=bins), np.bincount(places, rest, minlength=bins)
    return np.stack([counts, sums / np.maximum(counts, 1)], axis=-1)


@functools.partial(jax.jit, static_argnames="model")
def logits_at(params, features: jax.Array, position: jax.Array, *, model: Transformer) -> jax.Array:
    """All logits of one position: `[V]`."""
    row = jax.lax.dynamic_index_in_dim(features, position, axis=1)
    return model.apply({"params": params}, row, method="read")[0, 0]
