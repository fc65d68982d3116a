"""What every corpus on disk shares: it is made once, by a tokenizer of its own or a given one; its recipe names it."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from transformer import text
from transformer.data import storage
from transformer.data.config import Data, Objective
from transformer.data.spans import noise, span_lengths

MASK = "[MASK]"
SENTINEL = "<extra_id_{}>"  # as T5 calls them

Value = str | int | float | bool
Made = TypeVar("Made")


def once(
    folder: pathlib.Path,
    request: Mapping[str, Value],
    read: Callable[[dict, dict[str, np.ndarray], text.Tokenizer], Made],
    build: Callable[[], None],
) -> Made:
    """What lies in `folder` if it was made for `request`; otherwise `build` makes it.

    Args:
      read: from the record, the arrays and the tokenizer that are there.
      build: writes all of them to `folder`.

    Raises:
      ValueError: if the folder holds something made for another request, naming what differs, or changes meanwhile.
    """
    if (made := existing(folder, request, read)) is not None:
        return made
    if recorded := storage.read_record(folder).get("request"):
        check_fingerprint(recorded, request)
    storage.refuse_strangers(folder)
    build()
    if (made := existing(folder, request, read)) is not None:
        return made
    raise ValueError(f"folder={str(folder)!r} was changed by another program meanwhile: give each run its own")


def existing(
    folder: pathlib.Path,
    request: Mapping[str, Value] | None,
    read: Callable[[dict, dict[str, np.ndarray], text.Tokenizer], Made],
) -> Made | None:
    """What lies in `folder` if it is whole and was made for `request`."""
    record = storage.read_record(folder)
    if request is None or record.get("request") != dict(request):
        return None
    arrays = storage.read_arrays(folder, record)
    if arrays is None:
        return None
    try:
        tokenizer = text.load(folder)
    except (ValueError, FileNotFoundError):
        return None
    return read(record, arrays, tokenizer) if tokenizer.fingerprint == record["recipe"]["tokenizer"] else None


def write(
    folder: pathlib.Path,
    request: Mapping[str, Value],
    tokenizer: text.Tokenizer,
    arrays: Mapping[str, np.ndarray],
    counts: Mapping[str, Any],
) -> None:
    """Puts a corpus into `folder`, whole."""
    recipe = {**request, "tokenizer": tokenizer.fingerprint}
    record = {"fingerprint": fingerprint(recipe), "recipe": recipe, "request": request, "counts": counts}
    storage.write(folder, record, arrays, tokenizer.save)


def fingerprint(recipe: Mapping[str, Value]) -> str:
    """The SHA-256 of a recipe, as a checkpoint keeps it."""
    return hashlib.sha256(json.dumps(dict(recipe), sort_keys=True).encode()).hexdigest()


class Changed(ValueError):
    """The data is not what a run began with: `changes` says of each field what it was and is."""

    def __init__(self, changes: Mapping[str, str]):
        said = "; ".join(changes.values())
        super().__init__(f"the data is not what the run began with: {said}; restore it or begin a new run")
        self.changes = changes


def check_fingerprint(expected: Mapping[str, Value], actual: Mapping[str, Value]) -> None:
    """Compares two values of `Corpus.recipe`: what a run began with, and what it would go on with.

    Raises:
      Changed: naming every field that differs, with both values.
    """
    names = [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]
    if names:
        raise Changed(
            {f"data.{name}": f"data.{name} was {_short(expected, name)}, now {_short(actual, name)}" for name in names}
        )


def _short(recipe: Mapping[str, Value], name: str) -> str:
    return str(recipe.get(name, "absent"))[:12]  # enough of a hash to tell two apart


def digest(texts: Iterable[str]) -> str:
    """The SHA-256 of texts, which notices where one ends and the next begins."""
    content = hashlib.sha256()
    for one in texts:
        encoded = one.encode()
        content.update(len(encoded).to_bytes(8) + encoded)
    return content.hexdigest()


def load_tokenizer(config: Data) -> text.Tokenizer | None:
    """The tokenizer in the folder that the configuration names, if it does."""
    if config.tokenizer.folder is None:
        return None
    try:
        return text.load(pathlib.Path(config.tokenizer.folder).expanduser())
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"data.tokenizer: {error}") from None


def wanted_tokenizer(config: Data, loaded: text.Tokenizer | None) -> str:
    """What determines the tokenizer beside the text: the fingerprint of a loaded one, or how one is trained."""
    if loaded is not None:
        return loaded.fingerprint
    wanted = config.tokenizer
    options = {"bpe": {"vocab": wanted.vocab}, "characters": {"fallback": wanted.fallback, "end": wanted.end}}
    return " ".join([wanted.kind, *(f"{name}={value}" for name, value in options.get(wanted.kind, {}).items())])


def train_tokenizer(config: Data, train: Iterable[str], everything: Iterable[str]) -> text.Tokenizer:
    """A tokenizer that learns from the training side only; a table of characters is the exception, because one that
    lacks a validation character could not spell it."""
    wanted = config.tokenizer
    if wanted.kind == "characters":
        return text.Characters.train(everything, fallback=wanted.fallback, end=wanted.end)
    special = special_tokens(config.objective, config.length) if wanted.kind == "bpe" else ()
    return text.train(wanted.kind, train, wanted.vocab, **({"special": special} if special else {}))


def special_tokens(objective: Objective, length: int) -> tuple[str, ...]:
    """The names of the tokens that an objective needs beside the end, in rows of `length`."""
    if objective.kind == "masked":
        return (MASK,)
    if objective.kind == "spans":
        return tuple(SENTINEL.format(index) for index in range(most_spans(objective, length)))
    return ()


def most_spans(objective: Objective, length: int) -> int:
    """The spans in the longest row whose source has `length` tokens."""
    tokens, _ = span_lengths(length, rate=objective.rate, span=objective.span)
    return noise(tokens, rate=objective.rate, span=objective.span)[1]


def check_tokenizer(config: Data, tokenizer: text.Tokenizer) -> None:
    """Raises ValueError unless a tokenizer has the special tokens that the objective needs."""
    objective = config.objective
    named = f"the tokenizer of kind {tokenizer.kind!r}"
    advice = "choose another, or let tokenizer.kind='bpe' be trained"
    if config.segments and objective.kind != "pairs" and tokenizer.opening is None:
        raise ValueError(f"data.segments=True needs a token that opens documents, and {named} has none: choose another")
    if objective.kind == "masked" and tokenizer.mask is None:
        raise ValueError(f"data.objective.kind='masked' needs a mask token, and {named} has none: {advice}")
    if objective.kind in ("pairs", "spans") and tokenizer.end is None:
        table = tokenizer.kind == "characters" and objective.kind == "pairs"
        fix = "set data.tokenizer.end=True" if table else advice
        raise ValueError(
            f"data.objective.kind={objective.kind!r} needs a token that ends texts, and {named} has none: {fix}"
        )
    if objective.kind == "pairs" and tokenizer.kind == "marian":
        raise ValueError(f"data.objective.kind='pairs': {named} spells source texts alone: choose another tokenizer")
    if objective.kind == "spans" and len(tokenizer.sentinels) < (spans := most_spans(objective, config.length)):
        raise ValueError(
            f"data.objective.kind='spans' needs {spans} sentinels at data.length={config.length}, and {named} has "
            f"{len(tokenizer.sentinels)}: {advice}, or lower data.length"
        )


def begins_with(tokenizer: text.Tokenizer) -> int | None:
    """What a decoder beside an encoder begins with: padding, as T5 and Marian do, or else the end of a text."""
    return tokenizer.end if tokenizer.pad is None else tokenizer.pad
