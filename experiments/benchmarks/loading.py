"""How fast a pretrained model is loaded and saved, and how much memory that takes.

    python -m experiments.benchmarks.loading --model=qwen2-0.5b [--stored=bfloat16] [--param_dtype=float32]

Method: a folder of random weights is written tensor by tensor; it lies in the page cache when it is read. Each
measurement runs in a process of its own, `--repeats` times: one that only starts JAX, one that loads, and one that
loads and saves. Memory is the peak resident size of a process less that of the one that only starts JAX, beside the
bytes of the parameters. Medians are printed. The parent stays small, as a child's peak counts that of the process it
was made from.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import pathlib
import resource
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command
from transformer import interop, models
from transformer.interop import weights
from transformer.interop.save import family_of
from transformer.models.config import DTYPES
from transformer.models.ledger import shapes

_MODEL = flags.DEFINE_string("model", "qwen2-0.5b", "A model's name in the zoo.")
_STORED = flags.DEFINE_enum("stored", "float32", DTYPES, "The type of the numbers in the folder.")
_PARAM_DTYPE = flags.DEFINE_enum("param_dtype", None, DTYPES, "The type of the parameters; default: as stored.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Measurements of which the median counts.", lower_bound=1)


class Spent(NamedTuple):
    """What a call took."""

    seconds: float
    memory: int  # bytes that its process had resident at most


def main() -> None:
    """Prints one line for loading and one for saving."""
    with tempfile.TemporaryDirectory() as folder:
        _alone(_write, folder, _MODEL.value, _STORED.value)
        dtype = _PARAM_DTYPE.value or _STORED.value
        number = sum(np.prod(shape, dtype=int) for shape in shapes(models.get(_MODEL.value)).values())
        size = int(number) * jnp.dtype(dtype).itemsize
        print(
            f"{_MODEL.value}: {number:,} parameters, {_STORED.value} on disk, {dtype} ({size / 1e9:.2f} GB) in memory"
        )
        started = statistics.median(_alone(jax.devices).memory for _ in range(_REPEATS.value))
        for name, function in (("load", _load), ("save", _save)):
            spent = [_alone(function, folder, dtype) for _ in range(_REPEATS.value)]
            seconds = statistics.median(one.seconds for one in spent)
            memory = statistics.median(one.memory for one in spent) - started
            speed = f"{seconds:.2f} s, {size / 1e9 / seconds:.2f} GB/s"
            print(f"{name}: {speed}, {memory / 1e9:.2f} GB at most, {memory / size:.2f} x the parameters")


def _alone(function, *arguments) -> Spent:
    """Calls in a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function, *arguments).result()


def _measured(function, *arguments) -> Spent:
    start = time.perf_counter()
    seconds = function(*arguments)
    seconds = seconds if isinstance(seconds, float) else time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return Spent(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _load(folder: str, dtype: str) -> float:
    jax.devices()
    start = time.perf_counter()
    jax.block_until_ready(interop.load(folder, param_dtype=dtype)[1])
    return time.perf_counter() - start


def _save(folder: str, dtype: str) -> float:
    model, params, _ = interop.load(folder, param_dtype=dtype)
    with tempfile.TemporaryDirectory() as parent:
        start = time.perf_counter()
        interop.save(f"{parent}/saved", model, params)
        return time.perf_counter() - start


def _write(folder: str, name: str, dtype: str) -> None:
    config = models.get(name)
    family, path = family_of(config), pathlib.Path(folder)
    content = {"model_type": family.name, **family.write(config, {})}
    (path / "config.json").write_text(json.dumps(content))
    sizes = shapes(config)
    rows = {theirs: row for row in family.rows(config, content) for theirs, _ in row.names(sizes)}
    kinds = {theirs: weights.Kind(row.shape(sizes), np.dtype(jnp.dtype(dtype))) for theirs, row in rows.items()}
    weights.save(path, _Random(kinds), kinds)


class _Random(Mapping):
    """Tensors of random numbers, each made when it is asked for."""

    def __init__(self, kinds: Mapping[str, weights.Kind]):
        self._kinds = kinds

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self._kinds[name]
        random = np.random.default_rng(zlib.crc32(name.encode()))
        return (0.02 * random.standard_normal(shape, np.float32)).astype(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


if __name__ == "__main__":
    command.run(main)
