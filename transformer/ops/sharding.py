"""Where activations lie on a mesh of devices, said by what their axes count.

A model names the meanings of an activation's axes, and this file which axes of the mesh share them. All of it acts only
under `jax.set_mesh` with more than one device, and not within `shard_map`; elsewhere programs are what they would be
without it. What does not divide equally among the devices is held whole by each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

# The axes of a mesh, those that exchange most coming last, where neighbours are.
AXES = ("data", "fsdp", "expert", "sequence", "tensor")

# Tensor parallelism splits products by heads or inner features; the norms and residuals between them are split by
# positions instead (sequence parallelism, Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2).
MEANINGS = {
    "rows": ("data", "fsdp", "expert"),
    "positions": ("sequence",),
    "residual": ("sequence", "tensor"),  # positions of the residual
    "heads": ("tensor",),
    "inner": ("tensor",),  # features between the two products of a feed-forward
    "experts": ("expert",),
    "groups": ("data", "fsdp"),  # rows, where each expert has its own
}

Meaning = str | None


def mesh_sizes() -> dict[str, int]:
    """Those of `AXES` that have more than one device on the mesh that is set; empty where nothing is to be shared."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return {}
    return shared({name: size for name, size in mesh.shape.items() if name in AXES})


def shared(sizes: Mapping[str, int]) -> dict[str, int]:
    """The axes of a mesh that have more than one device."""
    return {name: size for name, size in sizes.items() if size > 1}


def describe(sizes: Mapping[str, int]) -> str:
    """The axes of a mesh that have more than one device, in words: `data=2, fsdp=4`; "" for one device."""
    return ", ".join(f"{name}={size}" for name, size in shared(sizes).items())


def constrain(x: jax.Array, *meanings: Meaning) -> jax.Array:
    """`x`, laid out by what its axes count: for each a name from `MEANINGS`, or None for one that is nowhere cut."""
    sizes = mesh_sizes()
    return jax.lax.with_sharding_constraint(x, spec(sizes, x.shape, meanings)) if sizes else x


def spec(sizes: dict[str, int], shape: tuple[int, ...], meanings: tuple[Meaning, ...]) -> PartitionSpec:
    """How an activation of this shape is cut on a mesh of these sizes."""
    return PartitionSpec(*(_cut_by(sizes, size, meaning) for size, meaning in zip(shape, meanings, strict=True)))


def local_shape(shape: tuple[int, ...], *meanings: Meaning) -> tuple[int, ...]:
    """The part of an activation that one device has."""
    sizes = mesh_sizes()
    parts = (_cut_by(sizes, size, meaning) or () for size, meaning in zip(shape, meanings, strict=True))
    return tuple(size // math.prod(sizes[axis] for axis in part) for size, part in zip(shape, parts, strict=True))


def position_offset(own: int, whole: int) -> jax.Array | None:
    """Within `per_device`, where this device's `own` of `whole` positions begin; None where it has all of them."""
    return None if own == whole else jax.lax.axis_index(MEANINGS["positions"]) * own


def per_device(function: Callable[..., Any], arrays: tuple, meanings: tuple, out: Any) -> Any:
    """`function(*arrays)`, each device with its own parts, for programs that the compiler cannot cut by itself.

    Args:
      arrays: trees of arrays.
      meanings: for each of `arrays`, a tree of the same structure with a tuple of meanings in the place of each array.
      out: the shapes and meanings of what comes out: a tree of `(shape, meanings)`.

    Returns:
      What `function` would give with the whole arrays, if it treats what is cut independently of the rest.
    """
    sizes = mesh_sizes()
    if not sizes:
        return function(*arrays)
    in_specs = jax.tree.map(lambda x, meaning: spec(sizes, x.shape, meaning), arrays, meanings)
    out_specs = jax.tree.map(lambda leaf: spec(sizes, *leaf), out, is_leaf=_is_leaf)
    # A kernel's loops begin with constants, which `check_vma` would want marked as differing between devices.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)


def _is_leaf(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, tuple) for part in item)


def _cut_by(sizes: dict[str, int], size: int, meaning: Meaning) -> tuple[str, ...] | None:
    axes = tuple(axis for axis in MEANINGS[meaning] if axis in sizes) if meaning else ()
    return axes if axes and size % math.prod(sizes[axis] for axis in axes) == 0 else None
