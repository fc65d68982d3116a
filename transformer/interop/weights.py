"""Tensors on disk: `*.safetensors`, whole or in shards with an index, read piece by piece and never unpickled."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
PIECE = 32 * 2**20  # bytes read at a time; what is mapped counts as memory until its file is closed
SHARD = 4 * 2**30  # bytes in one file that is written


class Tensor(NamedTuple):
    """Where a tensor lies, and what it is."""

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """All of it."""
        with _opened(self.path) as file:
            return file.get_tensor(self.name)

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows of it, a few at a time, each with its place."""
        rows, size = self.shape[0], math.prod(self.shape) * self.dtype.itemsize
        step = max(1, rows * PIECE // max(size, 1))
        for start in range(0, rows, step):
            place = slice(start, min(start + step, rows))
            with _opened(self.path) as file:
                yield place, file.get_slice(self.name)[place]


def tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    """Every tensor in a folder by name, without reading any.

    Raises:
      FileNotFoundError: if there are no `*.safetensors`; it says how to convert what is there.
      ValueError: if a file is damaged, an index points outside the folder or does not fit its files, a name comes
        twice, or a tensor is of a type other than float32, float16 and bfloat16.
    """
    found: dict[str, Tensor] = {}
    for path in _files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                if name in found:
                    raise ValueError(f"{path} holds {name!r}, and so does {found[name].path.name}: keep one of them")
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                found[name] = Tensor(path, name, shape, DTYPES.get(dtype, np.dtype("V1")))
    return found


def check_type(tensor: Tensor) -> None:
    """Raises ValueError unless a tensor holds floating-point numbers that we read."""
    if tensor.dtype not in DTYPES.values():
        raise ValueError(f"{tensor.path}: {tensor.name} is none of float32, float16 and bfloat16: convert it first")


def save(folder: pathlib.Path, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int], shard: int = SHARD) -> None:
    """Writes tensors into a folder, in files of about `shard` bytes, with an index where there are several.

    Args:
      arrays: read once each, in order, so that a mapping may make them as it goes.
      sizes: the bytes of each.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > shard:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        save_file({name: arrays[name] for name in groups[0]}, folder / SINGLE, {"format": "pt"})
        return
    where = {}
    for index, names in enumerate(groups, 1):
        file = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: arrays[name] for name in names}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n")


def _opened(path: pathlib.Path):
    try:
        return safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fetch it again") from None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise ValueError(f"{folder} holds {len(found)} *.safetensors files, but no {INDEX} says which: restore it")
    pickled = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
    if pickled:
        convert = "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)"
        raise ValueError(
            f"{folder / pickled[0]} is a pickle, which may run any code when opened, so it is not read: convert it "
            f"where you trust it, with transformers' {convert}"
        )
    raise FileNotFoundError(f"{folder} holds no weights: {SINGLE} or {INDEX} was expected")


def _indexed(folder: pathlib.Path) -> list[pathlib.Path]:
    path = folder / INDEX
    try:
        where = json.loads(path.read_text())["weight_map"]
        names = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an index ({type(error).__name__}): restore it") from None
    files = []
    for name in names:
        # A file of a cache may be a link to elsewhere; a name may not lead out of the folder.
        if not isinstance(name, str) or pathlib.PurePath(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise ValueError(f"{path} points to {name!r}, which is not a file of its folder: it is not followed")
        if not (folder / name).is_file():
            raise ValueError(f"{path} names {name}, which is missing: fetch it")
        files.append(folder / name)
    inside = {}
    for file in files:
        with _opened(file) as opened:
            inside[file.name] = set(opened.keys())
    for tensor, name in where.items():
        if tensor not in inside[name]:
            raise ValueError(f"{path} says that {name} holds {tensor!r}, which it does not: fetch both again")
    return files
