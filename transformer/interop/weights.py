"""Tensors on disk: `*.safetensors`, whole or in shards with an index, read piece by piece and never unpickled."""

from __future__ import annotations

import json
import math
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE = 32 * 2**20  # bytes read at a time; what is mapped counts as memory until its file is closed
SHARD = 4 * 2**30  # bytes in one file that is written


class Kind(NamedTuple):
    """What a tensor is before it is made."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


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

    def rows(self, place: slice) -> np.ndarray:
        """Some of its rows; a tensor without axes counts as one row."""
        if not self.shape:
            return self.read()[None][place]
        with _opened(self.path) as file:
            return file.get_slice(self.name)[place]

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows, a few at a time, each time with their place."""
        rows, size = (self.shape or (1,))[0], Kind(self.shape, self.dtype).size
        if not size:
            return
        step = max(1, rows * PIECE // size)
        for start in range(0, rows, step):
            place = slice(start, min(start + step, rows))
            yield place, self.rows(place)


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


def save(folder: pathlib.Path, arrays: Mapping[str, np.ndarray], kinds: Mapping[str, Kind], shard: int = SHARD) -> None:
    """Writes tensors into a folder, in files of about `shard` bytes, with an index where there are several.

    Args:
      arrays: asked for once each, so that a mapping may make them as it goes: one is in memory at a time.
      kinds: what each of them is.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, kind in kinds.items():
        if groups[-1] and filled + kind.size > shard:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += kind.size
    if len(groups) == 1:
        _write(folder / SINGLE, arrays, {name: kinds[name] for name in groups[0]})
        return
    where = {}
    for index, names in enumerate(groups, 1):
        file = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        _write(folder / file, arrays, {name: kinds[name] for name in names})
        where |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": sum(kind.size for kind in kinds.values())}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n")


def _write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], kinds: Mapping[str, Kind]) -> None:
    """A file of tensors one by one, which the library that reads them would write only whole.

    The format: 8 bytes that hold the header's length, the header in JSON, filled up with spaces so that numbers are
    aligned, and the numbers (https://github.com/huggingface/safetensors).
    """
    names = sorted(kinds, key=lambda name: -kinds[name].dtype.itemsize)  # so they stay aligned
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # without which the publisher's library reads nothing
    end = 0
    for name in names:
        shape, dtype = kinds[name]
        start, end = end, end + kinds[name].size
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8))


def _opened(path: pathlib.Path):
    try:
        return safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fetch it again") from None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / SINGLE).is_file():  # which the publisher's library prefers too
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _indexed(folder)
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
