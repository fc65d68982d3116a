"""What a checkpoint promises about its arrays: their names, shapes, types and contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]  # path -> array
Descriptions = Mapping[str, Mapping[str, Any]]  # path -> shape, dtype, sha256
SHOWN = 5  # differences that an error lists


class Damaged(Exception):
    """What is on disk is not what was saved."""


class Mismatch(ValueError):
    """What was saved is intact, but not what is expected here."""


def describe(arrays: Arrays) -> dict[str, dict[str, Any]]:
    """Each array's shape, type and SHA-256, fit for JSON."""
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_hash, arrays.values())
        return {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": sha256}
            for (name, array), sha256 in zip(arrays.items(), hashes, strict=True)
        }


def check_structure(saved: Descriptions, expected: Arrays, where: str) -> None:
    """Raises Mismatch, naming parameters, unless names, shapes and types agree; nothing is ever cast.

    Args:
      saved: as from `describe`.
      expected: arrays or `jax.ShapeDtypeStruct`s.
      where: names the checkpoint in the error.
    """
    lines = [f"{name} is in the checkpoint but not expected" for name in sorted(saved.keys() - expected.keys())]
    lines += [f"{name} is expected but not in the checkpoint" for name in sorted(expected.keys() - saved.keys())]
    for name in sorted(saved.keys() & expected.keys()):
        has = f"{saved[name]['dtype']}{list(saved[name]['shape'])}"
        wants = f"{np.dtype(expected[name].dtype)}{list(expected[name].shape)}"
        if has != wants:
            lines.append(f"{name} is {has} in the checkpoint, expected {wants}")
    if lines:
        rest = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise Mismatch(
            f"{where} does not fit: {'; '.join(lines[:SHOWN])}{rest}. Restore it with the config it was saved with"
        )


def check_contents(saved: Descriptions, arrays: Arrays) -> None:
    """Raises Damaged unless every array is, bit for bit, the one that was described."""
    if saved.keys() != arrays.keys():
        raise Damaged(f"arrays are missing: {sorted(saved.keys() ^ arrays.keys())[:SHOWN]}")
    for name, description in describe(arrays).items():
        if description != saved[name]:
            raise Damaged(f"{name} is not what was saved")


def hash_json(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()
