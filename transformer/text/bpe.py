"""Byte-level byte-pair encoding as in GPT-2 (Radford et al. 2019, section 2.2; BPE: Sennrich et al. 2016).

Text is cut into words by GPT-2's pattern, words into UTF-8 bytes, and the most frequent neighbours are merged, again
and again. The 256 bytes are in every vocabulary, so there is no unknown text. The `tokenizers` library does the work.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from transformer.text import spelling, storage
from transformer.text.tokenizer import END, Tokenizer

SETTINGS = "tokenizer_config.json"  # Hugging Face's name for what tokenizer.json leaves out
SMALLEST = 257  # every byte, and the end
BLOCK = 4_000_000  # characters in a call to the library, which keeps several times their size meanwhile


class BPE(Tokenizer):
    """Byte-level BPE. `BPE.train` and `BPE.load` make one; `<|endoftext|>` within text is ordinary text.

    Args:
      table: the library's tokenizer: a BPE model over the byte alphabet. It is taken over, not copied.
      end: how the end id is written in its vocabulary; None if it has none.

    Raises:
      ValueError: if `table` is not byte-level BPE, lacks a byte, or lacks `end`.
    """

    kind = "bpe"
    errors = spelling.REPLACE

    def __init__(self, table: tokenizers.Tokenizer, *, end: str | None = END):
        vocabulary = table.get_vocab(with_added_tokens=True)
        if not isinstance(table.model, models.BPE) or "ByteLevel" not in repr(table.decoder):
            raise ValueError(f"expected byte-level BPE, got {type(table.model).__name__} decoded by {table.decoder}")
        missing = [byte for letter, byte in _alphabet().items() if letter not in vocabulary]
        if missing:
            raise ValueError(f"byte {missing[0]} is not in the vocabulary: byte-level BPE needs all 256")
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(f"the ids of the vocabulary must be 0 to {len(vocabulary) - 1}, each once")
        if end is not None and end not in vocabulary:
            raise ValueError(f"the end token {end!r} is not in the vocabulary of {len(vocabulary)}")
        if end is not None:
            table.add_special_tokens([end])  # in the vocabulary already, so it keeps its id
        table.encode_special_tokens = True  # as text
        table.no_truncation()
        table.no_padding()
        self._tokenizer = table
        self._end = end
        self.end = None if end is None else vocabulary[end]
        self.spellings = _spellings(vocabulary)

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int) -> BPE:
        """Learns merges from `texts`, the same ones every time; the end id comes last.

        Args:
          texts: documents.
          vocab: how many ids to learn, the 256 bytes and the end included. A corpus too small for that gives fewer:
            `size` says how many.

        Raises:
          ValueError: if `vocab` is below 257, or a text is no string or holds a lone surrogate.
        """
        if not isinstance(vocab, (int, np.integer)) or vocab < SMALLEST:
            raise ValueError(
                f"vocab={vocab!r} must be an integer from {SMALLEST} up: the 256 bytes and the end come first"
            )
        table = _byte_level(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
        table.train_from_iterator(map(_without_surrogates, spelling.check_texts(texts)), trainer)
        table.add_special_tokens([END])
        return cls(table)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`: `[T]` int32. Raises ValueError if `text` is no string or holds a lone surrogate."""
        return self.encode_batch([spelling.check_text(text)])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, in order, on all cores (`TOKENIZERS_PARALLELISM=false` in the environment: on one)."""
        # The fast variant leaves out where tokens lie in the text, which takes a third of the time.
        checked = map(_without_surrogates, spelling.check_texts(texts))
        return [
            np.array(encoding.ids, np.int32)
            for block in _blocks(checked)
            for encoding in self._tokenizer.encode_batch_fast(block, add_special_tokens=False)
        ]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes Hugging Face's `tokenizer.json` and `tokenizer_config.json`. Raises as `Tokenizer.save`."""
        path = storage.claim(folder, self.kind)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,  # otherwise " ." decodes to "."
            "eos_token": self._end,
        }
        storage.write_json(path / SETTINGS, settings)
        storage.write(path / storage.BPE, self._tokenizer.to_str())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> BPE:
        """Reads `tokenizer.json`, or else GPT-2's `vocab.json` and `merges.txt`.

        The end is the `eos_token` of `tokenizer_config.json` if there is that file, else `<|endoftext|>` if the
        vocabulary has it.

        Raises:
          ValueError: if a file is damaged, or holds another kind of table than byte-level BPE.
        """
        path = pathlib.Path(folder)
        whole = (path / storage.BPE).is_file()
        table = _read_whole(path / storage.BPE) if whole else _read_pair(path)
        end = _read_end(path / SETTINGS, table)
        try:
            return cls(table, end=end)
        except ValueError as error:
            raise storage.damaged(path / (storage.BPE if whole else storage.VOCABULARY), error) from None

    def __reduce__(self) -> tuple[object, ...]:
        # The library's own pickle forgets that special tokens within text are text.
        return _revive, (self._tokenizer.to_str(), self._end)

    def _table(self) -> object:
        content = json.loads(self._tokenizer.to_str())
        vocabulary = sorted(self._tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        cutting = [content["normalizer"], content["pre_tokenizer"]]
        return [vocabulary, content["model"]["merges"], cutting, self._end]


def _revive(table: str, end: str | None) -> BPE:
    return BPE(tokenizers.Tokenizer.from_str(table), end=end)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    table = tokenizers.Tokenizer(model)
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    return table


def _alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a vocabulary, as GPT-2 chose them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _spellings(vocabulary: dict[str, int]) -> tuple[bytes, ...]:
    alphabet = _alphabet()
    out = [b""] * len(vocabulary)
    for token, index in vocabulary.items():
        # Added tokens are written as they are, not in the alphabet of bytes.
        in_bytes = all(letter in alphabet for letter in token)
        out[index] = bytes(alphabet[letter] for letter in token) if in_bytes else token.encode()
    return tuple(out)


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text[{error.start}] is {text[error.start]!r}, a lone surrogate, which UTF-8 cannot spell: decode the "
            "text with errors='replace', or use the kind 'bytes'"
        ) from None
    return text


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block, length = [], 0
    for text in texts:
        block.append(text)
        length += len(text)
        if length >= BLOCK:
            yield block
            block, length = [], 0
    if block:
        yield block


def _read_whole(path: pathlib.Path) -> tokenizers.Tokenizer:
    model = storage.read_object(path).get("model")
    try:
        if isinstance(model, dict) and model.get("type") == "BPE":
            _check_merges(model["vocab"], model["merges"])
        return tokenizers.Tokenizer.from_str(storage.read(path))
    except Exception as error:  # the library raises nothing more exact
        raise storage.damaged(path, error) from None


def _read_pair(folder: pathlib.Path) -> tokenizers.Tokenizer:
    vocabulary = storage.read_object(folder / storage.VOCABULARY)
    # Not splitlines: it cuts at characters that stand for bytes here.
    lines = [line.rstrip("\r") for line in storage.read(folder / storage.MERGES).split("\n")]
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        _check_merges(vocabulary, merges)
        return _byte_level(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:
        raise storage.damaged(folder / f"{storage.VOCABULARY} with {storage.MERGES}", error) from None


def _check_merges(vocabulary: dict[str, int], merges: Sequence[str | Sequence[str]]) -> None:
    """What the library would not refuse but abort on, with a trace of its own on the terminal."""
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or "".join(pair) not in vocabulary:
            raise ValueError(f"merge {' '.join(pair)!r} does not make two tokens one of the vocabulary")


def _read_end(path: pathlib.Path, table: tokenizers.Tokenizer) -> str | None:
    settings = storage.read_object(path) if path.is_file() else {}
    if "eos_token" in settings:
        token = settings["eos_token"]
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise storage.damaged(path, f"eos_token={token!r} is no string")
        return token
    return END if table.token_to_id(END) is not None else None
