"""Ablations as patches: what a model does without a part of it, or with a part that knows nothing of its input.

    _, taps = inspection.run(model, params, reference, capture="decoder/*/mixed")
    patch = ablate("mean", model, "decoder/*/mixed", taps, heads=[(0, 1), (3, 5)])
    logits, _ = inspection.run(model, params, tokens, patches=patch)

A patch without heads silences its site everywhere, and `inspection.sweep` takes it to one layer or head at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer
from transformer.nn.tap import SITES, Patch, head_axis, position_axis, split

KINDS = {"zero": (), "mean": ("reference", "weights"), "resample": ("reference", "key")}  # with what they take
OPTIONAL = ("weights",)


def ablate(
    kind: str,
    model: Transformer,
    site: str,
    reference: Mapping[str, jax.Array] | None = None,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    by_position: bool = True,
    weights: jax.Array | None = None,
    key: jax.Array | None = None,
) -> Patch:
    """A patch that sets a site to what does not depend on the tokens of its run.

      zero: to 0.
      mean: to its mean over the rows of the reference, at each position by itself or over all of them.
      resample: to what another row of the reference has. Rows are exchanged in one random cycle, so none keeps its own
        where the reference is the run's own batch, and all layers, heads and positions are those of the same row.

    Args:
      kind: one of `KINDS`.
      site: in every layer (`decoder/*/mixed`), in one (`decoder/3/mlp/outer`), or outside the layers.
      reference: the taps of another run, which captured the site in every layer that the patch is for.
      heads: pairs of a layer and a head, both from 0 or negative from the end; None: all of the site. However many, the
        patch has one structure, so that other ones compile nothing new.
      by_position: mean only.
      weights: `[B, T]`, how much each token of the reference counts in a mean; None: all alike. A position where none
        counts gets the mean over all positions.
      key: resample only, and needed there.

    Raises:
      ValueError: if a name is unknown, a head is out of range, or kind lacks or does not take an argument.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 2.1 for means; Chan et al. 2022, "Causal Scrubbing", for
    resampling.
    """
    name = split(site)[0]
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if name not in SITES:
        raise ValueError(f"site={site!r} is not one site: see inspection.sites(model), and use one patch for each")
    for argument, given in {"reference": reference, "weights": weights, "key": key}.items():
        takes = argument in KINDS[kind]
        if given is None and takes and argument not in OPTIONAL:
            raise ValueError(f"kind={kind!r} needs {argument}: give it")
        if given is not None and not takes:
            raise ValueError(f"kind={kind!r} does not take {argument}: leave it out")
    value = 0.0
    if reference is not None:
        _check_whole(model.config, name, reference[site])
    if kind == "mean":
        value = _mean(reference[site].astype(jnp.float32), SITES[name], by_position, weights)
    elif kind == "resample":
        value = _exchanged(reference[site], SITES[name], key)
    return Patch(site, value, mask=None if heads is None else _mask(model.config, site, heads))


def _mean(x: jax.Array, axes: str, by_position: bool, weights: jax.Array | None) -> jax.Array:
    """The mean over rows and perhaps positions, which stay as axes of size 1."""
    batch = x.ndim - len(axes)
    position = batch + position_axis(axes)
    shape = (x.shape[batch], x.shape[position])
    if weights is not None and jnp.shape(weights) != shape:
        raise ValueError(f"weights of shape {jnp.shape(weights)} do not fit: the reference has {shape} tokens")
    weights = jnp.ones(shape) if weights is None else jnp.asarray(weights, jnp.float32)
    weights = jnp.expand_dims(weights, [axis for axis in range(x.ndim) if axis not in (batch, position)])

    def mean(over: int | tuple[int, int]) -> jax.Array:
        return jnp.sum(x * weights, axis=over, keepdims=True) / jnp.sum(weights, axis=over, keepdims=True)

    overall = mean((batch, position))
    if not by_position:
        return overall
    return jnp.where(jnp.any(weights > 0, axis=batch, keepdims=True), mean(batch), overall)


def _exchanged(x: jax.Array, axes: str, key: jax.Array) -> jax.Array:
    """Each row in the place of the one before it in a random round of all rows."""
    batch = x.ndim - len(axes)
    if x.shape[batch] < 2:
        raise ValueError("reference has one row, which can only be exchanged with itself: give two or more")
    round_ = jax.random.permutation(key, x.shape[batch])
    return jnp.take(x, jnp.zeros_like(round_).at[round_].set(jnp.roll(round_, -1)), axis=batch)


def _check_whole(config: ModelConfig, site: str, x: jax.Array) -> None:
    """Raises ValueError if a reference lacks heads, which would then be another's."""
    axes, stack = SITES[site], getattr(config, site.split("/")[0], None)
    axis = head_axis(axes)
    if axis is not None and stack is not None:
        heads = stack.attention.heads if axes[axis] == "H" else config.kv_heads(stack)
        if x.shape[axis - len(axes)] != heads:
            raise ValueError(f"reference has {x.shape[axis - len(axes)]} of {heads} heads at {site}: capture all")


def _mask(config: ModelConfig, site: str, heads: Iterable[tuple[int, int]]) -> np.ndarray:
    """Booleans `[L, ...]` beside the site's axes, True at the pairs of a layer and a head."""
    axes, role = SITES.get(site, ""), site.split("/")[0]
    axis, stack = head_axis(axes), getattr(config, role, None)
    if "*" not in site or axis is None or stack is None:
        raise ValueError(
            f"heads cannot be told apart at {site!r}: name a site with heads of this model, * for its layer"
        )
    sizes = stack.depth, stack.attention.heads if axes[axis] == "H" else config.kv_heads(stack)
    mask = np.zeros((sizes[0], *(sizes[1] if index == axis else 1 for index in range(len(axes)))), bool)
    for pair in heads:
        if np.shape(pair) != (2,) or np.asarray(pair).dtype.kind not in "iu":
            raise ValueError(f"heads holds {pair!r}: give pairs of a layer and a head, such as [(0, 1)]")
        if any(not -size <= index < size for index, size in zip(pair, sizes, strict=True)):
            raise ValueError(f"heads={pair} is out of range: there are {sizes[0]} layers of {sizes[1]} heads")
        mask[pair[0]].swapaxes(0, axis)[pair[1]] = True
    return mask
