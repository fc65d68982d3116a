"""Meshes of devices from words such as `data=2,fsdp=4,tensor=2`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh

from transformer.ops.sharding import AXES, MEANINGS, describe

FORM = f"name=size with commas between, names from {', '.join(AXES)}, such as data=2,fsdp=4"


def parse(words: str, devices: int) -> dict[str, int]:
    """The size of every axis, those that are not named being 1; one of -1 takes the devices that the others leave.

    Without words all devices share the rows of a batch: `data=-1`.

    Raises:
      ValueError: if the words are of another form, or the sizes do not multiply to the number of devices.
    """
    sizes = dict.fromkeys(AXES, 1)
    seen = set()
    for item in (words or "data=-1").split(","):
        name, _, size = item.strip().partition("=")
        if name not in AXES or name in seen or not re.fullmatch("-1|[1-9][0-9]*", size):
            raise ValueError(f"mesh={words!r}: {item.strip()!r} cannot work: write {FORM}; -1 once for all the rest")
        seen.add(name)
        sizes[name] = int(size)
    filled = [name for name, size in sizes.items() if size == -1]
    if len(filled) > 1:
        raise ValueError(f"mesh={words!r}: only one axis can take the rest, not {' and '.join(filled)}")
    known = math.prod(size for size in sizes.values() if size > 0)
    if filled and devices % known == 0:
        sizes[filled[0]] = devices // known
    elif filled or known != devices:
        raise ValueError(
            f"mesh={words!r} is of {known} devices{' or a multiple' if filled else ''}, but there are {devices}: "
            f"choose sizes that multiply to {devices}, or -1 for one of them"
        )
    return sizes


def build(words: str = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of these; as in `parse`. Neighbours share the last axes."""
    sizes = parse(words, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)


def rows(sizes: Mapping[str, int]) -> int:
    """Among how many parts of a mesh the rows of a batch are shared."""
    return math.prod(sizes[axis] for axis in MEANINGS["rows"])


class Share(NamedTuple):
    """What of every global batch a process needs: part `index` of `count` equal ones, for these parts of the mesh."""

    index: int
    count: int
    parts: tuple[int, ...]


def share(mesh: Mesh) -> Share:
    """Processes whose devices hold the same parts of the rows need the same rows; others have none in common.

    The parts of a process may lie apart where the mesh follows a network. Then the rows of a global batch have another
    order on it than they would have on one device, and the same sums.

    Raises:
      ValueError: if processes have some parts in common and others not.
    """
    devices = mesh.devices.reshape(rows(mesh.shape), -1)
    held: dict[int, set[int]] = {}
    for part, members in enumerate(devices):
        for device in members:
            held.setdefault(device.process_index, set()).add(part)
    groups = sorted({tuple(sorted(parts)) for parts in held.values()})
    if sum(map(len, groups)) != len(devices) or len({len(group) for group in groups}) > 1:
        raise ValueError(
            f"mesh {describe(mesh.shape)}: processes share some rows and not others: choose sizes that divide a process"
        )
    mine = tuple(sorted(held[jax.process_index()]))
    return Share(groups.index(mine), len(groups), mine)
