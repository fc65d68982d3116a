"""Which ids begin and end what a pretrained model writes."""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

from transformer.interop import files
from transformer.interop.files import CONFIG
from transformer.interop.hub import resolve

GENERATION = "generation_config.json"


class Generation(NamedTuple):
    """The ids that a folder names.

    Attributes:
      start: what the decoder of an encoder-decoder reads first; None if nothing says so.
      stop: what ends a text; models that converse have several.
      banned: what is never written: `suppress_tokens`, and of `bad_words_ids` the words of one token. Marian so never
        writes padding.
    """

    start: int | None
    stop: tuple[int, ...]
    banned: tuple[int, ...]


def generation(folder: str | os.PathLike[str]) -> Generation:
    """The ids in `generation_config.json`, and where that says nothing in `config.json`.

    Raises:
      FileNotFoundError, ValueError: as `load`, or if an id is no whole number from 0 up.
    """
    folder = resolve(folder)
    start, words = _ids(folder, "decoder_start_token_id"), _named(folder, "bad_words_ids")[1] or ()
    single = [word[0] for word in words if isinstance(word, list) and len(word) == 1]
    banned = (*_ids(folder, "suppress_tokens"), *(one for one in single if isinstance(one, int) and one >= 0))
    return Generation(start[0] if start else None, _ids(folder, "eos_token_id"), banned)


def _named(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, Any]:
    """The file that gives a field a value, and the value; None where none does."""
    for path in (folder / GENERATION, folder / CONFIG):
        value = files.read(path).get(name) if path.is_file() else None
        if value is not None:
            return path, value
    return folder / CONFIG, None


def _ids(folder: pathlib.Path, name: str) -> tuple[int, ...]:
    path, value = _named(folder, name)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
        raise ValueError(f"{path}: {name}={value!r} must be a token id, or a list of them")
    return tuple(ids)
