"""Many devices: the one file that knows whether a step is compiled by `jit` over a mesh or by `pmap`.

Both give the same numbers, keep the state without a device axis, and so write the same checkpoints. Batches come as
NumPy arrays: each process brings its own rows of the global batch, in the order of the processes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer.training.parameters import map_named
from transformer.training.state import State

AXIS = "data"

# (pattern of state paths, how the leaf is laid out); the first pattern that matches decides.
SHARDING = (("*", PartitionSpec()),)


class Jit:
    """`jit` over a mesh of all devices: the compiler sees the global batch and adds the communication."""

    def __init__(self, train_step: Callable, evaluation_step: Callable):
        self.devices = jax.device_count()
        self.mesh = jax.make_mesh((self.devices,), (AXIS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self._train_step = train_step
        self._compiled: Callable | None = None
        self._evaluate = jax.jit(evaluation_step, out_shardings=self._replicated)

    def place_state(self, state: Any) -> Any:
        """The state, or any tree of parameters, on the devices; a copy, as training consumes its state."""
        return jax.tree.map(_place, state, self._layout(state))

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of the global batch, on its devices."""
        _check_rows(batch)
        return {name: jax.make_array_from_process_local_data(self._rows, rows) for name, rows in batch.items()}

    def train(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step; `state` is donated and gone afterwards."""
        if self._compiled is None:
            out = (self._layout(state), self._replicated)
            self._compiled = jax.jit(self._train_step, donate_argnums=0, out_shardings=out)
        return self._compiled(state, batch)

    def evaluate(self, params: Any, batch: Any) -> dict[str, jax.Array]:
        """The sums of one batch over all devices."""
        return self._evaluate(params, batch)

    def host_state(self, state: Any, into: Any = None) -> Any:
        """The state as NumPy arrays that later steps do not touch.

        `into` is an earlier result that nobody reads any more: where the devices are the CPU, its memory is used again,
        as asking the system for new memory takes several times as long as copying.
        """
        return _to_host(state, into)

    def _layout(self, tree: Any) -> Any:
        return map_named(lambda parameter, _: NamedSharding(self.mesh, _partition(parameter.path)), tree)


class Pmap:
    """`pmap`: each device runs the step on its rows and the step itself sums over the axis."""

    def __init__(self, train_step: Callable, evaluation_step: Callable):
        self.devices = jax.device_count()
        mesh = jax.make_mesh((self.devices,), (AXIS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(mesh, PartitionSpec())

        def train(state: State, batch: Any) -> Any:
            return train_step(state, batch, axis_name=AXIS)

        def evaluate(params: Any, batch: Any) -> Any:
            return evaluation_step(params, batch, axis_name=AXIS)

        self._train = jax.pmap(train, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)
        self._evaluate = jax.pmap(evaluate, AXIS, in_axes=(None, 0), out_axes=None)

    def place_state(self, state: Any) -> Any:
        """As `Jit.place_state`."""
        return jax.tree.map(lambda leaf: _place(leaf, self._replicated), state)

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows, shared among its devices: `[devices, B / devices, ...]`."""
        _check_rows(batch)
        return {name: rows.reshape(jax.local_device_count(), -1, *rows.shape[1:]) for name, rows in batch.items()}

    def train(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """As `Jit.train`."""
        return self._train(state, batch)

    def evaluate(self, params: Any, batch: Any) -> dict[str, jax.Array]:
        """As `Jit.evaluate`."""
        return self._evaluate(params, batch)

    def host_state(self, state: Any, into: Any = None) -> Any:
        """As `Jit.host_state`."""
        return _to_host(state, into)


KINDS = {"jit": Jit, "pmap": Pmap}


def build(kind: str, train_step: Callable, evaluation_step: Callable) -> Jit | Pmap:
    """Compiles the two steps for all devices of all processes.

    Args:
      kind: "jit" or "pmap".
      train_step: `(state, batch, axis_name=None) -> (state, metrics)`, all else bound.
      evaluation_step: `(params, batch, axis_name=None) -> sums`, all else bound.

    Raises:
      ValueError: if the kind is not known.
    """
    if kind not in KINDS:
        raise ValueError(f"parallel={kind!r} cannot work: choose one of {', '.join(KINDS)}")
    return KINDS[kind](train_step, evaluation_step)


def check(batch_size: int, accumulation: int = 1) -> None:
    """Raises ValueError unless a global batch can be shared equally among all devices and micro-batches."""
    devices = jax.device_count()
    if batch_size % (devices * accumulation):
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of {devices} devices x accumulation={accumulation}; "
            f"the nearest above is {-(-batch_size // (devices * accumulation)) * devices * accumulation}"
        )


def _partition(path: str) -> PartitionSpec:
    return next(spec for pattern, spec in SHARDING if fnmatch.fnmatchcase(path, pattern))


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    # By way of the host: `device_put` of an array that lies on one of the devices shares its memory, even with
    # `may_alias=False`, and donation would then take the caller's array away.
    host = np.array(leaf)
    return jax.make_array_from_process_local_data(sharding, host, host.shape)


def _to_host(state: Any, into: Any) -> Any:
    leaves, structure = jax.tree.flatten(state)
    if jax.default_backend() != "cpu":
        for leaf in leaves:
            leaf.copy_to_host_async()  # all at one time
        return structure.unflatten(map(np.asarray, leaves))
    # What the host sees of an array that lies on a CPU device is that array: what is needed is a copy.
    targets = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves] if into is None else jax.tree.leaves(into)
    with ThreadPoolExecutor() as pool:
        list(pool.map(np.copyto, targets, leaves))
    return structure.unflatten(targets)


def _check_rows(batch: dict[str, np.ndarray]) -> None:
    devices = jax.local_device_count()
    for name, rows in batch.items():
        if len(rows) % devices:
            raise ValueError(f"{len(rows)} rows of {name!r} cannot be shared among {devices} devices: use a multiple")
