"""What to keep of a site: which layers, heads and positions, and in which dtype."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from transformer.inspection.sites import Site, layered
from transformer.models.config import ModelConfig
from transformer.nn.tap import head_axis, match, position_axis, split

Indices = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Capture:
    """Some layers, heads and positions of the sites that a glob names; only these are kept in memory.

    Axes stay, in the order of the indices: `head=3` leaves an axis of size 1.

    Attributes:
      site: a name or a glob, as in `inspection.run`.
      layer, head, position: indices, negative ones from the end; None for all. A key or value head counts among G; a
        position counts along T, or along S at sites that have no T.
      dtype: of what is kept; None: the site's own.
    """

    site: str
    layer: Indices | None = None
    head: Indices | None = None
    position: Indices | None = None
    dtype: str | None = None

    def __post_init__(self):
        for name in ("layer", "head", "position"):
            object.__setattr__(self, name, _indices(self.site, name, getattr(self, name)))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", _dtype(self.site, self.dtype))


@dataclasses.dataclass(frozen=True)
class Selection:
    """A reader for `nn.tap.Tap`: the indices of a capture along the axes of one site; two equal ones compile once."""

    take: tuple[tuple[int, tuple[int, ...]], ...]  # pairs of an axis and indices from 0
    dtype: str | None

    def __call__(self, x: jax.Array) -> jax.Array:
        for axis, indices in self.take:
            x = jnp.take(x, jnp.asarray(indices), axis=axis)
        return x if self.dtype is None else x.astype(self.dtype)


def readers(
    captures: Iterable[Capture | str], sites: Mapping[str, Site], config: ModelConfig
) -> dict[str, Selection | None]:
    """For a `Tap`: the full name of each captured site, and what is kept of it.

    Args:
      sites: what the run reaches, layers under `*`.

    Raises:
      ValueError: if a glob matches no site, an index is out of range, or two captures want one site in two ways.
    """
    names, found = [name for _, name in layered(sites, config)], {}
    for capture in captures:
        capture = Capture(capture) if isinstance(capture, str) else capture
        for name in _of_layers(capture, match((capture.site,), names), config):
            selection = _selection(capture, name, sites)
            if found.setdefault(name, selection) != selection:
                raise ValueError(f"{name} is captured in two ways, the second by {capture}: run once for each")
    return found


def _of_layers(capture: Capture, names: Iterable[str], config: ModelConfig) -> list[str]:
    if capture.layer is None:
        return list(names)
    kept = []
    for name in names:
        site, layer = split(name)
        if layer is None:
            raise ValueError(f"capture {capture.site}: {name} has no layers, so leave out layer={capture.layer}")
        if layer in _in_range(capture, "layer", getattr(config, site.split("/")[0]).depth):
            kept.append(name)
    if not kept:
        raise ValueError(f"capture {capture.site}: it names no layer of layer={capture.layer}: write * for its layer")
    return kept


def _selection(capture: Capture, name: str, sites: Mapping[str, Site]) -> Selection | None:
    axes, shape, _ = sites[split(name)[0] if name not in sites else name]
    take = []
    for argument, axis in (("head", head_axis(axes)), ("position", position_axis(axes))):
        if getattr(capture, argument) is not None:
            if axis is None:
                raise ValueError(f"capture {capture.site}: {name} has no {argument}s: name the sites that have some")
            take.append((axis, _in_range(capture, argument, shape[axis])))
    return Selection(tuple(take), capture.dtype) if take or capture.dtype else None


def _in_range(capture: Capture, argument: str, size: int) -> tuple[int, ...]:
    """Indices from 0."""
    indices = getattr(capture, argument)
    for index in indices:
        if not -size <= index < size:
            span = f"0 to {size - 1}, or {-size} to -1 from the end"
            raise ValueError(
                f"capture {capture.site}: {argument}={index} is out of range; there are {size}: use {span}"
            )
    return tuple(index % size for index in indices)


def _indices(site: str, argument: str, value: Indices | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        given = tuple(value) if isinstance(value, Iterable) else (value,)
        indices = tuple(operator.index(index) for index in given)
    except TypeError:
        indices = given = ()
    if not indices or any(isinstance(index, bool) for index in given):
        raise ValueError(f"capture {site}: {argument}={value!r} must be an integer or several, or None for all")
    return indices


def _dtype(site: str, dtype: str) -> str:
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        raise ValueError(f"capture {site}: dtype={dtype!r} is unknown: use float32, bfloat16 or float16") from None
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"capture {site}: dtype={dtype!r} is not for activations: use float32, bfloat16 or float16")
    return kind.name
