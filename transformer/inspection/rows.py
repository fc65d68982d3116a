"""Rows and cells of a pattern at lengths whose whole pattern `[T, S]` has no room, from captured queries and keys.

site = "decoder/3/"
_, taps = inspection.run(model, params, tokens, capture=(site + "query", site + "key"))
query, key, how = taps[site + "query"], taps[site + "key"], rows.scoring(model, params, site + "pattern")
rows.rows(query, key, how, [5, -1])  # [B, H, 2, S], what two queries attend to
total = rows.log_sum_exp(query, key, how)  # [B, H, T], once for any number of
rows.cells(query, key, total, how, queries, keys)  # [B, H, N]
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from transformer.models.config import ModelConfig, Stack
from transformer.models.transformer import Transformer
from transformer.nn.positions import RelativeBias, alibi_bias
from transformer.nn.tap import split
from transformer.ops import attention, masks

Indices = Sequence[int] | jax.Array


@flax.struct.dataclass
class Scoring:
    """How one attention makes scores of its queries and keys, and which keys a query may see; from `scoring`.

    What rotary positions and query-key norms do is in the queries and keys already.

    Attributes:
      config, stack: of the model, and of the stack that the attention is in.
      causal: whether a query sees only itself and what came before.
      window: keys seen back from a query, itself included; 0: all.
      bias: what is added by position: `relative`, `alibi`, or none.
      crosses: whether keys are another sequence's; otherwise they are the queries' own, one for each.
      relative: the parameters of a relative bias, or None.
      positions: `[B, T]` integers that the bias goes by; None counts from 0.
      mask: `[B, S]` booleans, the real keys; None: all.
      segments, key_segments: `[B, T]` and `[B, S]` integers; a query sees keys of its own segment. None: all.
    """

    config: ModelConfig = flax.struct.field(pytree_node=False)
    stack: Stack = flax.struct.field(pytree_node=False)
    causal: bool = flax.struct.field(pytree_node=False)
    window: int = flax.struct.field(pytree_node=False)
    bias: str = flax.struct.field(pytree_node=False)
    crosses: bool = flax.struct.field(pytree_node=False)
    relative: Any | None = None
    positions: jax.Array | None = None
    mask: jax.Array | None = None
    segments: jax.Array | None = None
    key_segments: jax.Array | None = None


class Side(NamedTuple):
    """Queries or keys with all that is known of each; every array begins with `[B, T]`."""

    heads: jax.Array  # [B, T, H, K] or [B, S, G, K]
    slots: jax.Array
    positions: jax.Array
    segments: jax.Array | None
    real: jax.Array | None


def scoring(
    model: Transformer,
    params: Any,
    site: str,
    *,
    mask: jax.Array | None = None,
    source_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    source_segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    source_positions: jax.Array | None = None,
) -> Scoring:
    """How the attention behind a pattern scores.

    Args:
      params: the tree under `"params"`.
      site: one layer's pattern, such as `decoder/3/pattern`, `decoder/3/cross/pattern` or `encoder/0/pattern`.
      mask, source_mask, segments, source_segments, positions, source_positions: what the run that was captured was
        called with.

    Raises:
      ValueError: if the model has no such pattern, or segments of one side come without those of the other.
    """
    role, layer, crosses = _locate(model.config, site)
    stack = getattr(model.config, role)
    if crosses and (segments is None) != (source_segments is None):
        raise ValueError("segments and source_segments come together: give both or neither")
    if crosses:
        options = {"mask": source_mask, "segments": segments, "key_segments": source_segments}
        return Scoring(model.config, stack, causal=False, window=0, bias="none", crosses=True, **options)
    if role == "encoder" and model.config.decoder is not None:
        mask, segments, positions = source_mask, source_segments, source_positions
    windows, kind = stack.attention.windows or (0,), stack.position.kind
    return Scoring(
        model.config,
        stack,
        causal=role == "decoder",
        window=windows[layer % len(windows)],
        bias=kind,
        crosses=False,
        relative=params[role]["relative"] if kind == "relative" else None,
        positions=positions,
        mask=mask,
        segments=segments,
        key_segments=segments,
    )


def rows(query: jax.Array, key: jax.Array, scoring: Scoring, positions: Indices) -> jax.Array:
    """The pattern of some queries, over all keys.

    Args:
      query: `[B, T, H, K]` of one layer, as captured.
      key: `[B, S, G, K]`.
      positions: `[R]` integers, which queries; negative ones from the end.

    Returns:
      `[B, H, R, S]` in float32; a query that may see nothing has zeros.

    Raises:
      ValueError: if shapes do not fit each other or an index is out of range (traced ones are not checked).
    """
    _check(query, key, scoring)
    return _rows(query, key, scoring, _indices("positions", positions, query.shape[1]))


def log_sum_exp(query: jax.Array, key: jax.Array, scoring: Scoring, *, chunk: int = 512) -> jax.Array:
    """The logarithm of each query's sum of exponentials, so that `exp(score - it)` is the pattern.

    Args:
      query, key: as in `rows`.
      chunk: so many queries meet so many keys at a time.

    Returns:
      `[B, H, T]` in float32; -inf where a query may see nothing.

    Raises:
      ValueError: as `rows`, or if `chunk` is not positive.
    """
    _check(query, key, scoring)
    if chunk < 1:
        raise ValueError(f"chunk={chunk} cannot work: it counts queries and keys, such as 512")
    return _log_sum_exp(query, key, scoring, chunk=chunk)


def cells(
    query: jax.Array, key: jax.Array, log_sum_exp: jax.Array, scoring: Scoring, queries: Indices, keys: Indices
) -> jax.Array:
    """The pattern at some pairs of a query and a key.

    Args:
      query, key: as in `rows`.
      log_sum_exp: `[B, H, T]`, from the function of this name.
      queries, keys: `[N]` integers each; negative ones from the end.

    Returns:
      `[B, H, N]` in float32.

    Raises:
      ValueError: as `rows`, or if there are not as many queries as keys.
    """
    _check(query, key, scoring)
    queries, keys = _indices("queries", queries, query.shape[1]), _indices("keys", keys, key.shape[1])
    whole = (query.shape[0], *query.shape[2:0:-1])
    if log_sum_exp.shape != whole:
        raise ValueError(f"log_sum_exp has shape {log_sum_exp.shape}; it must be {whole}, as its function gives it")
    if len(queries) != len(keys):
        raise ValueError(f"{len(queries)} queries and {len(keys)} keys make no pairs: give as many of both")
    return _cells(query, key, log_sum_exp, scoring, queries, keys)


@jax.jit
def _rows(query, key, scoring, positions):
    queries, keys = _sides(query, key, scoring)
    return attention.weights(_scores(_take(queries, positions), keys, scoring))


@functools.partial(jax.jit, static_argnames="chunk")
def _log_sum_exp(query, key, scoring, *, chunk):
    queries, keys = _sides(query, key, scoring)
    length, key_length = query.shape[1], key.shape[1]

    def of_queries(start: jax.Array) -> jax.Array:
        some = _take(queries, jnp.minimum(start + jnp.arange(min(chunk, length)), length - 1))

        def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
            indices = start + jnp.arange(min(chunk, key_length))
            scores = _scores(some, _take(keys, jnp.minimum(indices, key_length - 1)), scoring)
            scores = jnp.where(indices < key_length, scores, -jnp.inf)
            return jnp.logaddexp(total, jax.nn.logsumexp(scores, axis=-1)), None

        nothing = jnp.full((query.shape[0], query.shape[2], min(chunk, length)), -jnp.inf)
        return jax.lax.scan(add, nothing, jnp.arange(0, key_length, chunk))[0]

    parts = jax.lax.map(of_queries, jnp.arange(0, length, chunk))  # [parts, B, H, chunk]
    return jnp.moveaxis(parts, 0, 2).reshape(*parts.shape[1:3], -1)[..., :length]


@jax.jit
def _cells(query, key, log_sum_exp, scoring, queries, keys):
    def pairs(side: Side, indices: jax.Array) -> Side:  # each in a row of its own: [B N, 1, ...]
        return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), _take(side, indices))

    one, other = _sides(query, key, scoring)
    scores = _scores(pairs(one, queries), pairs(other, keys), scoring)  # [B N, H, 1, 1]
    scores = jnp.moveaxis(scores.reshape(query.shape[0], -1, query.shape[2]), 1, 2)
    total = log_sum_exp[..., queries]
    return jnp.exp(scores - jnp.where(total == -jnp.inf, 0.0, total))


def _sides(query: jax.Array, key: jax.Array, scoring: Scoring) -> tuple[Side, Side]:
    def side(heads, positions, segments, real) -> Side:
        slots = jnp.broadcast_to(jnp.arange(heads.shape[1]), heads.shape[:2])
        return Side(heads, slots, slots if positions is None else positions, segments, real)

    queries = side(query, scoring.positions, scoring.segments, None)
    return queries, side(key, scoring.positions, scoring.key_segments, scoring.mask)


def _take(side: Side, indices: jax.Array) -> Side:
    return jax.tree.map(lambda x: x[:, indices], side)


def _scores(query: Side, key: Side, scoring: Scoring) -> jax.Array:
    """`[B, H, R, C]` of some queries and some keys; -inf where a query may not see a key."""
    config, stack, bias = scoring.config, scoring.stack, None
    if scoring.bias == "alibi":
        bias = alibi_bias(stack.attention.heads, query.positions, key.positions)
    elif scoring.bias == "relative":
        relative = RelativeBias(config, stack, not scoring.causal)
        bias = relative.apply({"params": scoring.relative}, query.positions, key.positions)
    scores = attention.scores(
        query.heads, key.heads, scale=stack.attention.scale, softcap=stack.attention.softcap, bias=bias
    )
    visible = masks.combine(
        masks.causal(query.slots, key.slots) if scoring.causal else None,
        masks.window(query.slots, key.slots, scoring.window) if scoring.window else None,
        None if key.real is None else masks.padding(key.real),
        None if query.segments is None else masks.segment(query.segments, key.segments),
    )
    return scores if visible is None else jnp.where(visible, scores, -jnp.inf)


def _locate(config: ModelConfig, site: str) -> tuple[str, int, bool]:
    """Stack, layer and whether it is cross-attention."""
    name, layer = split(site)
    role, crosses = name.split("/")[0], "/cross/" in name
    both = config.encoder is not None and config.decoder is not None
    have = {f"{role}/*/pattern" for role in ("encoder", "decoder") if getattr(config, role) is not None}
    have |= {"decoder/*/cross/pattern"} if both else set()
    if name not in have:
        near = difflib.get_close_matches(name, have, n=3, cutoff=0.0)
        raise ValueError(f"site={site!r} is no pattern of this model: use one layer of {', '.join(near)}")
    depth = getattr(config, role).depth
    if layer is None or layer >= depth:
        raise ValueError(f"site={site!r} names no layer: write one from 0 to {depth - 1} for the *")
    return role, layer, crosses


def _check(query: jax.Array, key: jax.Array, scoring: Scoring) -> None:
    config, stack = scoring.config, scoring.stack
    batch, width = query.shape[:1], config.head_width(stack)
    wanted = ((stack.attention.heads, width), (config.kv_heads(stack), width))
    if query.ndim != 4 or key.ndim != 4 or (query.shape[2:], key.shape[2:]) != wanted or key.shape[:1] != batch:
        (heads, _), (groups, _) = wanted
        fits = f"[B, T, {heads}, {width}] and [B, S, {groups}, {width}] of one layer"
        raise ValueError(f"query {query.shape} and key {key.shape} must be {fits}")
    if not scoring.crosses and query.shape[1] != key.shape[1]:
        lengths = f"{query.shape[1]} queries and {key.shape[1]} keys"
        raise ValueError(f"{lengths} are not of one whole sequence: capture all, and choose by positions")
    lengths = {"positions": query, "mask": key, "segments": query, "key_segments": key}
    for name, heads in lengths.items():
        array = getattr(scoring, name)
        if array is not None and array.shape != heads.shape[:2]:
            raise ValueError(f"the scoring has {name} {array.shape} where queries and keys have {heads.shape[:2]}")


def _indices(argument: str, indices: Indices, length: int) -> jax.Array | np.ndarray:
    """Indices from 0."""
    if isinstance(indices, jax.core.Tracer):
        return jnp.where(indices < 0, indices + length, indices)
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(f"{argument}={indices} cannot work: give a sequence of integers")
    if indices.size and not (-length <= indices.min() and indices.max() < length):
        raise ValueError(f"{argument}={indices} are out of range: there are {length}, 0 to {length - 1}")
    return (indices % length).astype(np.int32)
