"""A corpus's folder: it appears whole or not at all, is read only when whole, and replaces nothing but an older one."""

from __future__ import annotations

import hashlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping

import numpy as np

RECORD = "corpus.json"


def write(
    folder: pathlib.Path,
    record: Mapping[str, object],
    arrays: Mapping[str, np.ndarray],
    save_others: Callable[[pathlib.Path], object],
) -> None:
    """Writes `NAME.npy` for each array, what `save_others` adds, and the record, beside `folder`; then renames.

    A reader sees the old corpus, none, or the new one, and an interrupted writer leaves at most a hidden folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new = pathlib.Path(scratch) / "new"
        new.mkdir()
        for name, array in arrays.items():
            np.save(new / f"{name}.npy", array)
        save_others(new)
        digests = {name: _digest(array) for name, array in arrays.items()}
        files = sorted([*(path.name for path in new.iterdir()), RECORD])
        content = {**record, "digests": digests, "files": files}
        (new / RECORD).write_text(json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n")
        try:
            if folder.exists():
                folder.rename(pathlib.Path(scratch) / "old")
            new.rename(folder)
        except OSError:
            # Another process of the same run may have landed first; the caller reads back what lies there.
            if not (folder / RECORD).is_file():
                raise


def read_record(folder: pathlib.Path) -> dict[str, dict]:
    """The record in `folder`; empty if there is none, or not the one that was written."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    intact = isinstance(record, dict) and record.pop("checksum", None) == _checksum(record)
    return record if intact else {}


def read_arrays(folder: pathlib.Path, record: Mapping[str, Mapping[str, str]]) -> dict[str, np.ndarray] | None:
    """The arrays named by the record, mapped into memory; None if one is missing or is not what was written."""
    arrays = {}
    for name, digest in record["digests"].items():
        try:
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        if _digest(arrays[name]) != digest:
            return None
    return arrays


def refuse_strangers(folder: pathlib.Path) -> None:
    """Raises ValueError if writing a corpus to `folder` would lose anything but an older corpus."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file: give a folder for the corpus")
    strangers = {path.name for path in folder.iterdir()} - set(read_record(folder).get("files", ()))
    if strangers:
        raise ValueError(
            f"folder={str(folder)!r} holds {min(strangers)!r}, which no intact {RECORD} lists: "
            "remove it, or give a new or empty folder"
        )


def _checksum(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
