"""Every distinct character of a corpus is a token, as in char-rnn (Karpathy 2015), with bytes for all the others."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

import numpy as np

from transformer.text import spelling, storage
from transformer.text.byte import BYTES
from transformer.text.tokenizer import END, Tokenizer

LONGER = np.array([0x80, 0x800, 0x10000])  # the code points from which UTF-8 takes one byte more


class Characters(Tokenizer):
    """Ids are the characters in order of code point; then, with a fallback, the 256 bytes; then, if asked, an end id.

    With `fallback=False` and `end=False` the ids are exactly the indices in `sorted(set(text))`.

    Args:
      characters: the distinct characters, as one string or several.
      fallback: spell a character outside the table in UTF-8 bytes, instead of refusing it.
      end: add an end-of-text id, the last.

    Raises:
      ValueError: if there are no characters.
    """

    kind = "characters"

    def __init__(self, characters: Iterable[str], *, fallback: bool = True, end: bool = False):
        distinct: set[str] = set()
        for text in characters:
            distinct.update(text)
        self.characters = tuple(sorted(distinct))
        if not self.characters:
            raise ValueError(
                "characters is empty, so there is nothing to number: give text with at least one character"
            )
        self.fallback = fallback
        closing = (END.encode(),) if end else ()
        self.spellings = (*map(spelling.utf8, self.characters), *(BYTES if fallback else ()), *closing)
        self.end = len(self.spellings) - 1 if end else None
        self._points = np.array([ord(character) for character in self.characters], np.uint32)

    @classmethod
    def train(cls, texts: Iterable[str], *, fallback: bool = True, end: bool = False) -> Characters:
        """The table of all characters in `texts`; arguments and errors as for the class."""
        return cls(spelling.check_texts(texts), fallback=fallback, end=end)

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """Ids of `text`: `[T]` int32, one for each character in the table and one for each byte of any other.

        With `special` they stand behind the end id, if there is one.

        Raises:
          ValueError: if `text` is no string; without a fallback, at the first character outside the table.
        """
        points = np.frombuffer(spelling.check_text(text).encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = np.searchsorted(self._points, points).astype(np.int32)
        known = self._points[np.minimum(ids, len(self._points) - 1)] == points
        if not known.all():
            if not self.fallback:
                raise ValueError(self._unknown(text, int(np.argmin(known))))
            ids = self._fall_back(ids, known, points)
        return self._opened(ids) if special else ids

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `characters.json`. Raises as `Tokenizer.save`."""
        content = {"kind": self.kind, **self._table(), "fingerprint": self.fingerprint}
        storage.write_json(storage.claim(folder, self.kind, storage.CHARACTERS) / storage.CHARACTERS, content)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Characters:
        """Reads what `save` wrote. Raises ValueError if the file is damaged."""
        path = pathlib.Path(folder) / storage.CHARACTERS
        content = storage.read_object(path)
        characters = content.get("characters")
        if not isinstance(characters, list) or not all(isinstance(c, str) and len(c) == 1 for c in characters):
            raise storage.damaged(path, "'characters' must be a list of single characters")
        for name in ("fallback", "end"):
            if not isinstance(content.get(name), bool):
                raise storage.damaged(path, f"{name!r} must be true or false")
        if not characters:
            raise storage.damaged(path, "'characters' is empty")
        loaded = cls(characters, fallback=content["fallback"], end=content["end"])
        if loaded.fingerprint != content.get("fingerprint"):
            raise storage.damaged(path, "its table is not the one that was saved")
        return loaded

    def _fall_back(self, ids: np.ndarray, known: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Replaces each unknown character's id by the ids of its bytes; all arguments are `[characters]`."""
        unknown = points[~known].tobytes().decode("utf-32-le", "surrogatepass")
        widths = np.ones(len(ids), np.int64)
        widths[~known] += np.searchsorted(LONGER, points[~known], side="right")
        spelt = np.repeat(~known, widths)
        out = np.empty(len(spelt), np.int32)
        out[~spelt] = ids[known]
        out[spelt] = len(self.characters) + np.frombuffer(spelling.utf8(unknown), np.uint8).astype(np.int32)
        return out

    def _unknown(self, text: str, index: int) -> str:
        character = text[index]
        return (
            f"text[{index}] is {character!r} (U+{ord(character):04X}), which is none of the {len(self.characters)} "
            "characters of this tokenizer: train it on text that has this one, or with fallback=True"
        )

    def _table(self) -> dict[str, object]:
        return {"characters": list(self.characters), "fallback": self.fallback, "end": self.end is not None}
