"""What a model reads: one text as token ids, and how its tokens are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from transformer.models.config import ModelConfig

MULTIPLE = 16  # lengths are rounded up to these, so that texts of about one length share compiled programs


@dataclasses.dataclass(frozen=True)
class Token:
    """How one id is shown.

    Attributes:
      text: what it stands for within a text.
      hex: its bytes in hexadecimal, where they are not whole characters of UTF-8.
      special: whether it is no text, such as the token that opens one.
    """

    text: str
    hex: str | None = None
    special: bool = False


Spell = Callable[[int], Token]


@dataclasses.dataclass(frozen=True)
class Reading:
    """One text as a model reads it.

    Attributes:
      text: as it was written; of an encoder-decoder, the target.
      tokens: its ids.
      source_text, source: what the encoder of an encoder-decoder reads, and its ids; None for other models.
      position: whose prediction is looked at first, such as that of a masked token; None: the last one.
    """

    text: str
    tokens: tuple[int, ...]
    source_text: str | None = None
    source: tuple[int, ...] | None = None
    position: int | None = None

    @property
    def place(self) -> int:
        """The position whose prediction is looked at, from 0."""
        return len(self.tokens) - 1 if self.position is None else self.position

    def sides(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """The ids that each stack of a model reads, by its role."""
        if config.decoder is None:
            return {"encoder": self.tokens}
        return {"decoder": self.tokens} | ({} if config.encoder is None else {"encoder": self.source})

    def check(self, config: ModelConfig, longest: int) -> None:
        """Refuse what the model cannot read, or more than `longest` tokens.

        Raises:
          ValueError: if so.
        """
        both = config.encoder is not None and config.decoder is not None
        if both != (self.source is not None):
            raise ValueError("source: an encoder-decoder reads one beside each text, and no other model does")
        if self.position is not None and not 0 <= self.position < len(self.tokens):
            raise ValueError(f"position={self.position} is none of the text's {len(self.tokens)} tokens: count from 0")
        for role, ids in self.sides(config).items():
            stack = getattr(config, role)
            most = min(longest, config.length) if stack.position.kind == "learned" else longest
            if not 0 < len(ids) <= most:
                what, text = ("source", self.source_text) if both and role == "encoder" else ("text", self.text)
                raise ValueError(
                    f"the {what} {beginning(text)!r} has {len(ids)} tokens; the explorer shows 1 to {most}: shorten it"
                )

    def inputs(self, config: ModelConfig) -> dict[str, np.ndarray]:
        """The arguments of a model's call, each `[1, T]` with T rounded up; masks tell what is real.

        The rest repeats the last position, so that rotary frequencies which depend on the length are those of the text.
        """
        inputs = {}
        for role, ids in self.sides(config).items():
            before = "source_" if role == "encoder" and config.decoder is not None else ""
            width = -(-len(ids) // MULTIPLE) * MULTIPLE
            if getattr(config, role).position.kind == "learned":
                width = min(width, config.length)
            places = np.arange(width)[None]
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(ids)] = ids
            inputs[before.rstrip("_") or "tokens"] = tokens
            inputs[f"{before}mask"] = places < len(ids)
            inputs[f"{before}positions"] = np.minimum(places, len(ids) - 1).astype(np.int32)
        return inputs


def beginning(text: str, most: int = 40) -> str:
    """A text, or as much of it as fits a title."""
    return text if len(text) <= most else f"{text[:most]}…"
