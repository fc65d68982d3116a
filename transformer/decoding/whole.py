"""Numbers of things, which are whole."""

from __future__ import annotations

import numbers


def whole(name: str, value: int, least: int = 1) -> int:
    """`value` as a Python integer; raises ValueError unless it is one, Python's or NumPy's, and not below `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r}: it must be a whole number, {least} or more")
    return int(value)
