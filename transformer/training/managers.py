"""How Orbax keeps checkpoints: what is written, by whom, and which ones stay."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

FOLDER = "checkpoints"
PARTS = ("params", "opt_state", "ema")


def build(workdir: str | Path, keep: int | None, losses: dict[int, float]) -> ocp.CheckpointManager:
    """A manager that writes or, with `keep` None, only reads.

    Args:
      workdir: its folder `FOLDER` holds the checkpoints.
      keep: how many of the last ones stay, beside the best.
      losses: by step; the caller adds to them, and the lowest is the best.

    Returns:
      A manager of the items in `PARTS`, NumPy arrays that nobody may change before a save is done; of `recipe`; and of
      `record`, by way of `Record`.

    Raises:
      ValueError: if the path cannot hold checkpoints.
    """
    folder = (Path(workdir) / FOLDER).resolve()
    if any(character in str(folder) for character in "*?["):  # Orbax would match them as patterns, and lose arrays
        raise ValueError(f"{str(folder)!r} cannot hold checkpoints: choose a path without *, ? and [")
    policies = ocp.checkpoint_managers
    kept = policies.AnyPreservationPolicy([policies.LatestN(n=keep), _Best(losses)])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,
    )
    arrays = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    types = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, arrays),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # unused, but Orbax warns where it is missing
    )
    handlers: dict[str, Any] = {part: ocp.PyTreeCheckpointHandler(type_handler_registry=types) for part in PARTS}
    handlers |= {"recipe": ocp.JsonCheckpointHandler(), "record": _RecordHandler()}
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


class _RecordHandler(ocp.JsonCheckpointHandler):
    """Calls the function that is saved in the background, where hashing a large model delays nobody."""

    async def async_save(self, directory: Any, item: Any = None, args: Any = None) -> list[ocp.future.Future]:
        async def write() -> None:
            if jax.process_index() == 0:
                (directory / "metadata").write_text(json.dumps(args.item()))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="record")]


@ocp.args.register_with_handler(_RecordHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Record(ocp.args.CheckpointArgs):
    """To save a record: a function of no arguments that gives what JSON can hold. To restore one: nothing."""

    item: Callable[[], Any] | None = None


class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the lowest of `losses`, which are by step."""

    def __init__(self, losses: dict[int, float]):
        self._losses = losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        measured = [info.step for info in checkpoints if info.step in self._losses]
        best = min(reversed(measured), key=self._losses.__getitem__, default=None)  # of equals the newest
        return [info.step == best for info in checkpoints]
