"""The recipe beside a checkpoint: what made it, and whether a run with another recipe may go on from it."""

from __future__ import annotations

import json
import platform
from typing import Any

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

CHANGEABLE = (  # when to stop, when to write something down, and what to do about faults
    "training.steps",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep",
    "training.log_every",
    "training.head_metrics_every",
    "training.skips",
    "training.spike",
    "training.rollbacks",
    "training.fingerprint_every",
    "training.on_save_error",
)


def compare(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, str]:
    """Each field that differs and may not, with "field was x, now y"; empty when a run may resume.

    Only fields whose dotted name ends in one of `CHANGEABLE` may differ.

    Args:
      saved: as restored.
      current: anything that JSON can hold.
    """
    old, new = _flat(saved), _flat(current)
    changes = {}
    for field in sorted(old.keys() | new.keys()):
        before, now = old.get(field, "absent"), new.get(field, "absent")
        free = any(f".{field}".endswith(f".{changeable}") for changeable in CHANGEABLE)
        if before != now and not free:
            changes[field] = f"{field} was {before}, now {now}"
    return changes


def fields(recipe: dict[str, Any]) -> list[str]:
    """The dotted names of all fields."""
    return sorted(_flat(recipe))


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a checkpoint depends on."""
    modules = {"jax": jax, "flax": flax, "optax": optax, "orbax-checkpoint": ocp, "numpy": np}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


def _flat(recipe: dict[str, Any]) -> dict[str, str]:
    """Dotted name -> value as JSON; tuples become lists, as they do on disk."""
    nested = json.loads(json.dumps(recipe))
    leaves = flatten_dict(nested, sep=".", is_leaf=lambda _, value: not value)
    return {name: json.dumps(value) for name, value in leaves.items()}
