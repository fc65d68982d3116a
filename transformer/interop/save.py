"""One of our models as a Hugging Face folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer import text
from transformer.interop import weights
from transformer.interop.families import FAMILIES
from transformer.interop.family import Family
from transformer.interop.fields import Fields
from transformer.interop.files import CONFIG
from transformer.interop.load import flatten
from transformer.interop.rows import Row
from transformer.models.config import DTYPES, ModelConfig, Position, Scaling, Stack
from transformer.models.ledger import shapes
from transformer.models.transformer import Transformer

SHOWN = 3  # differences that an error lists
FAR = 99  # differences that a family counts for whose config cannot be written and read back
# Fields that change no function.
TRAINING = ("init", "dtype", "param_dtype", "unroll", "remat", "attention_implementation")


def save(
    folder: str | os.PathLike[str],
    model: Transformer,
    params: dict,
    tokenizer: text.Tokenizer | None = None,
    *,
    family: str | None = None,
    shard: int = weights.SHARD,
) -> str:
    """Writes a folder that `load` reads back and that `transformers` opens with `from_pretrained`.

    What only training reads (dropout, initial values, rematerialisation) is not kept, nor are settings of generation
    beyond the tokenizer's ids.

    Args:
      folder: is made; nothing may be in it.
      model: whose config says which family it belongs to.
      params: the model's parameters; their dtype is kept.
      tokenizer: saved beside them.
      family: `model_type` of the family to save as, such as `llama`; None: the first that has such a model.
      shard: bytes of one file of tensors, about.

    Returns:
      The `model_type` in `config.json`.

    Raises:
      ValueError: if no family has a model of this config, naming a field without a counterpart; if the parameters are
        not the model's; or if `folder` holds something.
    """
    ids = _ids(tokenizer)
    chosen = family_of(model.config, family)
    arrays = flatten(params)
    _check_params(arrays, model.config)
    try:
        with _whole(pathlib.Path(folder).resolve()) as scratch:  # a link is not replaced, but what it names is
            content = _content(chosen, model.config, arrays, ids)
            theirs = _Theirs(chosen.rows(model.config, content), arrays)
            weights.save(scratch, theirs, theirs.kinds, shard)
            if tokenizer is not None:
                tokenizer.save(scratch)
            (scratch / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"folder={str(folder)!r} cannot be written ({error.strerror or error}): name another one"
        ) from None
    return chosen.name


@contextlib.contextmanager
def _whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A scratch folder whose files become those of `target`, or vanish; raises ValueError if that is in use."""
    in_use = ValueError(f"folder={str(target)!r} is in use: name a new or empty folder")
    there = target.exists()
    if there and (not target.is_dir() or any(target.iterdir())):
        raise in_use
    new = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside a new folder, which appears at once; inside one that is there, as it may be another disk's.
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=".saving.", dir=target if there else target.parent))
    try:
        yield scratch
        if there:
            for file in sorted(scratch.iterdir(), key=lambda file: file.name == CONFIG):  # without it nothing is read
                file.rename(target / file.name)
        else:
            scratch.chmod(0o755)  # a scratch folder is closed to others
            try:
                scratch.rename(target)
            except OSError:
                raise in_use from None  # by another program meanwhile
        new = []
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in new:
            with contextlib.suppress(OSError):
                parent.rmdir()


def family_of(config: ModelConfig, name: str | None = None) -> Family:
    """The first family that has a model of this config, or the one of a name.

    Raises:
      ValueError: if there is none; it names what the nearest family has no counterpart for.
    """
    if name is not None and name not in FAMILIES:
        raise ValueError(f"family={name!r} is not known: choose one of {', '.join(FAMILIES)}")
    stacks = _stacks(config)
    for role in stacks:
        if getattr(config, role).mlp is None:
            raise ValueError(f"no family of models has {role}.mlp=None, attention without feed-forward layers")
    candidates = [FAMILIES[name]] if name else [family for family in FAMILIES.values() if family.stacks == stacks]
    refusals = []
    for order, family in enumerate(candidates):
        try:
            differences = _differences(family, config)
        except ValueError as error:
            refusals.append((FAR, order, family.name, [str(error)]))
            continue
        if not differences:
            return family
        refusals.append((len(differences), order, family.name, differences))
    _, _, nearest, differences = min(refusals)
    more = len(differences) - SHOWN
    shown = ", ".join(differences[:SHOWN]) + (f" and {more} more" if more > 0 else "")
    raise ValueError(f"no family of models has this config; the nearest, {nearest}, has no counterpart for {shown}")


def canonical(config: ModelConfig) -> ModelConfig:
    """The config with what it leaves open filled in, and what only training or another kind reads at its default."""
    stacks = {role: _canonical_stack(config, getattr(config, role)) for role in _stacks(config)}
    fields = dataclasses.fields(ModelConfig)
    training = {field.name: field.default for field in fields if field.name in TRAINING}
    return dataclasses.replace(config, **stacks, **training)


def _canonical_stack(config: ModelConfig, stack: Stack) -> Stack:
    attention, position, mlp = stack.attention, stack.position, stack.mlp
    head = config.head_width(stack)
    attention = dataclasses.replace(
        attention,
        kv_heads=config.kv_heads(stack),
        head_width=head,
        scale=head**-0.5 if attention.scale is None else attention.scale,
        windows=period(attention.windows),
        dropout=0.0,
    )
    if mlp is not None:
        experts = mlp.experts and dataclasses.replace(mlp.experts, balance=0.0, router_z=0.0)
        mlp = dataclasses.replace(mlp, width=config.mlp_width(stack), dropout=0.0, experts=experts)
    read = {
        "learned": ("offset",),
        "rotary": ("base", "fraction", "scaling"),
        "sinusoidal": ("base", "halves"),
        "relative": ("buckets", "distance"),
    }.get(position.kind, ())
    position = Position(position.kind, **{name: getattr(position, name) for name in read})
    if position.scaling.kind == "none":
        position = dataclasses.replace(position, scaling=Scaling())
    elif position.scaling.kind in ("linear", "ntk"):
        position = dataclasses.replace(position, scaling=Scaling(position.scaling.kind, position.scaling.factor))
    return dataclasses.replace(stack, attention=attention, mlp=mlp, position=position, dropout=0.0)


def period(windows: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest tuple that repeats to `windows`; () if all of them are 0."""
    for length in range(1, len(windows) + 1):
        if len(windows) % length == 0 and windows == windows[:length] * (len(windows) // length):
            return windows[:length] if any(windows[:length]) else ()
    return ()


class _Names(frozenset):
    """The tensors that will be written, which do not repeat each other."""

    def same(self, one: str, other: str) -> bool:
        return False


def _differences(family: Family, config: ModelConfig) -> list[str]:
    """What a family's config, read back, does not express; raises ValueError if it cannot be read back."""
    if family.stacks != _stacks(config):
        return [f"a model of {' and '.join(_stacks(config))}"]
    try:
        written = json.loads(json.dumps(family.write(config, {})))
    except ValueError as error:
        return [str(error)]
    rows, sizes = family.rows(config, written), shapes(config)
    names = _Names(name for row in rows if set(row.paths) <= set(sizes) for name, _ in row.names(sizes))
    got = family.read(Fields(written, CONFIG), names)
    return list(_compare(canonical(config), canonical(got), ""))


def _stacks(config: ModelConfig) -> tuple[str, ...]:
    return tuple(role for role in ("encoder", "decoder") if getattr(config, role) is not None)


def _compare(wanted: Any, got: Any, path: str) -> Iterator[str]:
    if dataclasses.is_dataclass(wanted) and type(wanted) is type(got):
        for field in dataclasses.fields(wanted):
            yield from _compare(getattr(wanted, field.name), getattr(got, field.name), f"{path}.{field.name}")
    elif wanted != got and not (_numbers(wanted, got) and math.isclose(wanted, got, rel_tol=1e-6)):
        yield f"{path.lstrip('.')}={wanted!r}"


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, float) for value in values)


def _check_params(arrays: Mapping[str, Any], config: ModelConfig) -> None:
    sizes = shapes(config)
    for path in sorted(set(sizes) ^ set(arrays)):
        raise ValueError(f"params: {path} is {'missing' if path in sizes else 'not a parameter of this model'}")
    for path, shape in sizes.items():
        if np.shape(arrays[path]) != shape:
            raise ValueError(f"params: {path} has shape {np.shape(arrays[path])}, but the model has {shape}")
        if arrays[path].dtype not in weights.NAMES:
            raise ValueError(f"params: {path} is {arrays[path].dtype}: make it one of {', '.join(DTYPES)}")


def _ids(tokenizer: text.Tokenizer | None) -> dict[str, int]:
    """The ids of special tokens, by their names in `config.json`."""
    known = (("bos_token_id", "begin"), ("eos_token_id", "end"), ("pad_token_id", "pad"))
    ids = {name: getattr(tokenizer, attribute, None) for name, attribute in known}
    return {name: value for name, value in ids.items() if value is not None}


def _content(family: Family, config: ModelConfig, arrays: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    # Without a tokenizer no id is special; left out, the publisher's library would take its own for special.
    special = {"bos_token_id": None, "eos_token_id": None, **ids}
    fields = {"architectures": [family.architecture(config)], "model_type": family.name, **family.write(config, ids)}
    return {**fields, **special, "torch_dtype": jnp.dtype(next(iter(arrays.values())).dtype).name}


class _Theirs(Mapping):
    """Their tensors, each made when it is asked for."""

    def __init__(self, rows: list[Row], ours: Mapping[str, jax.Array]):
        self._ours = ours
        sizes = {path: tuple(leaf.shape) for path, leaf in ours.items()}
        self._made = {name: (row, index) for row in rows for name, index in row.names(sizes)}
        self._made |= {row.alias: (row, ()) for row in rows if row.alias}
        self.kinds = {
            name: weights.Kind(row.shape(sizes), np.dtype(ours[row.paths[0]].dtype))
            for name, (row, _) in self._made.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        row, index = self._made[name]
        whole = [self._ours[path] for path in row.paths]
        return row.write([np.asarray(array[index] if index else array) for array in whole])

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
