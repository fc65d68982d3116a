"""Who may attend to whom: boolean masks, True where a query may attend to a key, and `Mask`, what they are made of.

Arrays broadcast to `[B, H, T, S]`. Positions are absolute indices, so that one function serves a whole sequence and a
cached step alike.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("offset", "valid", "query_segments", "key_segments", "prefix"),
    meta_fields=("causal", "window"),
)
@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask as its parts, none of which is quadratic; a query may attend to a key that every part allows.

    Key s stands at slot s, query t of row b at slot `offset[b] + t`: the order that causality and windows go by.

    Attributes:
      causal: keys at or before the query, and those of the prefix.
      window: keys fewer than so many slots before the query, the query's own included; 0 for all.
      offset: `[B]` integers, the slots before the first query, as a cache has them; None = 0.
      valid: `[B, S]` booleans, the real keys; None = all are.
      query_segments, key_segments: `[B, T]` and `[B, S]` integers, both or neither; a query sees its own segment.
      prefix: `[B, S]` booleans, keys that causality does not hide; None = none.
    """

    causal: bool = False
    window: int = 0
    offset: jax.Array | None = None
    valid: jax.Array | None = None
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    prefix: jax.Array | None = None

    @property
    def parts(self) -> frozenset[str]:
        """The names of the parts that hide anything, or say what they hide."""
        return frozenset(field.name for field in dataclasses.fields(self) if _there(getattr(self, field.name)))

    def array(self, queries: int, keys: int) -> jax.Array | None:
        """The booleans `[1 or B, 1, T, S]` for T queries and S keys; None where everything may attend."""
        return self.tile(0, queries, 0, keys)

    def tile(self, query: jax.Array | int, queries: int, key: jax.Array | int, keys: int) -> jax.Array | None:
        """The rectangle of `array` from this query and this key on."""
        slots = query + jnp.arange(queries)[None]
        if self.offset is not None:
            slots = slots + self.offset[:, None]
        places = key + jnp.arange(keys)
        out = None
        if self.causal:
            out = causal(slots, places)
            if self.prefix is not None:
                out = out | prefix(_cut(self.prefix, key, keys))
        if self.window:
            out = combine(out, window(slots, places, self.window))
        if self.valid is not None:
            out = combine(out, padding(_cut(self.valid, key, keys)))
        if self.query_segments is not None:
            same = segment(_cut(self.query_segments, query, queries), _cut(self.key_segments, key, keys))
            out = combine(out, same)
        return out


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


def _there(part: object) -> bool:
    return part is not None and part is not False and not (isinstance(part, int) and part == 0)


def _cut(array: jax.Array, first: jax.Array | int, size: int) -> jax.Array:
    """Columns of `[B, S]`."""
    return array if size == array.shape[1] else jax.lax.dynamic_slice_in_dim(array, first, size, axis=1)


def _distances(query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    query, key = jnp.atleast_2d(query_positions), jnp.atleast_2d(key_positions)
    return query[:, None, :, None] - key[:, None, None, :]
