"""Rotary positions in a published `config.json`: a base and, beyond the trained length, a scaling.

Both forms are read: `rope_theta` beside `rope_scaling`, and the newer `rope_parameters` that holds all of it. The older
form is written, as newer programs understand it too.
"""

from __future__ import annotations

import math
from typing import Any

from transformer.interop.fields import Fields
from transformer.models.config import ModelConfig, Position, Scaling, Stack

KINDS = {"default": "none", "linear": "linear", "dynamic": "dynamic", "llama3": "llama3", "yarn": "yarn"}


def read(
    fields: Fields, length: int, head_width: int, base: float = 10_000.0, fraction: float | None = None
) -> Position:
    """The positions that a config describes.

    Args:
      fields: of the config.
      length: the longest sequence.
      head_width: K.
      base: where the config says nothing.
      fraction: of each head that turns, where the config says nothing; None: the architecture turns all of it.

    Raises:
      ValueError: if a field or a kind of scaling has no counterpart.
    """
    base = fields.number("rope_theta", base)
    scaling, parameters = (fields.take(f"rope_{name}", None, (dict, type(None))) for name in ("scaling", "parameters"))
    if scaling and parameters and scaling != parameters:
        raise ValueError(
            f"{fields.where}: rope_scaling and rope_parameters differ: leave out the one that is not meant"
        )
    inner = Fields(parameters or scaling or {}, f"{fields.where}: rope_parameters" if parameters else fields.where)
    if any(isinstance(value, dict) for value in inner.values.values()):
        raise ValueError(f"{inner.where} differ between layers, which has no counterpart here")
    base = inner.number("rope_theta", base)
    if fraction is None:
        inner.expect("partial_rotary_factor", 1.0)
        fraction = 1.0
    fraction = inner.number("partial_rotary_factor", fraction)
    if head_width < 1 or not 0 < fraction <= 1:
        raise ValueError(f"{inner.where}: {fraction:g} of a head of width {head_width} cannot turn: restore the file")
    turned = int(head_width * fraction)
    scaled = _scaling(inner, length)
    inner.finish()
    return Position("rotary", base, turned / head_width, scaled)


def _scaling(inner: Fields, length: int) -> Scaling:
    legacy = inner.take("type", "default")
    kind = inner.choose("rope_type", KINDS, legacy)
    if kind == "none":
        return Scaling()
    factor = inner.number("factor")
    if factor < 1:
        raise ValueError(f"{inner.where}: factor={factor:g} cannot work: it must be at least 1")
    if kind == "linear":
        return Scaling("linear", factor)
    original = inner.size("original_max_position_embeddings", length)
    if kind == "dynamic":  # which the publisher's library measures against the longest sequence
        return Scaling("dynamic", factor, length)
    if kind == "llama3":
        low, high = (inner.number(f"{name}_freq_factor") for name in ("low", "high"))
        return Scaling("llama3", factor, original, low, high)
    inner.expect("truncate", True)
    low, high = inner.number("beta_slow", 1.0), inner.number("beta_fast", 32.0)
    return Scaling("yarn", factor, original, low, high, _magnitude(inner, factor))


def _magnitude(inner: Fields, factor: float) -> float | None:
    """What turned queries and keys are multiplied by; None for what the paper says."""
    given, over, under = (inner.number(name, None) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    for name, value in (("mscale", over), ("mscale_all_dim", under)):
        if value is not None and value < 0:
            raise ValueError(f"{inner.where}: {name}={value:g} cannot work: it must not be negative")
    if given is not None:
        return given
    return _growth(factor, over) / _growth(factor, under) if over and under else None


def _growth(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0


def write(config: ModelConfig, stack: Stack) -> dict[str, Any]:
    """The fields of a stack's rotary positions; a scaling that they have no name for is left out."""
    position, scaling = stack.position, stack.position.scaling
    if scaling.kind not in KINDS.values():
        scaling = Scaling()  # which is what they would compute
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        fields |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        fields |= {"beta_slow": scaling.low, "beta_fast": scaling.high, "attention_factor": scaling.magnitude}
    fields = {name: value for name, value in fields.items() if value is not None}
    return {"rope_theta": position.base, "rope_scaling": None if scaling.kind == "none" else fields}
