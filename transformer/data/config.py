"""What the model reads: where text comes from, how it is split, how it becomes tokens. Every default stands here."""

from __future__ import annotations

import dataclasses
import os

SPLITS = ("document", "tail")
TOKENIZERS = ("bpe", "bytes", "characters")
STDLIB = "stdlib"
TFDS = "tfds:"
TASK = "task:"
OBJECTIVES = {  # the fields that each one reads
    "causal": (),
    "prefix": (),
    "masked": ("rate", "whole_words"),
    "spans": ("rate", "span"),
    "pairs": (),
}
# Of a task's texts: the shortest and the longest, where its path says neither; dates have no length.
RANGES = {"copy": (1, 16), "reverse": (1, 16), "sort": (1, 16), "addition": (1, 4), "dates": None}
MISFITS = ("error", "truncate", "drop")


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
class Objective:
    """What is predicted from what (see `objectives`)."""

    kind: str = "causal"
    rate: float = 0.15  # masked, spans: the share of tokens that are predicted
    whole_words: bool = False  # masked: all tokens of a word, or none
    span: float = 3.0  # spans: the mean length of what one sentinel stands for

    def __post_init__(self):
        _require(self.kind in OBJECTIVES, "objective.kind", self.kind, f"choose one of {', '.join(OBJECTIVES)}")
        _require(0 < self.rate < 1, "objective.rate", self.rate, "it is a share of the tokens, between 0 and 1")
        _require(self.span >= 1, "objective.span", self.span, "a span has at least one token")
        for name in ("rate", "whole_words", "span"):
            if name not in OBJECTIVES[self.kind]:
                default = getattr(Objective, name)
                fix = f"objective.kind={self.kind!r} does not read it; leave it at {default}"
                _require(getattr(self, name) == default, f"objective.{name}", getattr(self, name), fix)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of texts, where `Data.path` names them (see `pairs`)."""

    source: str | None = None  # of tables, JSON lines, tfds: the name of the source's column; None: their own order
    target: str | None = None
    validation: str | None = None  # held-out pairs, written like `Data.path`; None: a share of all, by their hash
    misfits: str = "error"  # pairs with an empty or too long side: "truncate" cuts long ones, "drop" leaves both out
    count: int = 50_000  # tasks: how many pairs are generated

    def __post_init__(self):
        _one_of("pairs.misfits", self.misfits, MISFITS)
        _require(self.count > 1, "pairs.count", self.count, "one to train on and one to hold out: 2 or more")
        _require((self.source is None) == (self.target is None), "pairs.target", self.target, "name both or neither")
        for name in ("source", "target", "validation"):
            _require(getattr(self, name) != "", f"pairs.{name}", "", "name one, or leave it None")


@dataclasses.dataclass(frozen=True)
class Data:
    """A corpus, from its source to fixed-length rows of tokens."""

    # "stdlib", a text file, a folder of text files, or "tfds:NAME[/CONFIG][:VERSION]"; for pairs "SOURCE,TARGET" (two
    # parallel files), a .tsv or .jsonl file, "tfds:...[@SPLIT]", or "task:NAME[:SHORTEST-LONGEST]"
    path: str = STDLIB
    objective: Objective = Objective()
    length: int = 256  # T: tokens a row predicts; pairs: at most so many on either side; spans: so many are read
    validation: float = 0.1  # the share held out
    split: str = "document"  # document: whole documents are held out; tail: the end of all text in order
    tokenizer: Tokenizer = Tokenizer()
    segments: bool = False  # attention stays within a document: batches carry segments and positions
    limit: int = 12_000_000  # stdlib: bytes of text at most
    suffixes: tuple[str, ...] = (".txt", ".md")  # folders: the files that are read
    tfds: Tfds = Tfds()
    pairs: Pairs = Pairs()

    def __post_init__(self):
        _require(bool(self.path), "path", self.path, "give 'stdlib', a text file, a folder or 'tfds:NAME'")
        _require(self.path != TFDS, "path", self.path, "name the dataset: 'tfds:NAME[/CONFIG][:VERSION]'")
        _require(self.length > 0, "length", self.length, "it must be positive")
        _require(0.0 < self.validation < 1.0, "validation", self.validation, "it must lie between 0 and 1")
        _one_of("split", self.split, SPLITS)
        _require(self.limit > 0, "limit", self.limit, "it must be positive")
        dotted = bool(self.suffixes) and all(len(s) > 1 and s.startswith(".") for s in self.suffixes)
        _require(dotted, "suffixes", self.suffixes, "give at least one, each with its dot, such as '.txt'")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuses what was set about pairs, or about text, and would be ignored."""
        pairs = self.pairs
        if self.objective.kind != "pairs":
            _require(pairs == Pairs(), "pairs", pairs, "objective.kind='pairs' reads it; leave it as it is")
            return
        _require(self.split == "document", "split", self.split, "pairs are held out by their hash: leave it 'document'")
        fix = "these are the pairs that are trained on: name others, or None to hold a share of them out"
        held = None if pairs.validation is None else self.resolved(pairs.validation)
        _require(held != self.resolved(self.path), "pairs.validation", pairs.validation, fix)
        paths = (self.path, pairs.validation or "")
        named = any(path.startswith(TFDS) or path.lower().endswith((".tsv", ".jsonl")) for path in paths)
        fix = "only .tsv and .jsonl files and tfds: have names of columns; leave it None"
        _require(named or pairs.source is None, "pairs.source", pairs.source, fix)
        generated = any(path.startswith(TASK) for path in paths)
        fix = f"only task: has as many pairs as one likes; leave it at {Pairs.count}"
        _require(generated or pairs.count == Pairs.count, "pairs.count", pairs.count, fix)

    def resolved(self, path: str) -> tuple[str, ...]:
        """The pairs that a path names, the same for all ways to write it: files, or the parts of another name."""
        if path.startswith(TASK):
            name, colon, lengths = path.removeprefix(TASK).partition(":")
            if not colon and RANGES.get(name):
                lengths = "{}-{}".format(*RANGES[name])
            return TASK, name, *(length.lstrip("0") for length in lengths.split("-"))
        if path.startswith(TFDS):
            name, at, split = path.removeprefix(TFDS).partition("@")
            return TFDS, name, split if at else self.tfds.split
        table = path.lower().endswith((".tsv", ".jsonl")) and os.path.isfile(os.path.expanduser(path))
        names = [path] if table else [name.strip() for name in path.split(",")]
        return tuple(os.path.realpath(os.path.expanduser(name)) for name in names)
