"""Every UTF-8 byte is a token: nothing to train, nothing unknown (ByT5, Xue et al. 2022, arXiv:2105.13626)."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from transformer.text import spelling, storage
from transformer.text.tokenizer import END, Tokenizer

BYTES = tuple(bytes([value]) for value in range(256))


class Bytes(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8, 256 is the end of text. Lone surrogates take three bytes each."""

    kind = "bytes"
    spellings = (*BYTES, END.encode())
    end = 256

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """Ids of `text`: `[bytes]` int32, behind the end id if `special`. Raises ValueError if `text` is no string."""
        ids = np.frombuffer(spelling.utf8(spelling.check_text(text)), np.uint8).astype(np.int32)
        return self._opened(ids) if special else ids

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `bytes.json`, which only says that this is the scheme. Raises as `Tokenizer.save`."""
        storage.write_json(storage.claim(folder, self.kind, storage.BYTES) / storage.BYTES, {"kind": self.kind})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Bytes:
        """Reads what `save` wrote. Raises ValueError if the file is damaged."""
        path = pathlib.Path(folder) / storage.BYTES
        if storage.read_object(path) != {"kind": cls.kind}:
            raise storage.damaged(path, f'expected {{"kind": "{cls.kind}"}}')
        return cls()

    def _table(self) -> object:
        return []
