"""Whether devices that hold copies of the same array still hold the same bits.

Copies are made once and then updated by each device alone, so a bit that flips in one of them stays, and spreads into
every gradient that is summed over devices, while the loss goes on looking well.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from transformer.training import exits
from transformer.training.parameters import name

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # by bytes of an element


class Watch:
    """Compares a state's copies by a checksum that each device forms of what it holds.

    The checksum is the sum of an array's bits, read as whole numbers, modulo 2**32: any bit that flips changes it.

    Args:
      state: on devices, as a training step returns it; later ones lie as this one does.
    """

    def __init__(self, state: Any):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        self._mesh = leaves[0][1].sharding.mesh
        self._devices = list(self._mesh.devices.flat)
        self._names = [name(path) for path, _ in leaves]
        self._copies = [self._groups(leaf) for _, leaf in leaves]
        specs = tuple(leaf.sharding.spec for _, leaf in leaves)
        everywhere = PartitionSpec(self._mesh.axis_names)
        own = jax.shard_map(_checksums, mesh=self._mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
        self._sums = jax.jit(own, out_shardings=NamedSharding(self._mesh, PartitionSpec()))

    def sums(self, state: Any) -> jax.Array:
        """Of every device and array, `[devices, arrays]` uint32, the same in every process; nobody waits for it."""
        return self._sums(*jax.tree.leaves(state))

    def check(self, sums: np.ndarray, step: int) -> None:
        """Raises exits.Drifted, naming array and devices, unless all copies have one checksum."""
        for column, groups in enumerate(self._copies):
            for group in groups:
                found = defaultdict(list)
                for row in group:
                    found[int(sums[row, column])].append(self._called(row))
                if len(found) > 1:
                    odd, most = min(found.values(), key=len), max(reversed(found.values()), key=len)
                    raise exits.Drifted(
                        f"copies of {self._names[column]} differ after step {step}: {', '.join(odd)} against "
                        f"{', '.join(most)}; a device or its memory is at fault, and the same command goes on from the "
                        f"last checkpoint, whose copies were equal"
                    )

    def _groups(self, leaf: jax.Array) -> list[list[int]]:
        """Rows of devices that hold the same part of an array, where more than one does."""
        held = leaf.sharding.devices_indices_map(leaf.shape)
        groups = defaultdict(list)
        for row, device in enumerate(self._devices):
            groups[str(held[device])].append(row)
        return [group for group in groups.values() if len(group) > 1]

    def _called(self, row: int) -> str:
        device = self._devices[row]
        return f"device {device.id} of process {device.process_index}"


def _checksums(*parts: jax.Array) -> jax.Array:
    return jnp.stack([_checksum(part) for part in parts])[None]


def _checksum(part: jax.Array) -> jax.Array:
    part = part.astype(jnp.uint8) if part.dtype == jnp.bool_ else part
    words = jax.lax.bitcast_convert_type(part, WORDS[part.dtype.itemsize])
    return jnp.sum(words, dtype=jnp.uint32)
