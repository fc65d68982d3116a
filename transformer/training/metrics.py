"""What training reports: always lines of JSON, and TensorBoard or Weights & Biases when asked for."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

FILE = "metrics.jsonl"


class Writer:
    """Writes scalars by step; in other processes than the first it writes nothing. A context manager."""

    def __init__(self, workdir: str | Path, step: int = 0, *, tensorboard: bool = False, wandb: str | None = None):
        """Opens `workdir/metrics.jsonl` to append, without lines of steps after the one that training resumes from.

        Args:
          workdir: made if need be.
          step: where training starts; 0 starts afresh.
          tensorboard: also write TensorBoard events to `workdir/tensorboard`.
          wandb: also log to this Weights & Biases project; a working directory is one run, resumed or not.

        Raises:
          ValueError: if an extra is asked for that is not installed.
        """
        tensorboard_module, wandb_module = extras(tensorboard, wandb)
        self._file = self._board = self._run = None
        if jax.process_index():
            return
        workdir = Path(workdir).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        _truncate(workdir / FILE, step)
        self._file = (workdir / FILE).open("a", encoding="utf-8")
        if tensorboard_module:
            self._board = tensorboard_module.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        if wandb_module:
            identity = sha256(str(workdir).encode()).hexdigest()[:12]
            self._run = wandb_module.init(
                project=wandb, id=identity, name=workdir.name, dir=str(workdir), resume="allow"
            )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes `{"step": step, **values}` as one line, at once.

        Values are numbers, booleans, strings or scalar arrays. NaN and infinities, which JSON cannot hold, become null.
        """
        if self._file is None:
            return
        plain = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": int(step)} | plain, allow_nan=False) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in plain.items() if isinstance(value, (int, float))}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, int(step))
        if self._run is not None:
            self._run.log(numbers, step=int(step))

    def close(self) -> None:
        """Closes everything that was opened."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def extras(tensorboard: bool, wandb: str | None) -> tuple[ModuleType | None, ModuleType | None]:
    """The modules that are asked for; ValueError, naming the extra, if one is not installed."""
    board = _extra("tensorboardX", "tensorboard") if tensorboard else None
    return board, _extra("wandb", "wandb") if wandb else None


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines written so far; a last line that a crash cut short is left out."""
    path = Path(workdir) / FILE
    return [row for _, row in _rows(path)] if path.exists() else []


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError(line)
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is no line of metrics: repair it or move it away") from None
            break
        if line.endswith("\n"):
            rows.append((line, row))
    return rows


def _truncate(path: Path, step: int) -> None:
    """Drops lines of later steps, or all when nothing is resumed; leaves the old file or the new one, never half."""
    if not path.exists():
        return
    kept = [line for line, row in _rows(path) if 0 < step >= row["step"]]
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _extra(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{extra} is not installed: pip install 'transformer-research[{extra}]'") from None
