"""How a config refuses what cannot work: one line with the field, its value and what would do."""

from __future__ import annotations

import dataclasses
import functools
import typing


def require(condition: bool, field: str, value: object, fix: str) -> None:
    """Raise a ValueError that names the field, its value and the fix, unless the condition holds."""
    if not condition:
        raise ValueError(f"{field}={value!r} cannot work: {fix}")


def one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not among the choices."""
    require(value in choices, field, value, f"choose one of {', '.join(choices)}")


def check_probability(field: str, value: float) -> None:
    """Refuse what cannot be a dropout rate."""
    require(0.0 <= value < 1.0, field, value, "a dropout rate is at least 0 and below 1")


def check_types(config: object, prefix: str = "") -> None:
    """Refuse a value of another type than its field's in a dataclass; a whole number will do for a float."""
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        require(_fits(value, hints[field.name]), prefix + field.name, value, f"its type is {field.type}")


_hints = functools.cache(typing.get_type_hints)


def _fits(value: object, hint: object) -> bool:
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    types = typing.get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (float in types and isinstance(value, int))
