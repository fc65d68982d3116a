"""Reading checkpoints: the one that is wanted, or the newest intact one, compared with its manifest first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from transformer.training import integrity, managers

Read = Callable[[managers.Manager, int, dict[str, Any]], Any]


class Restored(NamedTuple):
    """`state` is a State, or parameters alone from `load_params`; its leaves are NumPy arrays."""

    state: Any
    recipe: dict[str, Any]
    step: int


def load_params(workdir: str | Path, step: int | str = "latest") -> Restored:
    """The parameters alone, those of the moving average where there is one; changes nothing on disk.

    Raises:
      ValueError: if there is no such checkpoint, or none intact.
    """

    def read(manager: managers.Manager, chosen: int, record: dict[str, Any]) -> Any:
        return nest(read_part(manager, chosen, "ema" if "ema" in record["arrays"] else "params", record))

    return _read_only(workdir, step, read)


def load_recipe(workdir: str | Path, step: int | str = "latest") -> dict[str, Any] | None:
    """The recipe of a checkpoint, without reading an array; for "latest", of the newest whose recipe is intact.

    Returns:
      None where there is no checkpoint at all.

    Raises:
      ValueError: if there are others, or the recipe is damaged.
    """
    if not (Path(workdir) / managers.FOLDER).is_dir():
        return None
    with _reader(workdir) as manager:
        if not manager.all_steps():
            return None
        return restore(manager, step, lambda manager, chosen, record: None)[0].recipe


def load_steps(workdir: str | Path) -> list[int]:
    """The steps of all finished checkpoints, rising, intact or not; raises ValueError if `workdir` has none at all."""
    with _reader(workdir) as manager:
        return sorted(manager.all_steps())


def _read_only(workdir: str | Path, step: int | str, read: Read) -> Restored:
    with _reader(workdir) as manager:
        return restore(manager, step, read)[0]


@contextlib.contextmanager
def _reader(workdir: str | Path) -> Iterator[managers.Manager]:
    """A manager that changes nothing on disk."""
    if not (Path(workdir) / managers.FOLDER).is_dir():
        raise ValueError(f"{workdir} holds no checkpoints: train there first, or name another workdir")
    manager = managers.Manager(workdir, None, {})
    try:
        yield manager
    finally:
        manager.close()


def read_losses(manager: managers.Manager, strict: bool = False) -> dict[int, float]:
    """By step, what the records say; one that is damaged is left out, or if `strict` a ValueError."""
    losses = {}
    for number in sorted(manager.all_steps()):
        try:
            _, record = _json(manager, number)
        except integrity.Damaged as error:
            if strict:
                message = f"checkpoint {number} in {manager.directory} is damaged ({error}), so the best is not known"
                raise ValueError(f"{message}: choose another step") from error
            continue
        if record["loss"] is not None:
            losses[number] = record["loss"]
    return losses


def restore(manager: managers.Manager, step: int | str, read: Read) -> tuple[Restored, list[int]]:
    """Reads the wanted step, for "latest" the newest intact one; and which newer ones are damaged.

    Only what differs from the manifest is damaged; any other error says nothing about a checkpoint, and is raised.
    """
    damaged = []
    for chosen in _candidates(manager, step):
        try:
            recipe, record = _json(manager, chosen)
            return Restored(read(manager, chosen, record), recipe, chosen), damaged
        except integrity.Damaged as error:
            message = f"checkpoint {chosen} in {manager.directory} is damaged ({error})"
            if step != "latest":
                raise ValueError(f"{message}: choose another step") from error
            logging.warning("%s: trying the one before it", message)
            damaged.append(chosen)
    raise ValueError(f"{manager.directory} holds no intact checkpoint; damaged: {damaged or 'none'}")


def _candidates(manager: managers.Manager, step: int | str) -> list[int]:
    steps = sorted(manager.all_steps(), reverse=True)
    if step == "latest":
        return steps
    if step == "best":
        measured = read_losses(manager, strict=True)
        if not measured:
            raise ValueError(f"no checkpoint in {manager.directory} has a loss, so none is the best: ask for 'latest'")
        return [min(reversed(measured), key=measured.__getitem__)]
    if step not in steps:
        raise ValueError(f"step={step!r} is not in {manager.directory}: choose one of {steps}, 'latest' or 'best'")
    return [step]


def _json(manager: managers.Manager, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    integrity.verify(Path(manager.directory) / str(step), managers.RECORDS)
    items = manager.restore(step, args=ocp.args.Composite(**dict.fromkeys(managers.RECORDS, ocp.args.JsonRestore())))
    if items.record["step"] != step:
        raise integrity.Damaged(f"it was saved as checkpoint {items.record['step']}")
    return items.recipe, items.record


def read_part(
    manager: managers.Manager, step: int, part: str, record: dict[str, Any], places: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One part's arrays by path, where `places` has their shardings on devices, once its files are verified."""
    integrity.verify(Path(manager.directory) / str(step), [part])
    if places is None:
        types = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in record["arrays"][part]}
    else:
        types = {path: ocp.ArrayRestoreArgs(sharding=places[path]) for path in record["arrays"][part]}
    args = ocp.args.PyTreeRestore(restore_args=nest(types))
    return flatten_dict(manager.restore(step, args=ocp.args.Composite(**{part: args}))[part], sep="/")


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """Names joined by "/" as a tree."""
    return unflatten_dict(leaves, sep="/")
