"""Checkpoints: the state of training, the recipe that made it, and a promise that both are what was saved.

    workdir/checkpoints/STEP/{params, opt_state, ema, health}   arrays by path, in Orbax's format
                            /recipe         what the caller says made them: config, data, tokenizer
                            /record         step, loss, versions; each array's shape and type
                            /manifest.json  every file's size and hash

Files are written and hashed in the background, and the folder gets its name when the manifest is in it. What is read
back is compared first, so damage cannot pass for a model.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from transformer.training import exits, integrity, managers, recipes, restoring
from transformer.training.parallel import Jit, Pmap
from transformer.training.parameters import name
from transformer.training.state import State

FOLDER = managers.FOLDER
PARTS = managers.PARTS
REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class Checkpoints:
    """Saves and restores in one working directory; a context manager that waits for saves to finish.

    Where the system refuses to write a checkpoint, the next call that saves or waits raises `exits.NotSaved`; the
    earlier ones are as they were, and later saves try again.
    """

    def __init__(self, workdir: str | Path, keep: int = 2):
        """Opens `workdir`, keeping the last `keep` checkpoints and the one with the lowest loss."""
        self._losses: dict[int, float] = {}
        self._open = partial(managers.Manager, workdir, keep, self._losses)
        self._manager = self._open()
        self._losses |= restoring.read_losses(self._manager)
        self._saving: int | None = None

    def save(self, state: State, recipe: dict[str, Any], loss: float | None = None) -> None:
        """Starts to save; what goes wrong in the background is raised by the next call.

        Args:
          state: with NumPy leaves that nobody changes before the save is done, as from `host_state`, or with JAX
            arrays that lie on the devices of several processes, each of which calls this.
          recipe: anything that JSON can hold.
          loss: on the validation data, if measured at this step.

        Raises:
          ValueError: if there is a checkpoint of this step or a later one.
        """
        self.wait()
        step, latest = int(state.step), self._manager.latest_step()
        if latest is not None and latest >= step:
            raise ValueError(f"step {step} cannot be saved after step {latest}: resume from it or use a new workdir")
        loss = loss if loss is not None and math.isfinite(loss) else None
        parts = _parts(state)
        record = {"step": step, "loss": loss, "versions": recipes.versions()}
        record["arrays"] = {part: integrity.describe(leaves) for part, leaves in parts.items()}
        items = {part: ocp.args.PyTreeSave(restoring.nest(leaves)) for part, leaves in parts.items()}
        items |= {"recipe": ocp.args.JsonSave(recipe), "record": ocp.args.JsonSave(record)}
        if loss is not None:
            self._losses[step] = loss
        self._saving = step
        with self._reported():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(
        self, abstract: State, step: int | str = "latest", *, shardings: State | None = None, cast: bool = False
    ) -> restoring.Restored | None:
        """Reads a checkpoint back.

        A damaged latest checkpoint is set aside, with a warning, for the newest intact one before it.

        Args:
          abstract: a State with the structure, shapes and types to expect, as from `jax.eval_shape`.
          step: a number, "latest", or "best", the one with the lowest loss.
          shardings: of every leaf; each process then reads what its own devices hold. Without, all are NumPy arrays.
          cast: whether to take what was saved in other types, rounding it; otherwise that is an error.

        Returns:
          What was saved, or None if "latest" is wanted and there is nothing.

        Raises:
          ValueError: if the checkpoint has another structure, shape or type, naming the parameter; or there is none
            such; or it is damaged and was asked for by number or as the best; or no intact one is left.
        """
        wanted, places = _parts(abstract), None if shardings is None else _parts(shardings)

        def read(manager: managers.Manager, chosen: int, record: dict[str, Any]) -> State:
            saved = {part: record["arrays"].get(part, {}) for part in PARTS}
            joined = [_join(saved), _join(wanted)]
            integrity.check_structure(*joined, where=f"checkpoint {chosen}", types=not cast)
            trees = {}
            for part in PARTS:
                where = None if places is None else places.get(part)
                leaves = restoring.read_part(manager, chosen, part, record, where) if part in wanted else {}
                trees[part] = _fill(getattr(abstract, part), leaves)
            number = np.asarray(chosen, np.int32)
            if shardings is None:
                return State(step=number, **trees)
            return State(step=jax.make_array_from_callback((), shardings.step, lambda _: number), **trees)

        self.wait()
        if step == "latest" and not self.steps():
            return None
        restored, damaged = restoring.restore(self._manager, step, read)
        self._set_aside(damaged, "damaged")
        return restored

    def restore_placed(
        self, parallel: Jit | Pmap, abstract: State, step: int | str = "latest", *, cast: bool = False
    ) -> restoring.Restored | None:
        """As `restore`, with the state on devices as `parallel` has it.

        Where processes hold parts of an array each, they read no more than those.
        """
        places = parallel.layout(abstract)
        if jax.process_count() > 1 and not all(place.is_fully_replicated for place in jax.tree.leaves(places)):
            return self.restore(abstract, step, shardings=places, cast=cast)
        restored = self.restore(abstract, step, cast=cast)
        return restored and restored._replace(state=parallel.place_state(restored.state))

    def roll_back(self, step: int) -> list[int]:
        """Makes this checkpoint the last one: later ones are renamed, never deleted. Returns their steps."""
        self.wait()
        later = [number for number in self.steps() if number > step]
        self._set_aside(later, "rolled-back")
        return later

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        with self._reported():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save, which leaving the program without this call would lose."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        try:
            self.close()
        except Exception as error:
            if kind is None:
                raise
            logging.warning("%s", error)  # what ended the run is said after it

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """What goes wrong within is about the checkpoint that is being saved."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore report in many types of exception
            if jax.process_count() == 1:
                with contextlib.suppress(Exception):
                    self._manager.close()
                self._manager = self._open()  # takes away what is half written, and its room on the disk
            self._losses.pop(self._saving, None)
            if (reason := _reason(error)) is None:
                raise
            raise exits.NotSaved(
                f"checkpoint {self._saving} cannot be written to {self._manager.directory} ({reason}); "
                f"those of steps {self.steps()} are as they were: make room there, or allow writing"
            ) from error

    def _set_aside(self, steps: list[int], why: str) -> None:
        for step in steps if jax.process_index() == 0 else ():
            folder = Path(self._manager.directory) / str(step)
            first = folder.with_name(f"{why}-{step}")
            others = (first.with_name(f"{first.name}.{number}") for number in itertools.count(2))
            folder.rename(next(path for path in itertools.chain([first], others) if not path.exists()))
        if steps and jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{why} {steps}")
        self._manager.reload()


def _reason(error: BaseException | None) -> str | None:
    """What the system says of a disk, which libraries wrap in their own words; None where it says nothing."""
    while error is not None:
        said = " ".join(str(error).split())
        if (known := next((reason for reason in map(os.strerror, REASONS) if reason in said), None)) is not None:
            return known
        if isinstance(error, OSError):
            return said
        error = error.__cause__
    return None


def _parts(state: State) -> dict[str, dict[str, Any]]:
    """Part -> path -> leaf, without parts that have no leaves."""
    named = {}
    for part in PARTS:
        leaves = jax.tree_util.tree_leaves_with_path(getattr(state, part))
        named[part] = {name(path): leaf for path, leaf in leaves}
    return {part: leaves for part, leaves in named.items() if leaves}


def _join(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{part}/{path}": leaf for part, leaves in parts.items() for path, leaf in leaves.items()}


def _fill(tree: Any, leaves: dict[str, Any]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves[name(path)].astype(leaf.dtype, copy=False), tree)
