"""Published models by name: one function for what a family shares, one table for what its sizes do not."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from transformer.models.config import ModelConfig, Stack
from transformer.models.zoo import both, decoders, encoders


def _tiny(encoder: bool, decoder: bool) -> ModelConfig:
    """Ours, for tests and first steps: the defaults of `config`, at a size that trains anywhere."""
    stack = Stack(depth=2)
    return ModelConfig(320, 64, encoder=stack if encoder else None, decoder=stack if decoder else None, length=128)


_TINY = {  # has an encoder, has a decoder
    "decoder": (False, True),
    "encoder": (True, False),
    "both": (True, True),
}

_FAMILIES: dict[str, tuple[Callable[..., ModelConfig], dict[str, tuple]]] = {
    **decoders.FAMILIES,
    **encoders.FAMILIES,
    **both.FAMILIES,
    "tiny": (_tiny, _TINY),
}


def names() -> tuple[str, ...]:
    """Every name that `get` knows, family by family."""
    return tuple(f"{family}-{size}" for family, (_, table) in _FAMILIES.items() for size in table)


def get(name: str) -> ModelConfig:
    """The config of a published model, such as `gpt2-small`.

    Raises:
      ValueError: if there is no such name; it lists the nearest ones.
    """
    if not isinstance(name, str):
        raise ValueError(f"name={name!r} must be a string, such as 'gpt2-small'; models.names() lists them all")
    family, _, size = name.rpartition("-")
    build, table = _FAMILIES.get(family, (None, {}))
    if build is None or size not in table:
        near = difflib.get_close_matches(name, names(), n=4, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(names())}"
        raise ValueError(f"no model is called {name!r}; {hint}")
    return build(*table[size])
