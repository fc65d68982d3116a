"""The same intervention at many layers, heads and positions: one compiled program, a chunk of them at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.inspection.patches import resolve
from transformer.inspection.run import run
from transformer.inspection.sites import Site, discover, listed, split_flags, without_cache
from transformer.models.transformer import Transformer
from transformer.nn.tap import Patch, head_axis, position_axis

Metric = Callable[[jax.Array], Any]
Range = Sequence[int] | str | None


def sweep(
    model: Transformer,
    params,
    tokens: jax.Array,
    patch: Patch,
    *,
    metric: Metric,
    layers: Range = None,
    heads: Range = None,
    positions: Range = None,
    besides: Iterable[Patch] | Patch = (),
    memory: float = 2**30,
    **model_arguments,
) -> Any:
    """What a metric of the logits becomes under one patch at each of many layers, heads and positions.

        silence = Patch("decoder/*/mixed", 0.0)
        metric = lambda logits: logits[:, -1, answer].mean()
        effects = sweep(model, params, tokens, silence, metric=metric, layers="all", heads="all") - metric(logits)

    Args:
      params, tokens, **model_arguments: as in `run`, without a cache and without `positions` of tokens.
      patch: what is done; with `layers`, its site has `*` for the layer. A value from another run, such as
        `taps["decoder/*/mixed"]`, patches each place with what the other run had there.
      metric: logits `[B, T, V]` to an array, or a tree of arrays; compiled in, so the same function compiles once. To
        pick logits by id use `take_along_axis`: on CPUs jaxlib 0.10 gets weighted sums of one-hot products wrong under
        `vmap`, without a word: `jit(vmap(lambda l: (w * (one_hot * l).sum(-1)).sum()))` repeats its first 4 results.
      layers, heads, positions: indices, `"all"`, or None where the sweep does not go over them.
      besides: patches of every run, applied before `patch`.
      memory: about how many bytes the runs that go on at one time may take; at least one goes on.

    Returns:
      The metric's arrays behind axes for the layers, the heads and the positions, those that the sweep goes over.

    Raises:
      ValueError: as `run`, or if there is nothing to go over, or an index is out of range.
    """
    without_cache(model_arguments)
    arrays, flags = split_flags(model_arguments)
    tokens = jnp.asarray(tokens)
    found = discover(model, params, tokens, arrays, flags)
    besides = tuple(resolve(each, found, model.config) for each in listed("besides", besides, (Patch,)))
    resolved = resolve(patch, found, model.config)
    ranges = {"layer": layers, "head": heads, "position": positions}
    axes = {name: _indices(name, values, patch, resolved.site, found, model) for name, values in ranges.items()}
    axes = {name: values for name, values in axes.items() if values is not None}
    if not axes:
        raise ValueError('a sweep goes over something: give layers, heads or positions, such as layers="all"')
    grid = {name: index.ravel() for name, index in zip(axes, np.meshgrid(*axes.values(), indexing="ij"), strict=True)}
    chunk = _chunk(found, {each.site for each in (resolved, *besides)}, memory)
    out = _sweep(params, tokens, resolved, besides, arrays, grid, model=model, metric=metric, flags=flags, chunk=chunk)
    shape = tuple(map(len, axes.values()))
    return jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), out)


@functools.partial(jax.jit, static_argnames=("model", "metric", "flags", "chunk"))
def _sweep(params, tokens, patch, besides, arrays, grid, *, model, metric, flags, chunk):
    def one(place):
        patches = (*besides, patch.replace(**place))
        return metric(run(model, params, tokens, patches=patches, **arrays, **dict(flags))[0])

    count = len(next(iter(grid.values())))
    runs = -(-count // chunk)
    chunk = -(-count // runs)  # equal chunks, the last one filled up by repeating
    order = jnp.minimum(jnp.arange(runs * chunk), count - 1).reshape(runs, chunk)
    out = jax.lax.map(jax.vmap(one), jax.tree.map(lambda index: index[order], grid))
    return jax.tree.map(lambda array: array.reshape(runs * chunk, *array.shape[2:])[:count], out)


def _indices(name: str, values: Range, patch: Patch, site: str, found: dict[str, Site], model) -> np.ndarray | None:
    """The indices from 0 that one axis goes over."""
    if values is None:
        return None
    if getattr(patch, name) is not None:
        raise ValueError(f"the sweep goes over {name}s, so leave out {name}={getattr(patch, name)} of the patch")
    axes, shape, _ = found[site]
    if name == "layer":
        if site != patch.site or "*" not in site:
            raise ValueError(f"a sweep over layers needs a site with * for the layer, not {patch.site}")
        size = getattr(model.config, site.split("/")[0]).depth
    else:
        axis = head_axis(axes) if name == "head" else position_axis(axes)
        if axis is None:
            raise ValueError(f"{patch.site} has no heads: leave out heads, or choose another site")
        size = shape[axis]
    if isinstance(values, str):
        if values != "all":
            raise ValueError(f'{name}s={values!r} cannot work: give indices, or "all"')
        return np.arange(size, dtype=np.int32)
    indices = np.asarray(values)
    if indices.ndim != 1 or not indices.size or indices.dtype.kind not in "iu":
        raise ValueError(f'{name}s={values!r} cannot work: give a sequence of integers, or "all"')
    if indices.min() < -size or indices.max() >= size:
        raise ValueError(f"{name}s={values} are out of range; there are {size}: use 0 to {size - 1}, or -{size} to -1")
    return (indices % size).astype(np.int32)


def _chunk(found: dict[str, Site], patched: Collection[str], memory: float) -> int:
    """How many runs fit into so many bytes, when one holds the sites of a layer twice, and the logits twice."""
    if not isinstance(memory, (int, float)) or not memory >= 1:
        raise ValueError(f"memory={memory!r} cannot work: it counts bytes, such as 2**30")
    formed = (site for name, site in found.items() if name in patched or not name.endswith("/head_output"))
    one = sum(math.prod(site.shape) * site.dtype.itemsize for site in formed)
    return max(1, int(memory // (2 * one)))
