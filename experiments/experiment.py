"""One experiment: what a recipe states, what the command line overrides, what a checkpoint keeps."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from transformer.data.config import Data
from transformer.models.config import ModelConfig, Stack
from transformer.training.config import Training

SHAPES = {  # by objective: whether the model has an encoder, a decoder, and how to say so
    "causal": (False, True, "predicting the next token needs a decoder alone: set decoder, leave encoder None"),
    "prefix": (False, True, "a prefix language model needs a decoder alone: set decoder, leave encoder None"),
    "masked": (True, False, "predicting masked tokens needs an encoder alone: set encoder, leave decoder None"),
    "spans": (True, True, "predicting corrupted spans needs an encoder and a decoder: set both"),
    "pairs": (True, True, "predicting a target from a source needs an encoder and a decoder: set both"),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A recipe in `experiments/configs/` returns `Experiment(...).mutable()` from `get_config()`."""

    model: ModelConfig
    data: Data = Data()
    training: Training = Training()
    seed: int = 0
    prompts: tuple[str, ...] = ()  # continued when training is over; the last one's next tokens are listed
    initial: str | None = None  # a pretrained folder, or a run, whose model and tokenizer training begins with

    def __post_init__(self):
        if self.initial == "":
            raise ValueError("initial='' cannot work: name a folder or a run, or leave it out")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} cannot work: choose one from 0 to 2**32 - 1")
        if self.initial is None:  # otherwise the model is another one, which `beginning_with` checks
            self.check()

    def check(self) -> None:
        """Raises ValueError unless model, data and training fit each other."""
        kind, model = self.data.objective.kind, self.model
        if (model.encoder is not None, model.decoder is not None) != SHAPES[kind][:2]:
            raise ValueError(f"model: {SHAPES[kind][2]}")
        if self.training.batch_tokens and (kind != "pairs" or self.data.segments):
            raise ValueError(
                f"training.batch_tokens={self.training.batch_tokens} counts places of pairs that are not packed, with "
                f"data.objective.kind='pairs': leave it 0 and set training.batch_size"
            )
        if self.data.length > self.model.length:
            raise ValueError(
                f"data.length={self.data.length} exceeds model.length={self.model.length}: "
                + ("raise the latter" if self.initial is None else "lower the former")
            )
        tokenizer = self.data.tokenizer
        known = {"bpe": tokenizer.vocab, "bytes": 257}  # a table of characters depends on the corpus
        if tokenizer.folder is None and tokenizer.kind in known:
            self.check_vocabulary(known[tokenizer.kind])

    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError if the model has fewer entries than a tokenizer of this size."""
        if size > self.model.vocab:
            fix = f"set --config.model.vocab={size} or more, or choose a smaller tokenizer"
            if self.initial is not None:
                fix = "it is the initial model's: choose the tokenizer that it was trained with"
            raise ValueError(f"model.vocab={self.model.vocab} is too small for the tokenizer's {size} entries: {fix}")

    def beginning_with(self, model: ModelConfig, tokenizer: str) -> Experiment:
        """This experiment with the architecture and the tokenizer of `initial`.

        What only training reads stays the recipe's: dropout rates, weights of routers' losses where both have experts,
        dtypes, unroll, rematerialisation and the implementation of attention.

        Args:
          model: the config of `initial`.
          tokenizer: the folder of its tokenizer, taken unless the recipe names one.

        Raises:
          ValueError: if model, data and training do not fit each other.
        """
        names = ("dtype", "param_dtype", "remat", "attention_implementation", "init")
        read = {name: getattr(self.model, name) for name in names}
        stacks, unroll = {"encoder": model.encoder, "decoder": model.decoder}, self.model.unroll
        for name, stack in stacks.items():
            if stack is not None:
                unroll = min(unroll, stack.depth)
                stacks[name] = _trained_as(stack, getattr(self.model, name) or Stack())
        data = self.data
        if data.tokenizer.folder is None:
            data = dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, folder=tokenizer))
        model = dataclasses.replace(model, **stacks, unroll=unroll, **read)
        experiment = dataclasses.replace(self, model=model, data=data)
        try:
            experiment.check()
        except ValueError as error:
            raise ValueError(f"initial={self.initial!r}, whose model cannot be changed here: {error}") from None
        return experiment

    def mutable(self) -> ConfigDict:
        """The tree as the flag library wants it, with types kept for fields that are None."""
        return _mutable(self)

    def dictionary(self) -> dict[str, Any]:
        """The tree as plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def build(cls, tree: Mapping[str, Any] | ConfigDict) -> Experiment:
        """The frozen tree from `mutable()` or from `dictionary()` after JSON.

        Raises:
          ValueError: one line that names the field that is unknown, missing, or cannot work.
        """
        return _build(cls, tree, "config")


def _trained_as(stack: Stack, source: Stack) -> Stack:
    """A stack with the dropout rates of another one, and the weights of its routers' losses."""
    attention = dataclasses.replace(stack.attention, dropout=source.attention.dropout)
    mlp = stack.mlp
    if mlp is not None:
        experts, others = mlp.experts, source.mlp and source.mlp.experts
        if experts and others:
            experts = dataclasses.replace(experts, balance=others.balance, router_z=others.router_z)
        mlp = dataclasses.replace(mlp, dropout=source.mlp.dropout if source.mlp else 0.0, experts=experts)
    return dataclasses.replace(stack, attention=attention, mlp=mlp, dropout=source.dropout)


def _mutable(node: Any) -> ConfigDict:
    hints, tree = typing.get_type_hints(type(node)), ConfigDict()
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        inner = without_none(hints[field.name])
        if dataclasses.is_dataclass(value):
            tree[field.name] = _mutable(value)
        elif inner is not hints[field.name] and not dataclasses.is_dataclass(inner):
            tree[field.name] = FieldReference(value, field_type=inner)
        else:
            tree[field.name] = value
    return tree


def check_field(name: str, hints: Mapping[str, Any], path: str) -> None:
    """Raises ValueError, naming the nearest fields, unless `hints`, the fields at `path`, has this one."""
    if name not in hints:
        near = difflib.get_close_matches(name, hints, cutoff=0.5) or sorted(hints)
        has = f"the nearest are {', '.join(near)}" if hints else "it is a single value"
        raise ValueError(f"{path} has no field {name!r}: {has}")


def _leaf(kind: Any, value: Any, path: str) -> Any:
    """A value of the type that a field's annotation asks for; JSON's lists become tuples."""
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if isinstance(value, (list, tuple)):
            return tuple(_leaf(element, item, f"{path}[{index}]") for index, item in enumerate(value))
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise ValueError(f"{path}={value!r} cannot work: it must be of type {wanted}")


def _build(kind: Any, tree: Any, path: str) -> Any:
    inner = without_none(kind)
    optional = inner is not kind
    if tree is None and optional:
        return None
    if not dataclasses.is_dataclass(inner):
        return _leaf(inner, tree, path)
    hints = typing.get_type_hints(inner)
    for name in tree:
        check_field(name, hints, path)
    values = {name: _build(hints[name], tree[name], f"{path}.{name}") for name in tree}
    try:
        return inner(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def without_none(kind: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(inner for inner in typing.get_args(kind) if inner is not type(None))
    return kind
