"""From patches as they are written to patches as a tap takes them, refusing what could not have been meant."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transformer.inspection.sites import Site
from transformer.models.config import ModelConfig
from transformer.nn.tap import MODES, Patch, head_axis, match, position_axis, split


def resolve(patch: Patch, sites: Mapping[str, Site], config: ModelConfig) -> Patch:
    """A patch with `*` for its layer, indices from 0 and arrays for numbers, so that other numbers compile nothing new.

    Args:
      sites: what the run reaches, layers under `*`.

    Raises:
      ValueError: if site, mode, layer, head, position, value or mask does not fit. Traced indices cannot be checked:
        one out of range patches nothing.
    """
    name, layer = _locate(patch, sites)
    axes, shape, _ = sites[name]
    if patch.mode not in MODES:
        raise ValueError(f"patch at {patch.site}: mode={patch.mode!r} is unknown; choose one of {', '.join(MODES)}")
    depth = getattr(config, name.split("/")[0]).depth if "*" in name else None
    head = head_axis(axes)
    stacked = None if layer is not None and patch.layer is None else depth  # of one layer's site there is no stack
    return patch.replace(
        site=name,
        value=_fit("value", _number(patch.value, patch.site), patch.site, shape, stacked),
        layer=_index("layer", layer, depth, patch.site),
        head=_index("head", patch.head, None if head is None else shape[head], patch.site),
        position=_index("position", patch.position, shape[position_axis(axes)], patch.site),
        mask=None
        if patch.mask is None
        else _fit("mask", _booleans(patch.mask, patch.site), patch.site, shape, stacked),
    )


def _locate(patch: Patch, sites: Mapping[str, Site]) -> tuple[str, jax.Array | int | None]:
    """The patch's site with `*` for the layer, and its layer."""
    name, layer = split(patch.site)
    if name not in sites:
        several = ", ".join(sorted(match((name,), sites)))
        raise ValueError(
            f"a patch goes to one site, and {patch.site!r} is a pattern: write one patch for each of {several}"
        )
    if layer is None:
        return name, patch.layer
    if patch.layer is not None:
        raise ValueError(
            f"patch at {patch.site}: the site names its layer, so leave out layer={patch.layer}, or use {name}"
        )
    return name, layer


def _index(argument: str, index: jax.Array | int | None, size: int | None, site: str) -> jax.Array | np.int32 | None:
    """An index from 0, with the range checked unless it is traced; `size` None: the site has no such axis."""
    if index is None:
        return None
    if size is None:
        raise ValueError(f"patch at {site}: the site has no {argument}s, so leave out {argument}={index}")
    if isinstance(index, (str, bool)) or np.ndim(index) or not jnp.issubdtype(jnp.result_type(index), jnp.integer):
        raise ValueError(f"patch at {site}: {argument}={index} must be one integer; for several use mask, or vmap")
    if isinstance(index, jax.core.Tracer):
        return jnp.where(index < 0, index + size, index)
    if not -size <= index < size:
        span = f"0 to {size - 1}, or {-size} to -1 from the end"
        raise ValueError(f"patch at {site}: {argument}={index} is out of range; there are {size}: use {span}")
    return np.int32(index % size)


def _number(value: jax.Array | float, site: str) -> jax.Array | np.ndarray:
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"patch at {site}: value must be real numbers, not {array.dtype} of shape {array.shape}")
    if isinstance(array, np.ndarray):
        return np.asarray(array, np.float32)
    # Of one dtype whatever a scalar was written as, so that another one compiles nothing new.
    return array if jnp.issubdtype(array.dtype, jnp.floating) and not array.weak_type else array.astype(jnp.float32)


def _booleans(mask: jax.Array, site: str) -> jax.Array | np.ndarray:
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"patch at {site}: mask must be booleans, not {mask.dtype}; a weight belongs into value")
    return mask


def _fit(
    argument: str, array: jax.Array | np.ndarray, site: str, shape: tuple[int, ...], depth: int | None
) -> jax.Array | np.ndarray:
    """The array, if it broadcasts to the shape, or, with a depth, has so many layers in front of what does."""
    pairs = zip(array.shape[::-1], shape[::-1], strict=False)
    layers = array.shape[: max(array.ndim - len(shape), 0)]
    if layers not in ((), (depth,)) or any(size not in (1, whole) for size, whole in pairs):
        stacked = "" if depth is None else f", with or without its {depth} layers in front"
        fits = f"broadcast to the site's {shape}{stacked}"
        raise ValueError(f"patch at {site}: {argument} of shape {array.shape} does not {fits}")
    return array
