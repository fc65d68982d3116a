"""Checkpoints: the state of training, the recipe that made it, and a promise that both are what was saved.

    workdir/checkpoints/STEP/{params, opt_state, ema}   arrays by path, in Orbax's format
                            /recipe                     what the caller says made them: config, data, tokenizer
                            /record                     step, loss, versions; each array's shape, type and hash

Arrays are hashed and written in the background. What is read back is compared with the record, so damage cannot pass
for a model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from transformer.training import integrity, managers, recipes
from transformer.training.parameters import name
from transformer.training.state import State

FOLDER = managers.FOLDER
PARTS = managers.PARTS

Read = Callable[[ocp.CheckpointManager, int, dict[str, Any]], Any]


class Restored(NamedTuple):
    """`state` is a State, or parameters alone from `load_params`; its leaves are NumPy arrays."""

    state: Any
    recipe: dict[str, Any]
    step: int


class Checkpoints:
    """Saves and restores in one working directory; a context manager that waits for saves to finish."""

    def __init__(self, workdir: str | Path, keep: int = 2):
        """Opens `workdir`, keeping the last `keep` checkpoints and the one with the lowest loss."""
        self._losses: dict[int, float] = {}
        self._manager = managers.build(workdir, keep, self._losses)
        self._losses |= _losses(self._manager)

    def save(self, state: State, recipe: dict[str, Any], loss: float | None = None) -> None:
        """Starts to save; what goes wrong in the background is raised by the next call.

        Args:
          state: with NumPy leaves that nobody changes before the save is done, as from `host_state`.
          recipe: anything that JSON can hold.
          loss: on the validation data, if measured at this step.

        Raises:
          ValueError: if there is a checkpoint of this step or a later one.
        """
        step = int(state.step)
        latest = self._manager.latest_step()
        if latest is not None and latest >= step:
            raise ValueError(f"step {step} cannot be saved after step {latest}: resume from it or use a new workdir")
        loss = loss if loss is not None and math.isfinite(loss) else None
        parts = _parts(state)
        hashed = integrity.hash_json(recipe)
        known = {"step": step, "loss": loss, "versions": recipes.versions(), "recipe": hashed}

        def record() -> dict[str, Any]:
            return known | {"arrays": {part: integrity.describe(leaves) for part, leaves in parts.items()}}

        items = {part: ocp.args.PyTreeSave(_nest(leaves)) for part, leaves in parts.items()}
        items |= {"recipe": ocp.args.JsonSave(recipe), "record": managers.Record(record)}
        if loss is not None:
            self._losses[step] = loss
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract: State, step: int | str = "latest") -> Restored | None:
        """Reads a checkpoint back.

        A damaged latest checkpoint is set aside, with a warning, for the newest intact one before it.

        Args:
          abstract: a State with the structure, shapes and types to expect, as from `jax.eval_shape`.
          step: a number, "latest", or "best", the one with the lowest loss.

        Returns:
          What was saved, or None if "latest" is wanted and there is nothing.

        Raises:
          ValueError: if the checkpoint has another structure, shape or type, naming the parameter; or there is none
            such; or it is damaged and was asked for by number or as the best; or no intact one is left.
        """
        wanted = _parts(abstract)

        def read(manager: ocp.CheckpointManager, chosen: int, record: dict[str, Any]) -> State:
            saved = {part: record["arrays"].get(part, {}) for part in PARTS}
            joined = [_join(saved), _join(wanted)]
            integrity.check_structure(*joined, where=f"checkpoint {chosen}")
            leaves = {part: _read(manager, chosen, part, record) for part in wanted}
            trees = {part: _fill(getattr(abstract, part), leaves.get(part, {})) for part in PARTS}
            return State(step=np.asarray(chosen, np.int32), **trees)

        self._manager.wait_until_finished()
        if step == "latest" and not self.steps():
            return None
        restored, damaged = _restore(self._manager, step, read)
        for number in damaged:
            self._set_aside(number)
        return restored

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save, which leaving the program without this call would lose."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _set_aside(self, step: int) -> None:
        folder = Path(self._manager.directory) / str(step)
        if jax.process_index() == 0:
            folder.rename(folder.with_name(f"damaged-{step}"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()


def load_params(workdir: str | Path, step: int | str = "latest") -> Restored:
    """The parameters alone, those of the moving average where there is one; changes nothing on disk.

    Raises:
      ValueError: if there is no such checkpoint, or none intact.
    """

    def read(manager: ocp.CheckpointManager, chosen: int, record: dict[str, Any]) -> Any:
        return _nest(_read(manager, chosen, "ema" if "ema" in record["arrays"] else "params", record))

    return _read_only(workdir, step, read)


def load_recipe(workdir: str | Path) -> dict[str, Any] | None:
    """The recipe of the newest checkpoint whose recipe is intact, without reading an array; None if there is none."""
    try:
        return _read_only(workdir, "latest", lambda manager, chosen, record: None).recipe
    except ValueError:
        return None


def load_steps(workdir: str | Path) -> list[int]:
    """The steps of all finished checkpoints, rising, intact or not; raises ValueError if `workdir` has none at all."""
    with _reader(workdir) as manager:
        return sorted(manager.all_steps())


def _read_only(workdir: str | Path, step: int | str, read: Read) -> Restored:
    with _reader(workdir) as manager:
        return _restore(manager, step, read)[0]


@contextlib.contextmanager
def _reader(workdir: str | Path) -> Iterator[ocp.CheckpointManager]:
    """A manager that changes nothing on disk."""
    if not (Path(workdir) / FOLDER).is_dir():
        raise ValueError(f"{workdir} holds no checkpoints: train there first, or name another workdir")
    manager = managers.build(workdir, None, {})
    try:
        yield manager
    finally:
        manager.close()


def _losses(manager: ocp.CheckpointManager, strict: bool = False) -> dict[int, float]:
    """By step, what the records say; one that cannot be read is left out, or if `strict` a ValueError."""
    losses = {}
    for number in sorted(manager.all_steps()):
        try:
            _, record = _json(manager, number)
        except Exception as error:  # Orbax reports damage in many types of exception
            if strict:
                message = f"checkpoint {number} in {manager.directory} is damaged ({error}), so the best is not known"
                raise ValueError(f"{message}: choose another step") from error
            continue
        if record["loss"] is not None:
            losses[number] = record["loss"]
    return losses


def _restore(manager: ocp.CheckpointManager, step: int | str, read: Read) -> tuple[Restored, list[int]]:
    """Reads the wanted step, for "latest" the newest intact one; and which newer ones are damaged."""
    damaged = []
    for chosen in _candidates(manager, step):
        try:
            recipe, record = _json(manager, chosen)
            return Restored(read(manager, chosen, record), recipe, chosen), damaged
        except integrity.Mismatch:
            raise
        except Exception as error:  # Orbax reports damage in many types of exception
            message = f"checkpoint {chosen} in {manager.directory} is damaged ({error})"
            if step != "latest":
                raise ValueError(f"{message}: choose another step") from error
            logging.warning("%s: trying the one before it", message)
            damaged.append(chosen)
    raise ValueError(f"{manager.directory} holds no intact checkpoint; damaged: {damaged or 'none'}")


def _candidates(manager: ocp.CheckpointManager, step: int | str) -> list[int]:
    steps = sorted(manager.all_steps(), reverse=True)
    if step == "latest":
        return steps
    if step == "best":
        measured = _losses(manager, strict=True)
        if not measured:
            raise ValueError(f"no checkpoint in {manager.directory} has a loss, so none is the best: ask for 'latest'")
        return [min(reversed(measured), key=measured.__getitem__)]
    if step not in steps:
        raise ValueError(f"step={step!r} is not in {manager.directory}: choose one of {steps}, 'latest' or 'best'")
    return [step]


def _json(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    args = ocp.args.Composite(recipe=ocp.args.JsonRestore(), record=managers.Record())
    items = manager.restore(step, args=args)
    if items.record["step"] != step or items.record["recipe"] != integrity.hash_json(items.recipe):
        raise integrity.Damaged("its recipe is not what was saved")
    return items.recipe, items.record


def _read(manager: ocp.CheckpointManager, step: int, part: str, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """One part's arrays by path, checked against the record."""
    saved = record["arrays"][part]
    types = _nest({path: ocp.RestoreArgs(restore_type=np.ndarray) for path in saved})
    items = manager.restore(step, args=ocp.args.Composite(**{part: ocp.args.PyTreeRestore(restore_args=types)}))
    arrays = flatten_dict(items[part], sep="/")
    integrity.check_contents(saved, arrays)
    return arrays


def _parts(state: State) -> dict[str, dict[str, Any]]:
    """Part -> path -> leaf, without parts that have no leaves."""
    named = {}
    for part in PARTS:
        leaves = jax.tree_util.tree_leaves_with_path(getattr(state, part))
        named[part] = {name(path): leaf for path, leaf in leaves}
    return {part: leaves for part, leaves in named.items() if leaves}


def _join(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{part}/{path}": leaf for part, leaves in parts.items() for path, leaf in leaves.items()}


def _nest(leaves: dict[str, Any]) -> dict[str, Any]:
    return unflatten_dict(leaves, sep="/")


def _fill(tree: Any, leaves: dict[str, np.ndarray]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[name(path)], tree)
