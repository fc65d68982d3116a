"""Where every parameter lies on a mesh, by one table of path patterns.

`fsdp` cuts parameters and what the optimizer keeps of them along the model width (Rajbhandari et al. 2020,
arXiv:1910.02054, stage 3); the compiler gathers a layer's before it is used. `tensor` cuts heads and inner features
(Shoeybi et al. 2019, arXiv:1909.08053), `expert` whole experts. `data` and `sequence` cut no parameter.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer.ops.sharding import AXES, describe
from transformer.training.parameters import Parameter, map_named

Axes = tuple[str | tuple[str, ...] | None, ...]
Rules = Sequence[tuple[str, Axes]]

CUTTING = ("fsdp", "expert", "tensor")
EVERYWHERE = ("fsdp", "tensor")
# What training keeps beside parameters has any shape, such as a factor of a matrix of squares.
KEPT = ("step", "opt_state", "health")

# (pattern of a path, for each axis within one layer the axes of the mesh that cut it). The first rule whose pattern
# matches and that has as many axes as the parameter decides. Vocabularies seldom divide, so tables are cut by width.
RULES: Rules = (
    ("*/query/kernel", ("fsdp", "tensor", None)),  # [D, H, K]
    ("*/key/kernel", ("fsdp", "tensor", None)),  # [D, G, K]
    ("*/value/kernel", ("fsdp", "tensor", None)),
    ("*/output/kernel", ("tensor", None, "fsdp")),  # [H, K, D]
    ("*/query/bias", ("tensor", None)),
    ("*/key/bias", ("tensor", None)),
    ("*/value/bias", ("tensor", None)),
    ("*/mlp/up/kernel", ("fsdp", "tensor")),  # [D, F]
    ("*/mlp/gate/kernel", ("fsdp", "tensor")),
    ("*/mlp/down/kernel", ("tensor", "fsdp")),  # [F, D]
    ("*/mlp/up/kernel", ("expert", "fsdp", "tensor")),  # [N, D, F]
    ("*/mlp/gate/kernel", ("expert", "fsdp", "tensor")),
    ("*/mlp/down/kernel", ("expert", "tensor", "fsdp")),
    ("*/mlp/up/bias", ("tensor",)),
    ("*/mlp/gate/bias", ("tensor",)),
    ("*/mlp/up/bias", ("expert", "tensor")),
    ("*/mlp/gate/bias", ("expert", "tensor")),
    ("*/mlp/down/bias", ("expert", None)),
    ("*/router/kernel", ("fsdp", None)),  # [D, N]
    ("*embedding/table", (None, EVERYWHERE)),  # [V, D]
    ("*embedding/types", (None, EVERYWHERE)),
    ("*/positions/table", (None, EVERYWHERE)),
    ("*/relative/table", (None, "tensor")),  # [buckets, H]
    ("*readout/kernel", (EVERYWHERE, None)),  # [D, V]
    ("*readout/bias", (None,)),
    ("*/transform/kernel", (EVERYWHERE, None)),  # [D, D]
    ("*pooler/kernel", (EVERYWHERE, None)),
    ("*/scale", (None,)),
    ("*bias", (None,)),
)


class Placement(NamedTuple):
    """One array: its shape, how it is cut, and the bytes of it that each device has."""

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int


def parse(words: str) -> Rules:
    """Rules from `PATTERN=AXES` with semicolons between, an axis of the parameter being `-`, a name, or names joined by
    `+`: `*/up/kernel=-,fsdp+tensor`.

    Raises:
      ValueError: if the words are of another form.
    """
    rules = []
    for item in filter(None, (part.strip() for part in words.split(";"))):
        pattern, equals, axes = item.partition("=")
        cuts = tuple(None if part == "-" else tuple(part.split("+")) for part in axes.split(","))
        names = [name for cut in cuts if cut for name in cut]
        if not equals or not pattern or set(names) - set(AXES) or len(set(names)) < len(names):
            raise ValueError(
                f"sharding: {item!r} cannot work: write PATTERN=AXES, for each axis within a layer - or names "
                f"from {', '.join(AXES)} joined by +, none twice, such as '*/up/kernel=-,fsdp+tensor'"
            )
        rules.append((pattern, cuts))
    return tuple(rules)


def layout(mesh: Mesh, tree: Any, rules: Rules = ()) -> Any:
    """A `NamedSharding` for every leaf of a state, or of a tree of parameters.

    What an optimizer keeps of a parameter lies as the parameter does where it has its shape; all else is on every
    device.

    Args:
      tree: arrays or shapes.
      rules: before those of the table.

    Raises:
      ValueError: if no rule names a parameter, one of `rules` names nothing, or a size does not divide.
    """
    used: set[int] = set()
    table = (*rules, *RULES)
    placed = map_named(lambda parameter, _: NamedSharding(mesh, _partition(mesh.shape, parameter, table, used)), tree)
    idle = [pattern for index, (pattern, _) in enumerate(rules) if index not in used]
    if idle:
        raise ValueError(f"sharding: {idle[0]!r} names no parameter with so many axes that is not named before it")
    return placed


def explain(mesh: Mesh, tree: Any, rules: Rules = ()) -> list[Placement]:
    """Where every leaf is, in the order of the tree."""
    found: list[Placement] = []

    def add(parameter: Parameter, leaf: Any, sharding: NamedSharding) -> None:
        own = math.prod(sharding.shard_shape(parameter.shape)) * leaf.dtype.itemsize
        found.append(Placement(parameter.path, parameter.shape, sharding.spec, own))

    map_named(add, tree, layout(mesh, tree, rules))
    return found


def _partition(sizes: Mapping[str, int], parameter: Parameter, table: Rules, used: set[int]) -> PartitionSpec:
    shape = parameter.shape[parameter.stacked :]
    cuts = None
    for index, (pattern, axes) in enumerate(table):
        if len(axes) == len(shape) and fnmatch.fnmatchcase(parameter.path, pattern):
            used.add(index)
            cuts = axes
            break
    kept = parameter.names[0] in KEPT
    if cuts is None:
        if not kept and shape and any(sizes[axis] > 1 for axis in CUTTING):
            raise ValueError(f"no rule says how {parameter.path} {list(parameter.shape)} is cut: give one for it")
        return PartitionSpec()
    names = [(cut,) if isinstance(cut, str) else cut or () for cut in cuts]
    names = [tuple(name for name in cut if sizes[name] > 1) for cut in names]
    for axis, (size, cut) in enumerate(zip(shape, names, strict=True)):
        parts = math.prod(sizes[name] for name in cut)
        if size % parts:
            if kept:
                return PartitionSpec()
            described = describe({name: sizes[name] for name in cut})
            raise ValueError(
                f"{parameter.path} {list(parameter.shape)}: {size} of axis {axis + parameter.stacked} cannot be shared "
                f"among {parts} devices ({described}): choose sizes that divide it, or a rule that cuts another axis"
            )
    layers = ((),) if parameter.stacked else ()
    return PartitionSpec(*(cut or None for cut in (*layers, *names)))
