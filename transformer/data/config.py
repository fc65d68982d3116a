"""What the model reads: where text comes from, how it is split, how it becomes tokens. Every default stands here."""

from __future__ import annotations

import dataclasses

SPLITS = ("document", "tail")
TOKENIZERS = ("bpe", "bytes", "characters")
STDLIB = "stdlib"
TFDS = "tfds:"


def _require(condition: bool, field: str, value: object, fix: str) -> None:
    if not condition:
        raise ValueError(f"{field}={value!r} cannot work: {fix}")


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, field, value, f"choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer trained on the corpus, or one loaded from a folder."""

    kind: str = "bpe"
    vocab: int = 4096  # bpe: how many ids to learn
    fallback: bool = True  # characters: spell unknown characters in bytes instead of refusing them
    end: bool = False  # characters: open each document with an end token, as the other kinds always do
    folder: str | None = None  # load a saved tokenizer from here; then nothing above is read

    def __post_init__(self):
        _one_of("tokenizer.kind", self.kind, TOKENIZERS)
        _require(self.vocab > 256, "tokenizer.vocab", self.vocab, "the 256 bytes come first: use more than 256")
        _require(self.folder != "", "tokenizer.folder", self.folder, "name a folder, or None to train a tokenizer")


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Which part of a prepared TensorFlow Dataset is read."""

    folder: str | None = None  # where datasets are prepared; None: the library's own default
    split: str = "train"
    feature: str = "text"

    def __post_init__(self):
        for name in ("split", "feature"):
            _require(bool(getattr(self, name)), f"tfds.{name}", getattr(self, name), "it must not be empty")


@dataclasses.dataclass(frozen=True)
class Data:
    """A corpus, from its source to fixed-length rows of tokens."""

    path: str = STDLIB  # "stdlib", a text file, a folder of text files, or "tfds:NAME[/CONFIG][:VERSION]"
    length: int = 256  # T: tokens a row predicts
    validation: float = 0.1  # the share held out
    split: str = "document"  # document: whole documents are held out; tail: the end of all text in order
    tokenizer: Tokenizer = Tokenizer()
    segments: bool = False  # attention stays within a document: batches carry segments and positions
    limit: int = 12_000_000  # stdlib: bytes of text at most
    suffixes: tuple[str, ...] = (".txt", ".md")  # folders: the files that are read
    tfds: Tfds = Tfds()

    def __post_init__(self):
        _require(bool(self.path), "path", self.path, "give 'stdlib', a text file, a folder or 'tfds:NAME'")
        _require(self.path != TFDS, "path", self.path, "name the dataset: 'tfds:NAME[/CONFIG][:VERSION]'")
        _require(self.length > 0, "length", self.length, "it must be positive")
        _require(0.0 < self.validation < 1.0, "validation", self.validation, "it must lie between 0 and 1")
        _one_of("split", self.split, SPLITS)
        _require(self.limit > 0, "limit", self.limit, "it must be positive")
        dotted = bool(self.suffixes) and all(len(s) > 1 and s.startswith(".") for s in self.suffixes)
        _require(dotted, "suffixes", self.suffixes, "give at least one, each with its dot, such as '.txt'")
