"""Attention as in Vaswani et al. 2017 (arXiv:1706.03762), section 3.2: scores, weights, mix.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(K)) V

Queries have H heads and keys and values G heads, where G divides H: query head h reads key/value head h // (H / G).
G = H is multi-head attention, G = 1 multi-query (arXiv:1911.02150), anything between grouped (arXiv:2305.13245).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from transformer.ops import fused, sharding
from transformer.ops.chunked import chunked_attention
from transformer.ops.masks import Mask
from transformer.ops.products import cores, matmul

Observe = Callable[[str, jax.Array], jax.Array]

# explicit: the formulas of this file, scores in memory; chunked: scores a block at a time; the others: kernels.
IMPLEMENTATIONS = ("auto", "explicit", "chunked", "cudnn", "splash")
CHUNKED_FROM = 1024 * 1024  # scores of a head
PARTED_FROM = 1024 * 1024  # scores of all rows and heads
MOST_PARTS = 8  # each is compiled by itself
TILE = 256  # rows of a product that XLA's CPU library gives to one core


def scores(
    query: jax.Array,
    key: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """How much each query asks of each key: `query . key * scale`, capped, plus `bias`.

    Args:
      query: `[B, T, H, K]`.
      key: `[B, S, G, K]`.
      scale: multiplies the products; None is `1 / sqrt(K)`.
      softcap: c turns scores x into `c * tanh(x / c)` (Gemma 2, arXiv:2408.00118); None leaves them.
      bias: added last; broadcasts to `[B, H, T, S]`.

    Returns:
      `[B, H, T, S]` in float32.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    # Heads come first, as on paper: products over the last two axes are several times faster on CPUs.
    grouped = query.reshape(batch, length, groups, -1, width).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, groups, -1, width)
    products = matmul(grouped, key.swapaxes(1, 2), jnp.float32, transposed=True)
    out = products.reshape(batch, heads, length, key.shape[1]) * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        out = softcap * jnp.tanh(out / softcap)
    return out if bias is None else out + bias


def weights(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Softmax over keys, in float32. A query that may attend to no key, or whose scores are all -inf, gets zeros.

    Args:
      scores: `[B, H, T, S]`.
      mask: booleans that broadcast to `[B, H, T, S]`, True = may attend; None = everything.
    """
    return _softmax(scores.astype(jnp.float32), mask)


@jax.custom_jvp
def _softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    peak = jnp.max(scores, axis=-1, keepdims=True)
    exponentials = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0.0, peak))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials / jnp.where(total == 0, 1.0, total)


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
    # What is masked has weight 0, so the rule needs no mask; without it CPUs take half the time for the gradient.
    pattern, change = _softmax(*primals), tangents[0]
    return pattern, pattern * (change - jnp.sum(pattern * change, axis=-1, keepdims=True))


def mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Each query's weighted sum of values: `[B, H, T, S]` and `[B, S, G, K]` to `[B, T, H, K]`, in value's dtype."""
    batch, heads, length, keys = weights.shape
    groups, width = value.shape[2:]
    mixed = matmul(weights.reshape(batch, groups, -1, keys).astype(value.dtype), value.swapaxes(1, 2))
    return mixed.reshape(batch, heads, length, width).swapaxes(1, 2)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | Mask | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    observe: Observe | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention from queries, keys and values to mixed values; the one entry that every module calls.

    Args:
      query: `[B, T, H, K]`.
      key, value: `[B, S, G, K]`.
      mask: as in `weights`, or as its parts, which fast implementations need.
      bias, scale, softcap: as in `scores`.
      dropout: the share of weights set to zero, the rest scaled up; needs `dropout_key`.
      dropout_key: a typed key, or None for no dropout.
      observe: called with `("scores", scores)` and `("pattern", weights)`; what it returns is used in their place.
      implementation: of `IMPLEMENTATIONS`. `auto` takes the hardware's kernel where that computes exactly this, else
        `chunked` where scores would be large, else `explicit`, which alone takes everything. Whatever is asked for,
        observed attention is explicit, for no other forms scores.

    Returns:
      `[B, T, H, K]` in value's dtype.

    Raises:
      ValueError: if the shapes do not fit each other, or the implementation is unknown or cannot do what is asked.
    """
    _check(query, key, value)
    mask = Mask() if mask is None else mask
    drops = dropout_key is not None and dropout > 0
    explicit = [name for name, asked in (("a bias", bias is not None), ("dropout", drops)) if asked]
    if isinstance(mask, Mask):
        parts = mask
    else:
        parts, explicit = Mask(), [*explicit, "a mask that is an array"]
    # What one device has of the queries decides, and whether it has them all.
    local = jax.ShapeDtypeStruct(sharding.local_shape(query.shape, "rows", "positions", None, None), query.dtype)
    chosen = _choose(implementation, local, key, parts, softcap, explicit)
    if observe is None and not drops and isinstance(mask, Mask):
        kernels = {
            "explicit": _side_by_side(partial(_explicit, scale=scale, softcap=softcap)),
            "cudnn": lambda q, k, v, mask, _: fused.cudnn(q, k, v, mask=mask, scale=scale),
            "splash": lambda q, k, v, mask, _: fused.splash(q, k, v, mask=mask, scale=scale, softcap=softcap),
            "chunked": lambda q, k, v, mask, _: chunked_attention(q, k, v, mask=mask, scale=scale, softcap=softcap)[0],
        }
        return _per_device(kernels[chosen], query, key, value, mask, bias)

    def drop(pattern: jax.Array) -> jax.Array:
        if not drops:
            return pattern
        kept = jax.random.bernoulli(dropout_key, 1 - dropout, pattern.shape)
        return jnp.where(kept, pattern / (1 - dropout), 0.0)

    return _explicit(query, key, value, mask, bias, scale=scale, softcap=softcap, observe=observe, drop=drop)


def _explicit(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | Mask,
    bias: jax.Array | None,
    *,
    scale: float | None,
    softcap: float | None,
    observe: Observe | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda pattern: pattern,
) -> jax.Array:
    """The formulas, one after the other."""
    observe = observe or (lambda name, x: x)
    seen = mask.array(query.shape[1], key.shape[1]) if isinstance(mask, Mask) else mask
    logits = observe("scores", scores(query, key, scale=scale, softcap=softcap, bias=bias))
    return mix(drop(observe("pattern", weights(logits, seen))), value)


def _side_by_side(kernel: Callable) -> Callable:
    """A kernel that on a CPU takes the rows in as many parts as there are cores.

    XLA's library for CPUs goes through a batch of small matrices one after the other, each on one core; operations
    that do not depend on each other it does at the same time. Each row's numbers stay the same.
    """

    def run(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, bias: jax.Array | None) -> jax.Array:
        parts = _parts(query, key)
        if parts == 1:
            return kernel(query, key, value, mask, bias)

        def cut(array: jax.Array) -> list[jax.Array]:
            return [array] * parts if len(array) == 1 else jnp.split(array, parts)

        bias = None if bias is None else jnp.expand_dims(bias, tuple(range(4 - bias.ndim)))
        leaves, kind = jax.tree.flatten((query, key, value, mask, bias))
        return jnp.concatenate([kernel(*kind.unflatten(part)) for part in zip(*map(cut, leaves), strict=True)])

    return run


def _parts(query: jax.Array, key: jax.Array) -> int:
    rows, length, heads, _ = query.shape
    small = 1 < length * heads // key.shape[2] < 2 * TILE
    if not small or rows * heads * length * key.shape[1] < PARTED_FROM:
        return 1
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    return max(parts for parts in range(1, min(rows, cores(), MOST_PARTS) + 1) if rows % parts == 0)


def _per_device(
    kernel: Callable, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, bias: jax.Array | None
) -> jax.Array:
    """A kernel on a mesh: each device takes its rows, its heads, and its queries' positions with all of the keys."""
    heads = _shared_heads(query, key)
    ours = ("rows", "positions", heads, None)
    theirs = ("rows", None, heads, None)
    meanings = {"offset": ("rows",), "query_segments": ("rows", "positions")}
    of_mask = {
        field.name: meanings.get(field.name, ("rows", None))
        for field in dataclasses.fields(mask)
        if isinstance(getattr(mask, field.name), jax.Array)
    }

    whole = query.shape[1]

    def one(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, bias: jax.Array | None) -> jax.Array:
        if (begin := sharding.position_offset(query.shape[1], whole)) is not None:
            before = jnp.zeros(len(query), jnp.int32) if mask.offset is None else mask.offset
            mask = dataclasses.replace(mask, offset=before + begin)
        return kernel(query, key, value, mask, bias)

    arrays = (query, key, value, mask, bias)
    of_bias = None
    if bias is not None:  # broadcasts to [B, H, T, S]
        axes = ("rows", heads, "positions", None)[4 - bias.ndim :]
        of_bias = tuple(axis if size > 1 else None for axis, size in zip(axes, bias.shape, strict=True))
    meanings = (ours, theirs, theirs, dataclasses.replace(mask, **of_mask), of_bias)
    return sharding.per_device(one, arrays, meanings, (query.shape, ours))


def _shared_heads(query: jax.Array, key: jax.Array) -> str | None:
    """Heads are shared among devices where those of queries and those of keys both divide."""
    cut = [sharding.local_shape(array.shape, None, None, "heads", None) != array.shape for array in (query, key)]
    return "heads" if all(cut) else None


def _choose(
    implementation: str, query: jax.Array, key: jax.Array, mask: Mask, softcap: float | None, explicit: list[str]
) -> str:
    """The implementation that runs; `explicit` names what only that one can do."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    refused = f"it cannot take {' or '.join(explicit)}" if explicit else None
    reasons = {
        "explicit": None,
        "chunked": refused,
        "cudnn": refused or fused.cudnn_refuses(query, key, mask, softcap),
        "splash": refused or fused.splash_refuses(query, key, mask, softcap),
    }
    if implementation != "auto":
        if reasons[implementation]:
            raise ValueError(
                f"implementation={implementation!r} cannot do this: {reasons[implementation]}; use 'auto' or 'explicit'"
            )
        return implementation
    kernel = {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend())
    if kernel is not None and reasons[kernel] is None:
        return kernel
    large = query.shape[1] * key.shape[1] >= CHUNKED_FROM
    return "chunked" if large and refused is None else "explicit"


def _check(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4:
        shapes = f"{query.shape}, {key.shape}, {value.shape}"
        raise ValueError(f"query, key, value need [B, T, H, K], [B, S, G, K], [B, S, G, K]; got {shapes}")
    if key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} do not fit each other")
    if query.shape[2] % key.shape[2]:
        raise ValueError(
            f"{query.shape[2]} query heads cannot share {key.shape[2]} key/value heads: no whole number each"
        )
