"""Arrays as JSON: base64 of little-endian bytes, deflated (RFC 1951 within zlib's RFC 1950) where that is shorter."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np

Json = dict[str, Any]
DTYPES = {"u8": "<u1", "u16": "<u2", "i32": "<i4", "f32": "<f4"}
LEVEL = 6  # of 9: the rest would cost much time for the last percent


def pack(array: np.ndarray, dtype: str) -> Json:
    """An array of any shape as `d` its dtype, `s` its shape, `b` its bytes, and `z` if these are deflated.

    Args:
      dtype: "u8", "u16", "i32" or "f32"; numbers are cast.
    """
    data = np.ascontiguousarray(array, DTYPES[dtype]).tobytes()
    short = zlib.compress(data, LEVEL)
    packed = {"d": dtype, "s": list(np.shape(array)), "b": base64.b64encode(min(data, short, key=len)).decode()}
    return {**packed, "z": True} if len(short) < len(data) else packed


def unpack(packed: Json) -> np.ndarray:
    """The array that `pack` was given, in its dtype."""
    data = base64.b64decode(packed["b"])
    data = zlib.decompress(data) if packed.get("z") else data
    return np.frombuffer(data, DTYPES[packed["d"]]).reshape(packed["s"])


def pack_bits(booleans: np.ndarray) -> Json:
    """Booleans `[..., N]` as bytes `[..., ceil(N / 8)]`, the first in the lowest bit."""
    return pack(np.packbits(booleans, axis=-1, bitorder="little"), "u8")


def size(part: Any) -> int:
    """How many bytes a JSON value takes in a page."""
    return len(json.dumps(part))
