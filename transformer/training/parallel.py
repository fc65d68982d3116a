"""Many devices: the one file that knows whether a step is compiled by `jit` over a mesh or by `pmap`.

Without dropout, whose masks each device draws for itself under `pmap`, both give the same numbers. They keep the state
without a device axis, and so write the same checkpoints. Batches come as NumPy arrays: each process brings its share of
the global batch, which `share` names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer.ops.sharding import shared, spec
from transformer.training import meshes, sharding
from transformer.training.state import State

AXIS = "data"  # of `pmap`

_UNEVEN = "{rows} rows of {name!r} cannot be shared among {devices} devices: use a multiple"


class Jit:
    """`jit` over a mesh of all devices: the compiler sees the global batch and adds the communication."""

    def __init__(
        self, train_step: Callable, evaluation_step: Callable, mesh: Mesh | None = None, rules: sharding.Rules = ()
    ):
        self.mesh = meshes.build() if mesh is None else mesh
        self.share = meshes.share(self.mesh)
        self._rules = rules
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._train_step = train_step
        self._compiled: Callable | None = None
        self._evaluate = jax.jit(evaluation_step, out_shardings=self._replicated)

    def init_state(self, init: Callable[..., Any], *arguments: Any) -> Any:
        """What `init` makes, each device making its own part."""
        abstract = jax.eval_shape(init, *arguments)
        with self._set():
            return jax.jit(init, out_shardings=self.layout(abstract))(*arguments)

    def place_state(self, state: Any) -> Any:
        """The state, or any tree of parameters, on the devices; a copy, as training consumes its state."""
        return jax.tree.map(_place, state, self.layout(state))

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's share of the global batch, on its devices."""
        return {name: self._place_rows(name, rows) for name, rows in batch.items()}

    def train(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step; `state` is donated and gone afterwards."""
        with self._set():
            return self.compiled(state)(state, batch)

    def evaluate(self, params: Any, batch: Any) -> dict[str, jax.Array]:
        """The sums of one batch over all devices."""
        with self._set():
            return self._evaluate(params, batch)

    def host_state(self, state: Any, into: Any = None) -> Any:
        """The state as `Checkpoints.save` takes it: NumPy's arrays, which later steps do not touch.

        Where processes hold parts of an array each it is the state itself, as `save` fetches those before it returns.

        `into` is an earlier result that nobody reads any more: where the devices are the CPU, its memory is used again,
        as asking the system for new memory takes several times as long as copying.
        """
        return _to_host(state, into)

    def compiled(self, state: State) -> Callable:
        """The step for states like this one; to be called, or lowered, while the mesh is set."""
        if self._compiled is None:
            out = (self.layout(state), self._replicated)
            self._compiled = jax.jit(self._train_step, donate_argnums=0, out_shardings=out)
        return self._compiled

    def layout(self, tree: Any) -> Any:
        """The sharding of every leaf of a state or of parameters, which may be shapes; see `sharding.layout`."""
        return sharding.layout(self.mesh, tree, self._rules)

    def batch_sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Of an array of a global batch: rows are shared, and positions where they divide."""
        meanings = ("rows", "positions")[: len(shape)] + (None,) * (len(shape) - 2)
        return NamedSharding(self.mesh, spec(shared(self.mesh.shape), shape, meanings))

    def _place_rows(self, name: str, rows: np.ndarray) -> jax.Array:
        parts = self.share.parts
        if len(rows) % len(parts):
            raise ValueError(_UNEVEN.format(rows=len(rows), name=name, devices=len(parts)))
        shape = (len(rows) * self.share.count, *rows.shape[1:])
        size = len(rows) // len(parts)
        local = {part: rows[index * size : (index + 1) * size] for index, part in enumerate(parts)}

        def part(where: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = where[0].indices(shape[0])
            pieces = [local[number] for number in range(first // size, last // size)]
            return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces))[(slice(None), *where[1:])]

        return jax.make_array_from_callback(shape, self.batch_sharding(shape), part)

    def _set(self) -> contextlib.AbstractContextManager:
        return using(self.mesh)


class Pmap:
    """`pmap`: each device runs the step on its rows and the step itself sums over the axis."""

    def __init__(
        self, train_step: Callable, evaluation_step: Callable, mesh: Mesh | None = None, rules: sharding.Rules = ()
    ):
        mesh = meshes.build() if mesh is None else mesh
        check_pmap(mesh, rules)
        self.mesh, self.share = mesh, meshes.share(mesh)
        self._replicated = NamedSharding(mesh, PartitionSpec())

        def train(state: State, batch: Any) -> Any:
            return train_step(state, batch, axis_name=AXIS)

        def evaluate(params: Any, batch: Any) -> Any:
            return evaluation_step(params, batch, axis_name=AXIS)

        self._train = jax.pmap(train, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)
        self._evaluate = jax.pmap(evaluate, AXIS, in_axes=(None, 0), out_axes=None)

    def init_state(self, init: Callable[..., Any], *arguments: Any) -> Any:
        """As `Jit.init_state`."""
        return self.place_state(jax.jit(init)(*arguments))

    def place_state(self, state: Any) -> Any:
        """As `Jit.place_state`."""
        return jax.tree.map(lambda leaf: _place(leaf, self._replicated), state)

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows, shared among its devices: `[devices, B / devices, ...]`."""
        devices = jax.local_device_count()
        for name, rows in batch.items():
            if len(rows) % devices:
                raise ValueError(_UNEVEN.format(rows=len(rows), name=name, devices=devices))
        return {name: rows.reshape(devices, -1, *rows.shape[1:]) for name, rows in batch.items()}

    def train(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """As `Jit.train`."""
        return self._train(state, batch)

    def evaluate(self, params: Any, batch: Any) -> dict[str, jax.Array]:
        """As `Jit.evaluate`."""
        return self._evaluate(params, batch)

    def host_state(self, state: Any, into: Any = None) -> Any:
        """As `Jit.host_state`."""
        return _to_host(state, into)

    def layout(self, tree: Any) -> Any:
        """As `Jit.layout`."""
        return jax.tree.map(lambda _: self._replicated, tree)


def check_pmap(mesh: Mesh, rules: sharding.Rules = ()) -> None:
    """Raises ValueError if a mesh shares more than rows, or parameters are to be cut."""
    if mesh.shape["data"] != jax.device_count() or rules:
        raise ValueError("parallel='pmap' has only data parallelism: leave --mesh and --sharding out, or use jit")


KINDS = {"jit": Jit, "pmap": Pmap}


def build(
    kind: str,
    train_step: Callable,
    evaluation_step: Callable,
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
) -> Jit | Pmap:
    """Compiles the two steps for all devices of all processes.

    Args:
      kind: "jit" or "pmap".
      train_step: `(state, batch, axis_name=None) -> (state, metrics)`, all else bound.
      evaluation_step: `(params, batch, axis_name=None) -> sums`, all else bound.
      mesh: from `meshes.build`; None shares the rows among all devices.
      rules: before those of `sharding.RULES`.

    Raises:
      ValueError: if the kind is not known, or pmap is asked for more than data parallelism.
    """
    if kind not in KINDS:
        raise ValueError(f"parallel={kind!r} cannot work: choose one of {', '.join(KINDS)}")
    return KINDS[kind](train_step, evaluation_step, mesh, rules)


def using(mesh: Mesh) -> contextlib.AbstractContextManager:
    """A context in which models lay their activations out on a mesh; of one device it changes nothing."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def place(mesh: Mesh, params: Any, rules: sharding.Rules = ()) -> Any:
    """Parameters on a mesh, for what is no training: `with using(mesh)` generation and inspection run on all of it."""
    return jax.tree.map(_place, params, sharding.layout(mesh, params, rules))


def fetch(tree: Any) -> Any:
    """Arrays as NumPy's, whole in every process, all of which have to call this."""

    def whole(leaf: Any) -> Any:
        here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        return leaf if here else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def check(batch_size: int, accumulation: int = 1, mesh: Mesh | None = None) -> None:
    """Raises ValueError unless a global batch can be shared equally among the devices that share its rows, and among
    micro-batches."""
    devices = jax.device_count() if mesh is None else meshes.rows(mesh.shape)
    if batch_size % (devices * accumulation):
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of {devices} devices x accumulation={accumulation}; "
            f"the nearest above is {-(-batch_size // (devices * accumulation)) * devices * accumulation}"
        )


def _place(leaf: Any, placement: NamedSharding) -> jax.Array:
    # By way of the host: `device_put` of an array that lies on one of the devices shares its memory, even with
    # `may_alias=False`, and donation would then take the caller's array away.
    host = np.array(leaf)
    return jax.make_array_from_callback(host.shape, placement, lambda where: np.array(host[where]))


def _to_host(state: Any, into: Any) -> Any:
    leaves, structure = jax.tree.flatten(state)
    if not all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in leaves):
        return state
    if jax.default_backend() != "cpu":
        for leaf in leaves:
            leaf.copy_to_host_async()  # all at one time
        return structure.unflatten(map(np.asarray, leaves))
    # What the host sees of an array that lies on a CPU device is that array: what is needed is a copy.
    targets = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves] if into is None else jax.tree.leaves(into)
    with ThreadPoolExecutor() as pool:
        list(pool.map(np.copyto, targets, leaves))
    return structure.unflatten(targets)
