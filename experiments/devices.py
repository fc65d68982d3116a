"""Flags that say how a program uses all devices, and what they mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments.loading import Trained
from experiments.profiling import PIPE_WIDTH
from transformer.ops.sharding import describe
from transformer.training import meshes, parallel, sharding


@dataclasses.dataclass(frozen=True)
class Devices:
    """How a step is compiled: `parallel.build` without the steps."""

    kind: str = "jit"
    mesh: Mesh | None = None
    rules: sharding.Rules = ()

    def build(self, train_step: Callable, evaluation_step: Callable) -> parallel.Jit | parallel.Pmap:
        """The two steps, compiled for these devices."""
        return parallel.build(self.kind, train_step, evaluation_step, self.mesh, self.rules)


DEFAULT = Devices()


def define_parallel() -> Callable[[], Devices]:
    """Flags of a program that trains; what is returned reads them.

    Reading raises ValueError where a flag cannot work on the devices that there are.
    """
    kind = flags.DEFINE_enum("parallel", "jit", list(parallel.KINDS), "How the step runs on all devices.")
    mesh = define_mesh()
    rules = flags.DEFINE_string(
        "sharding", "", "Before the built-in rules: how parameters are cut, '*/up/kernel=-,fsdp+tensor;...'."
    )

    def read() -> Devices:
        devices = Devices(kind.value, meshes.build(mesh.value), sharding.parse(rules.value))
        if kind.value == "pmap":
            parallel.check_pmap(devices.mesh, devices.rules)
        return devices

    return read


def define_mesh() -> flags.FlagHolder[str]:
    """The flag that says how devices are arranged."""
    return flags.DEFINE_string(
        "mesh", "", "Sizes of the axes along which devices share work: data=2,fsdp=4,sequence=1,tensor=2; -1 fills."
    )


def spread(trained: Trained, mesh: str) -> Trained:
    """A trained model on all devices, for this program from here on; without words for a mesh, as it was."""
    if not mesh:
        return trained
    built = meshes.build(mesh)
    jax.set_mesh(built)
    return dataclasses.replace(trained, params=parallel.place(built, trained.params))


def explain(devices: Devices, state: Any, console: Console) -> None:
    """Print where every array of a state is, and how many bytes of it each device has."""
    mesh = devices.mesh or meshes.build()
    placements = sharding.explain(mesh, state, devices.rules)
    table = Table("array", "shape", "cut by", "on each device")
    for placed in placements:
        cuts = ", ".join(
            "-" if cut is None else "+".join((cut,) if isinstance(cut, str) else cut) for cut in placed.spec
        )
        table.add_row(placed.path, str(list(placed.shape)), cuts or "-", amount(placed.bytes))
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    console.print(table)
    sizes = describe(mesh.shape) or "one device"
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    own = sum(placed.bytes for placed in placements)
    console.print(f"mesh {sizes}: {amount(own)} on each device, {amount(whole)} in all")


def amount(size: float) -> str:
    """Bytes in words."""
    unit, scale = next((item for item in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= item[1]), ("B", 1))
    return f"{size / scale:,.{0 if unit == 'B' else 2}f} {unit}"
