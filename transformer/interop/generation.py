"""Which ids begin and end what a pretrained model writes."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

from transformer.interop import files
from transformer.interop.files import CONFIG
from transformer.interop.load import resolve

GENERATION = "generation_config.json"


class Generation(NamedTuple):
    """The ids that a folder names.

    Attributes:
      start: what the decoder of an encoder-decoder reads first; None if nothing says so.
      stop: what ends a text; models that converse have several.
    """

    start: int | None
    stop: tuple[int, ...]


def generation(folder: str | os.PathLike[str]) -> Generation:
    """The ids in `generation_config.json`, and where that says nothing in `config.json`.

    Raises:
      FileNotFoundError, ValueError: as `load`, or if an id is no whole number from 0 up.
    """
    folder = resolve(folder)
    stop = _ids(folder, "eos_token_id")
    start = _ids(folder, "decoder_start_token_id")
    return Generation(start[0] if start else None, stop)


def _ids(folder: pathlib.Path, name: str) -> tuple[int, ...]:
    for path in (folder / GENERATION, folder / CONFIG):
        value = files.read(path).get(name) if path.is_file() else None
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not ids or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
            raise ValueError(f"{path}: {name}={value!r} must be a token id, or a list of them")
        return tuple(ids)
    return ()
