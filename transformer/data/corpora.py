"""Corpora by what they hold: text that runs on, or pairs of texts."""

from __future__ import annotations

import os
import pathlib

from transformer import text
from transformer.data import bitext, corpus, preparing, storage
from transformer.data.bitext import Bitext
from transformer.data.config import Data
from transformer.data.corpus import Corpus


def prepare(config: Data, folder: str | os.PathLike[str], tokenizer: text.Tokenizer | None = None) -> Corpus | Bitext:
    """The corpus of a configuration, in `folder`; see `corpus.prepare`, and for pairs `bitext.prepare`."""
    kind = bitext if config.objective.kind == "pairs" else corpus
    return kind.prepare(config, folder, tokenizer)


def load(folder: str | os.PathLike[str]) -> Corpus | Bitext:
    """What `prepare` left in `folder`, without its source.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    folder = pathlib.Path(folder).expanduser().resolve()
    record = storage.read_record(folder)
    kind = bitext if "train_source" in record.get("digests", {}) else corpus
    found = preparing.existing(folder, record.get("request"), kind.read)
    if found is None:
        raise ValueError(f"folder={str(folder)!r} holds no intact corpus: train there again, which mends it")
    return found
