"""A Hugging Face folder as one of our models."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer import text
from transformer.interop import files, hub, weights
from transformer.interop.families import FAMILIES
from transformer.interop.family import Family
from transformer.interop.fields import Fields
from transformer.interop.files import CONFIG
from transformer.interop.rows import Row, Shape, copy
from transformer.interop.weights import Tensor
from transformer.models.config import DTYPES, ModelConfig
from transformer.models.ledger import shapes
from transformer.models.transformer import Transformer

ALIGNMENT = 64  # bytes; `jax.device_put` to a CPU then takes an array as it lies, without copying it

Place = Callable[[np.ndarray], Any]


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with a `config.json`."""
    return (pathlib.Path(path) / CONFIG).is_file()


def load(
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    param_dtype: str | None = None,
    place: Place = jax.device_put,
) -> tuple[Transformer, dict, text.Tokenizer | None]:
    """A pretrained model from a folder in the format of Hugging Face, or from the hub.

        model, params, tokenizer = interop.load("path/to/gpt2")
        logits = model.apply({"params": params}, tokenizer.encode("The mole dug")[None])

    Tensors are read one by one into their places, so that memory stays near the size of the parameters. An encoder
    whose folder has no head, such as MiniLM, is read out with its embedding, which nobody trained it for: use its
    `encode` and `pool`.

    Args:
      folder: holds `config.json`, `*.safetensors` and usually a tokenizer; or the name of a model on the hub.
      dtype: of activations and matrix products.
      param_dtype: of the parameters; None keeps what is on disk.
      place: what becomes of each parameter once it is read, such as its way to devices; `lambda x: x` leaves it on the
        host.

    Returns:
      The model, its parameters, and its tokenizer or None where the folder has none.

    Raises:
      FileNotFoundError: if there is no such folder, or no weights in it.
      ValueError: if a field of the config or a tensor is not understood, missing, left over or of the wrong shape, or a
        file is damaged. Nothing is ever unpickled.
    """
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype or dtype)):
        if value not in DTYPES:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(DTYPES)}")
    folder = hub.resolve(folder)
    fields = Fields(files.read(folder / CONFIG), str(folder / CONFIG))
    family = fields.choose("model_type", FAMILIES)
    found = _Found(family, weights.tensors(folder))
    try:
        config = family.read(fields, found)
    except ValueError as error:  # what our config refuses does not know of the file
        where = "" if str(folder) in str(error) else f"{fields.where}: "
        raise ValueError(f"{where}{error}") from None
    fields.finish()
    _check_sizes(config, found, fields.where)
    rows = family.rows(config, fields.values)
    wanted = _wanted(rows, config, found, folder)
    stored = functools.reduce(jnp.promote_types, {tensor.dtype for tensor in wanted.values()})
    config = dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype or jnp.dtype(stored).name)
    tokenizer = _tokenizer(folder)  # before what takes long
    return Transformer(config), _params(rows, config, wanted, place), tokenizer


def flatten(params: dict) -> dict[str, Any]:
    """The leaves of a tree of parameters by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


class _Found(Mapping):
    """Tensors by the names that the family's table uses."""

    def __init__(self, family: Family, tensors: Mapping[str, Tensor]):
        self.family, self._tensors = family, {}
        for name, tensor in tensors.items():
            name = _canonical(family, name)
            if name in self._tensors:
                one = self._tensors[name].name
                raise ValueError(f"{tensor.path}: {tensor.name} and {one} are the same tensor: keep one")
            self._tensors[name] = tensor

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""
        if one not in self or other not in self or self[one].shape != self[other].shape:
            return False
        for name in (one, other):
            weights.check_type(self[name])
        return all(np.array_equal(piece, self[other].rows(place)) for place, piece in self[one].pieces())


def _canonical(family: Family, name: str) -> str:
    """A tensor's name as the table has it: today's, and with the prefix that files of a bare body lack."""
    for old, new in family.renames.items():
        name = re.sub(old, new, name)
    return name if name.startswith((family.prefix, *family.heads)) else family.prefix + name


def _check_sizes(config: ModelConfig, found: _Found, where: str) -> None:
    """Raises ValueError for a size that no tensor has room for, if arrays of it are made before shapes are compared."""
    most = max((math.prod(tensor.shape) for tensor in found.values()), default=0)
    for stack in filter(None, (config.encoder, config.decoder)):
        buckets = stack.position.buckets if stack.position.kind == "relative" else 0
        for name, size in (("heads of width", config.head_width(stack)), ("buckets of distance", buckets)):
            if size > most:
                raise ValueError(f"{where} asks for {name} {size}, but the largest tensor holds {most}: fetch it again")


def _wanted(rows: list[Row], config: ModelConfig, found: _Found, folder: pathlib.Path) -> dict[str, Tensor]:
    """The tensors that the table names; raises ValueError at the first one missing, left over or misshapen."""
    sizes, wanted = shapes(config), {}
    for row in rows:
        for name, _ in row.names(sizes):
            tensor = found.get(name, found.get(row.alias))
            if tensor is None:
                raise ValueError(f"{folder}: the tensor {name!r} is missing: fetch the weights again")
            shape = row.shape(sizes)
            if tensor.shape != shape:
                raise ValueError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}; {CONFIG} asks for {shape}")
            weights.check_type(tensor)
            wanted[name] = tensor
    read = set(wanted.values())
    _check_rest({name: tensor for name, tensor in found.items() if tensor not in read}, wanted, found)
    return wanted


def _check_rest(rest: Mapping[str, Tensor], wanted: Mapping[str, Tensor], found: _Found) -> None:
    """Raises ValueError at the first tensor that nothing reads, unless it says nothing or says it again."""
    family = found.family
    for name, tensor in rest.items():
        if any(re.fullmatch(pattern, name) for pattern in family.redundant):
            continue
        original = family.copies.get(name)
        if original not in wanted:
            raise ValueError(f"{tensor.path}: {tensor.name} is left over: the model of {CONFIG} has no place for it")
        if not found.same(name, original):
            fellow = found[original].name
            raise ValueError(
                f"{tensor.path}: {tensor.name} differs from {fellow}, but {CONFIG} says that it repeats it"
            )


def _params(rows: list[Row], config: ModelConfig, found: Mapping[str, Tensor], place: Place) -> dict:
    """The tree of parameters; each is placed as soon as it is whole, so that host and devices share the burden."""
    sizes, dtype = shapes(config), jnp.dtype(config.param_dtype)
    ours: dict[str, np.ndarray] = {}
    tree: dict = {}
    for row in rows:
        ours |= {path: _aligned(sizes[path], dtype) for path in row.paths}
        for name, index in row.names(sizes):
            _fill(row, row.views(ours, index), found[name])
        for path in row.paths:
            *parents, last = path.split("/")
            node = functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)
            node[last] = place(ours.pop(path))
    return tree


def _fill(row: Row, ours: list[np.ndarray], tensor: Tensor) -> None:
    target = row.target(ours[0])
    if target is None:
        for array, read in zip(ours, row.read(tensor.read(), ours[0].shape), strict=True):
            array[...] = read
        return
    for place, piece in tensor.pieces():
        copy(target[place], piece)


def _aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An empty array at an address that JAX can use in place."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _tokenizer(folder: pathlib.Path) -> text.Tokenizer | None:
    try:
        return text.load(folder)
    except FileNotFoundError:
        return None
