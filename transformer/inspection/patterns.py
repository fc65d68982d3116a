"""What each head attends to, as numbers: `[..., B, H, T, S]` patterns to `[..., H]` scores.

    patterns.scores(model, params, tokens)["decoder"]["induction"]  # [L, H]
    patterns.induction(taps["decoder/*/pattern"], tokens)  # the same, of patterns that were captured

A score is a mean over batch and queries, in float32, which query t of row b enters with `weights[b, t]`. A query that
attends to nothing does not count, nor does one that a score does not concern, such as the first, which has no token
before it. Where no query counts the score is NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from transformer.inspection import places
from transformer.inspection.sites import split_flags
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer
from transformer.nn.tap import Tap

SCORES = ("entropy", "distance", "sink_mass", "previous_token", "duplicate_token", "induction")
OF_CROSS = ("entropy", "sink_mass")  # its queries and keys have no positions or tokens in common
SITES = {
    "encoder": "encoder/*/pattern",
    "decoder": "decoder/*/pattern",
    "decoder/cross": "decoder/*/cross/pattern",
}


class Total(NamedTuple):
    """A score before its division: totals of several batches or devices add up. `[L, H]` each."""

    sum: jax.Array
    count: jax.Array  # of the weights of what counts


class Sequence(NamedTuple):
    """The tokens `[B, T]` that queries or keys stand for; what is padded has a segment of its own."""

    tokens: jax.Array
    segments: jax.Array | None
    weights: jax.Array | None


def entropy(pattern: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """How widely a head spreads: `-sum_s p[t, s] ln p[t, s]` in nats, 0 on one key and ln S on all alike.

    Args:
      pattern: `[..., B, H, T, S]`; further axes in front, such as layers, stay.
      weights: `[B, T]`, how much each query counts; None: all alike.

    Returns:
      `[..., H]` in float32.

    Raises:
      ValueError: as every score, if the shapes do not fit each other.
    """
    weights = _fit("weights", weights, pattern)
    return _mean(_total(_entropy(pattern), jnp.sum(pattern, axis=-1, dtype=jnp.float32), None, weights))


def distance(pattern: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """How far a head looks: `sum_s p[t, s] |t - s|` in positions, of self-attention. Arguments as in `entropy`."""
    return _score(pattern, places.distances(_length(pattern)), weights)


def sink_mass(
    pattern: jax.Array, *, sinks: int = 1, segments: jax.Array | None = None, weights: jax.Array | None = None
) -> jax.Array:
    """The mass on the first keys, where heads that have nothing to add put it.

    Attention sinks: Xiao et al. 2024 (arXiv:2309.17453), section 3.1. The first query, whose mass can be nowhere else,
    counts, as in the measure of Gu et al. 2025 (arXiv:2410.10781).

    Args:
      pattern, weights: as in `entropy`.
      sinks: how many first keys.
      segments: `[B, S]` integers of the keys; the first keys are then those of each segment.
    """
    if sinks < 1:
        raise ValueError(f"sinks={sinks} cannot work: it counts the first keys, 1 or more")
    segments = _fit("segments", segments, pattern, -1)
    return _score(pattern, places.first(pattern.shape[-1], segments, sinks), weights)


def previous_token(
    pattern: jax.Array, *, segments: jax.Array | None = None, weights: jax.Array | None = None
) -> jax.Array:
    """The mass on the token before the query, `p[t, t - 1]`, of queries that have one in their segment.

    Args:
      pattern, weights: as in `entropy`, of self-attention.
      segments: `[B, T]` integers of the tokens; None: each row is one segment.
    """
    segments = _fit("segments", segments, pattern)
    return _score(pattern, places.previous(_length(pattern), segments), weights)


def duplicate_token(
    pattern: jax.Array, tokens: jax.Array, *, segments: jax.Array | None = None, weights: jax.Array | None = None
) -> jax.Array:
    """The mass on earlier occurrences of the query's own token, of queries that have some in their segment.

    Duplicate-token heads: Wang et al. 2022 (arXiv:2211.00593), section 3. A window that hides the occurrences does not
    excuse a head: its score is then 0.

    Args:
      pattern, segments, weights: as in `previous_token`.
      tokens: `[B, T]` ids.
    """
    tokens, segments = _fit("tokens", tokens, pattern), _fit("segments", segments, pattern)
    return _score(pattern, places.duplicates(tokens, segments), weights)


def induction(
    pattern: jax.Array, tokens: jax.Array, *, segments: jax.Array | None = None, weights: jax.Array | None = None
) -> jax.Array:
    """The mass on the tokens right after earlier occurrences of the query's token, of queries that have some.

    In ... A B ... A an induction head attends to B, which came next: prefix matching in Olsson et al. 2022
    (arXiv:2209.11895); found by Elhage et al. 2021 (transformer-circuits.pub/2021/framework), "Induction Heads". Where
    a token came twice running, what came next is the query itself.

    Args:
      pattern, tokens, segments, weights: as in `duplicate_token`.
    """
    tokens, segments = _fit("tokens", tokens, pattern), _fit("segments", segments, pattern)
    return _score(pattern, places.successors(tokens, segments), weights)


def scores(
    model: Transformer,
    params: Any,
    tokens: jax.Array,
    *,
    names: Iterable[str] = SCORES,
    weights: jax.Array | None = None,
    **model_arguments,
) -> dict[str, dict[str, jax.Array]]:
    """The scores of every head of a model on a batch.

    They are reduced inside the scan over layers, so that no more than one layer's pattern is there at a time. Compiled
    once for each set of names and shapes; it may stand inside `jit`.

    Args:
      params, tokens, **model_arguments: as in `inspection.run`, without a cache. Padding by `mask` or `source_mask`
        never counts, and first keys, earlier occurrences and the like are sought within `segments`.
      names: of `SCORES`.
      weights: `[B, T]`, how much each query of `tokens` counts; None: all alike. Those of a source count alike.

    Returns:
      By attention (`encoder`, `decoder`, `decoder/cross`, those that the model has) and name `[L, H]` in float32.
      Cross-attention has only the scores of `OF_CROSS`.

    Raises:
      ValueError: if a name is unknown, or an argument does not fit the model.
    """
    return means(totals(model, params, tokens, names=names, weights=weights, **model_arguments))


def totals(
    model: Transformer,
    params: Any,
    tokens: jax.Array,
    *,
    names: Iterable[str] = SCORES,
    weights: jax.Array | None = None,
    **model_arguments,
) -> dict[str, dict[str, Total]]:
    """As `scores`, before the division: add up the trees of several batches or devices, then take `means`."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or not {*names} <= {*SCORES}:
        raise ValueError(f"names={names} cannot work: choose some of {', '.join(SCORES)}")
    if model_arguments.get("cache") is not None:
        raise ValueError("cache: scores are of whole sequences; pass all tokens and leave it out")
    tokens = jnp.asarray(tokens)
    if weights is not None and jnp.shape(weights) != tokens.shape:
        raise ValueError(f"weights have shape {jnp.shape(weights)}; they must be {tokens.shape}, one for each token")
    arrays, flags = split_flags(model_arguments)
    return _totals(params, tokens, weights, arrays, model=model, names=names, flags=flags)


def means(totals: dict[str, dict[str, Total]]) -> dict[str, dict[str, jax.Array]]:
    """Scores from totals; NaN where nothing counts."""
    return {attention: {name: _mean(Total(*total)) for name, total in of.items()} for attention, of in totals.items()}


@functools.partial(jax.jit, static_argnames=("model", "names", "flags"))
def _totals(params, tokens, weights, arrays, *, model, names, flags):
    sequences, capture = _sequences(model.config, tokens, weights, arrays), {}
    measured = {of: [name for name in names if name in OF_CROSS or not of.endswith("/cross")] for of in sequences}
    for attention, (query, key) in sequences.items():
        reader, depth = _reader(measured[attention], query, key), getattr(model.config, attention.split("/")[0]).depth
        if measured[attention]:
            capture |= {SITES[attention].replace("*", str(layer)): reader for layer in range(depth)}
    tap = Tap(capture)
    model.apply({"params": params}, tokens, tap=tap, method="features", **arrays, **dict(flags))
    kept = {site: jnp.moveaxis(array, 0, 2) for site, array in tap.taps().stacked().items()}  # [scores, 2, L, H]
    return {
        attention: {name: Total(*kept[SITES[attention]][index]) for index, name in enumerate(wanted)}
        for attention, wanted in measured.items()
        if wanted
    }


def _sequences(config: ModelConfig, tokens, weights, arguments) -> dict[str, tuple[Sequence, Sequence]]:
    """What stands behind the queries and the keys of each attention."""
    own = _sequence(tokens, arguments.get("mask"), arguments.get("segments"), weights)
    if config.decoder is None:
        return {"encoder": (own, own)}
    if (source := arguments.get("source")) is None:  # if there is an encoder, the model refuses that
        return {"decoder": (own, own)}
    read = _sequence(source, arguments.get("source_mask"), arguments.get("source_segments"), None)
    return {"encoder": (read, read), "decoder": (own, own), "decoder/cross": (own, read)}


def _sequence(tokens, mask, segments, weights) -> Sequence:
    if mask is None:
        return Sequence(tokens, segments, weights)
    mask = mask.astype(bool)
    apart = jnp.where(mask, 0, -1) if segments is None else jnp.where(mask, segments, jnp.min(segments) - 1)
    return Sequence(tokens, apart, mask if weights is None else mask * weights)


def _reader(names: Iterable[str], query: Sequence, key: Sequence) -> Callable[[jax.Array], jax.Array]:
    """What a tap keeps of each layer's pattern: `[scores, 2, H]`. Where to look is found here, once for all layers."""
    length, keys = query.tokens.shape[1], key.tokens.shape[1]
    find = {
        "distance": lambda: places.distances(length),
        "sink_mass": lambda: places.first(keys, key.segments, 1),
        "previous_token": lambda: places.previous(length, query.segments),
        "duplicate_token": lambda: places.duplicates(query.tokens, query.segments),
        "induction": lambda: places.successors(query.tokens, query.segments),
    }
    found = {name: find[name]() for name in names if name in find}
    worths = _stack(found.values(), (*query.tokens.shape, keys))

    def read(pattern: jax.Array) -> jax.Array:
        rows, *masses = _masses(pattern, worths)
        values = dict(zip(found, masses, strict=True)) | {"entropy": _entropy(pattern)}
        counts = {name: place.counts for name, place in found.items()} | {"entropy": None}
        return jnp.stack([jnp.stack(_total(values[name], rows, counts[name], query.weights)) for name in names])

    return read


def _stack(found: Iterable[places.Place], shape: tuple[int, ...]) -> jax.Array:
    """`[1 + places, B, T, S]`, the first worth 1 everywhere."""
    return jnp.stack([jnp.broadcast_to(worth, shape) for worth in (jnp.ones(()), *(place.worth for place in found))])


def _masses(pattern: jax.Array, worths: jax.Array) -> jax.Array:
    """`[1 + places, ..., B, H, T]` in one product, as each sum by itself would write a pattern of its own on CPUs."""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("...BHTS,XBTS->X...BHT", pattern.astype(jnp.float32), worths, precision=exact)


def _entropy(pattern: jax.Array) -> jax.Array:
    pattern = pattern.astype(jnp.float32)
    bound = jnp.finfo(jnp.float32).tiny  # keeps the slope finite at 0; a product with a logarithm is slower on CPUs
    return -jnp.sum(xlogy(pattern, jnp.maximum(pattern, bound)), axis=-1)


def _score(pattern: jax.Array, place: places.Place, weights: jax.Array | None) -> jax.Array:
    weights = _fit("weights", weights, pattern)
    rows, values = _masses(pattern, _stack([place], (pattern.shape[-4], *pattern.shape[-2:])))
    return _mean(_total(values, rows, place.counts, weights))


def _total(values: jax.Array, rows: jax.Array, counts: jax.Array | None, weights: jax.Array | None) -> Total:
    """Over batch and queries, of values and sums of rows `[..., B, H, T]`; a row without any mass does not count."""
    each = (rows != 0).astype(jnp.float32)
    for factor in (counts, weights):
        each = each if factor is None else each * factor[:, None]
    return Total(*(jnp.sum(x, axis=(-3, -1)) for x in (jnp.where(each > 0, values * each, 0.0), each)))


def _mean(total: Total) -> jax.Array:
    return jnp.where(total.count > 0, total.sum / total.count, jnp.nan)


def _length(pattern: jax.Array) -> int:
    if pattern.shape[-1] != pattern.shape[-2]:
        raise ValueError(f"pattern has shape {pattern.shape}; this score needs [..., B, H, T, T], whole self-attention")
    return pattern.shape[-1]


def _fit(name: str, labels: jax.Array | None, pattern: jax.Array, axis: int = -2) -> jax.Array | None:
    """Labels `[B, T]`, or `[B, S]` for the last axis of `[..., B, H, T, S]`; ValueError if they are not."""
    if pattern.ndim < 4:
        raise ValueError(f"pattern has shape {pattern.shape}; give it as [..., B, H, T, S]")
    fits = (pattern.shape[-4], pattern.shape[axis])
    if labels is not None and jnp.shape(labels) != fits:
        raise ValueError(f"{name} of shape {jnp.shape(labels)} do not fit pattern {pattern.shape}: give {list(fits)}")
    return labels if labels is None else jnp.asarray(labels)
