"""What every tokenizer shares: strings and ids checked, and bytes read as UTF-8.

A Python string may hold lone surrogates (U+D800 to U+DFFF), which UTF-8 forbids. Where a tokenizer can spell them they
take the three bytes that UTF-8's scheme would give them, so that a round trip changes nothing.
"""

from __future__ import annotations

import codecs
import operator
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

REPLACE = "replace"
SURROGATES = "transformer.surrogates"


def _surrogate_or_replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeDecodeError:
        return codecs.lookup_error(REPLACE)(error)


codecs.register_error(SURROGATES, _surrogate_or_replacement)


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of `text`, three for a lone surrogate."""
    return text.encode("utf-8", "surrogatepass")


def check_text(text: str, name: str = "text") -> str:
    """Returns `text`; raises ValueError if it is no string."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string, not {type(text).__name__}: decode bytes, and pass documents singly")
    return text


def check_unicode(text: str) -> str:
    """Returns `text`; raises ValueError if it holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text[{error.start}] is {text[error.start]!r}, a lone surrogate, which UTF-8 cannot spell: decode the "
            "text with errors='replace', or use the kind 'bytes'"
        ) from None
    return text


def check_texts(texts: Iterable[str]) -> Iterator[str]:
    """The strings of `texts`; raises ValueError if `texts` is one string, or at the first item that is none."""
    if isinstance(texts, str):
        raise ValueError("texts must be a list or iterator of strings, not one string: pass [text]")
    return (check_text(text, f"texts[{index}]") for index, text in enumerate(texts))


def check_ids(ids: Sequence[int] | np.ndarray, size: int) -> list[int]:
    """The ids as Python integers.

    Args:
      ids: `[T]`: a list or tuple of integers, or a NumPy or JAX array.
      size: how many ids there are.

    Raises:
      ValueError: if `ids` has another rank, or at the first id that is no integer in `[0, size)`.
    """
    # As objects, integers beyond 64 bits and floats among integers are seen as they are.
    array = np.asarray(ids) if hasattr(ids, "dtype") else np.asarray(ids, dtype=object)
    if array.ndim != 1:
        raise ValueError(f"ids must be one-dimensional, not of shape {array.shape}: decode one sequence at a time")
    values = array.tolist()
    if array.dtype.kind not in "iu":
        values = [_integer(value, index, size) for index, value in enumerate(values)]
    if values and (min(values) < 0 or max(values) >= size):
        index = next(index for index, value in enumerate(values) if not 0 <= value < size)
        raise ValueError(_out_of_range(values[index], index, size))
    return values


def _integer(value: object, index: int, size: int) -> int:
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(_out_of_range(value, index, size))


def _out_of_range(value: object, index: int, size: int) -> str:
    return f"ids[{index}]={value!r} is not one of this tokenizer's {size} ids: use integers from 0 to {size - 1}"
