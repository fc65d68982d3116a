"""Which steps a run has left out for good, so that it leaves them out again when it is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax

FILE = "skipped.json"


class Skipped:
    """Each roll-back: from which checkpoint training went on, and behind which step's batch.

    Args:
      path: where it is written down; None for nowhere.
      jumps: those that were made, `(checkpoint, last step left out)` each.
    """

    def __init__(self, path: Path | None = None, jumps: Sequence[Sequence[int]] = ()):
        self._path = path
        self.jumps = [(int(first), int(last)) for first, last in jumps]

    def add(self, checkpoint: int, last: int) -> None:
        """Training goes on from a checkpoint with the batch after the one of step `last`."""
        if (checkpoint, last) not in self.jumps:  # as when a process ended between this and its next checkpoint
            self.jumps.append((checkpoint, last))
        self.write()

    def after(self, step: int) -> int:
        """Where training goes on after a step: mostly there, or behind what was left out."""
        return max((last for checkpoint, last in self.jumps if checkpoint == step), default=step)

    def write(self) -> None:
        """Leaves the old file or the new one, never half; without jumps there is none."""
        if self._path is None or jax.process_index():
            return
        if not self.jumps:
            self._path.unlink(missing_ok=True)
            return
        new = self._path.with_name(self._path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({"skipped": self.jumps}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)


def load(workdir: Path, saved: Sequence[Sequence[int]] = (), until: int | None = None) -> Skipped:
    """What a working directory says, and its checkpoint, which may have been restored without that file.

    Args:
      workdir: of the run.
      saved: the jumps that the restored checkpoint knows.
      until: roll-backs from later checkpoints are no longer part of the run; None: all are.

    Raises:
      ValueError: if the file is there and cannot be read.
    """
    path, jumps = workdir / FILE, {(int(first), int(last)): None for first, last in saved}
    if path.exists():
        try:
            jumps |= {(int(first), int(last)): None for first, last in json.loads(path.read_text())["skipped"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: repair it, or move it away to go on without its roll-backs") from None
    return Skipped(path, [jump for jump in jumps if until is None or jump[0] <= until])
