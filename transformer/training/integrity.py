"""What a checkpoint promises: the names, shapes and types of its arrays, and every byte of its files.

A manifest lists every file of a checkpoint's folder with its size and SHA-256. Files are what a disk damages, and of an
array that several processes wrote, no single one could hash more than its own part; files it can share with others.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

Arrays = Mapping[str, Any]  # path -> array
Descriptions = Mapping[str, Mapping[str, Any]]  # path -> shape, dtype
SHOWN = 5  # differences that an error lists

MANIFEST = "manifest.json"
FORMAT = 1
UNLISTED = ("_CHECKPOINT_METADATA", "commit_success.txt", MANIFEST)  # what Orbax adds later, and nobody reads back
WORDS = 512  # bytes of a damage's description that processes tell each other


class Damaged(Exception):
    """What is on disk is not what was saved."""


class Mismatch(ValueError):
    """What was saved is intact, but not what is expected here."""


def write_manifest(folder: Path) -> None:
    """Lists every file below a folder, by its path there: the promise that `verify` compares with."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and _name(path, folder) not in UNLISTED)
    with ThreadPoolExecutor() as pool:
        entries = pool.map(lambda path: {"size": path.stat().st_size, "sha256": _hash(path)}, paths)
        files = {_name(path, folder): entry for path, entry in zip(paths, entries, strict=True)}
    manifest = {"format": FORMAT, "files": files, "sha256": hash_json(files)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def verify(folder: Path, parts: Sequence[str]) -> None:
    """Compares files with the manifest; processes share the work, and all raise the same if any finds damage.

    Args:
      folder: of the checkpoint.
      parts: the folders in it that count.

    Raises:
      Damaged: naming the file that is missing, cut short, changed or unreadable, or never written to its end.
      OSError: of this process alone, if it cannot look, as without rights or with too many open files.
    """
    if found := _agreed(_damaged(folder, parts)):
        raise Damaged(found)


def describe(arrays: Arrays) -> dict[str, dict[str, Any]]:
    """Each array's shape and type, fit for JSON."""
    return {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}


def check_structure(saved: Descriptions, expected: Arrays, where: str, types: bool = True) -> None:
    """Raises Mismatch, naming parameters, unless names, shapes and types agree.

    Args:
      saved: as from `describe`.
      expected: arrays or `jax.ShapeDtypeStruct`s.
      where: names the checkpoint in the error.
      types: whether they count.
    """
    lines = [f"{name} is in the checkpoint but not expected" for name in sorted(saved.keys() - expected.keys())]
    lines += [f"{name} is expected but not in the checkpoint" for name in sorted(expected.keys() - saved.keys())]
    for name in sorted(saved.keys() & expected.keys()):
        has, wants = saved[name], describe({name: expected[name]})[name]
        if has["shape"] != wants["shape"] or (types and has["dtype"] != wants["dtype"]):
            lines.append(
                f"{name} is {has['dtype']}{has['shape']} in the checkpoint, expected {wants['dtype']}{wants['shape']}"
            )
    if lines:
        rest = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise Mismatch(
            f"{where} does not fit: {'; '.join(lines[:SHOWN])}{rest}. Restore it with the config it was saved with"
        )


def hash_json(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version, files, promised = manifest["format"], manifest["files"], manifest["sha256"]
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST} is not what was saved") from error
    if version != FORMAT:
        raise Damaged(f"{MANIFEST} is of format {version}, and this program reads {FORMAT}")
    if promised != hash_json(files):
        raise Damaged(f"{MANIFEST} is not what was saved")
    return files


def _damaged(folder: Path, parts: Sequence[str]) -> str:
    """The first damage in this process's share of the files, in words; none: ""."""
    try:
        files = _read_manifest(folder)
    except Damaged as error:
        return str(error)
    names = sorted(name for name in files if name.split("/")[0] in parts)[jax.process_index() :: jax.process_count()]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _damage(folder / name, files[name]), names)
        return next((f"{name} {damage}" for name, damage in zip(names, found, strict=True) if damage), "")


def _damage(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry["size"]:
        return "is not as long as it was"
    try:
        return None if _hash(path) == entry["sha256"] else "is not what was saved"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "cannot be read"  # a bad sector


def _agreed(found: str) -> str:
    """The first in the alphabet of what all processes found, where any found something."""
    if jax.process_count() == 1:
        return found
    own = np.frombuffer(found.encode()[:WORDS].ljust(WORDS, b"\0"), np.uint8)
    said = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(own)]
    return min(filter(None, said), default="")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
