"""How Orbax keeps checkpoints: what is written, by whom, and which ones stay."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from transformer.training import integrity

FOLDER = "checkpoints"
PARTS = ("params", "opt_state", "ema", "health")
RECORDS = ("recipe", "record")


class _Raised(logging.Filter):
    """Orbax writes the traceback of every error in the background, and raises it a little later as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)


absl.logging.get_absl_logger().addFilter(_Raised())


class Manager(ocp.CheckpointManager):
    """Writes checkpoints, each with a manifest of its files, or with `keep` None only reads.

    Its items are those in `PARTS`, trees of NumPy arrays that nobody may change before a save is done or of JAX arrays,
    of which each process writes its own shards; and those in `RECORDS`, which JSON can hold.

    Args:
      workdir: its folder `FOLDER` holds the checkpoints.
      keep: how many of the last ones stay, beside the best.
      losses: by step; the caller adds to them, and the lowest is the best.

    Raises:
      ValueError: if the path cannot hold checkpoints.
    """

    def __init__(self, workdir: str | Path, keep: int | None, losses: dict[int, float]):
        folder = (Path(workdir) / FOLDER).resolve()
        if any(character in str(folder) for character in "*?["):  # Orbax would match them as patterns, and lose arrays
            raise ValueError(f"{str(folder)!r} cannot hold checkpoints: choose a path without *, ? and [")
        self._writing = folder
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=keep), _Best(losses)]),
            create=keep is not None,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        if keep is not None and not jax.process_index():
            # Orbax would do so in a thread, and two that follow each other would be in each other's way.
            for unfinished in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        super().__init__(folder, item_handlers=_handlers(), options=options)

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """As in Orbax."""
        self._writing = Path(self.directory) / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"
        return super().save(step, *args, **kwargs)

    def reached_preemption(self, step: int) -> bool:
        """Never: Orbax asks from its own threads, which would tell JAX of steps that are long over."""
        return False

    def _seal(self) -> None:
        """Called in the background when all files are there, right before the folder gets its name."""
        integrity.write_manifest(self._writing)


def _handlers() -> dict[str, Any]:
    types = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    parts = {part: ocp.PyTreeCheckpointHandler(type_handler_registry=types) for part in PARTS}
    return parts | {name: ocp.JsonCheckpointHandler() for name in RECORDS}


class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the lowest of `losses`, which are by step."""

    def __init__(self, losses: dict[int, float]):
        self._losses = losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        measured = [info.step for info in checkpoints if info.step in self._losses]
        best = min(reversed(measured), key=self._losses.__getitem__, default=None)  # of equals the newest
        return [info.step == best for info in checkpoints]
