"""One command, or many: what every launcher takes after `--`, and the sweep over fields of the recipe and seeds.

    --sweep=training.optimizer.learning_rate=1e-3,3e-4 --sweep=model.width=64,128 --seeds=5

is the product of all: 20 runs, each with its overrides, and with a folder of its own below the command's `--workdir`
that is named after them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from experiments.command import NO_ADDRESS

BRACKETS = {"(": 1, "[": 1, ")": -1, "]": -1}


class Run(NamedTuple):
    """One run: `name` is "" where it is the only one."""

    name: str
    command: tuple[str, ...]


def define() -> dict[str, flags.FlagHolder]:
    """The flags that `runs` reads."""
    return {
        "sweep": flags.DEFINE_multi_string(
            "sweep", [], "A field of the recipe and its values: training.optimizer.learning_rate=1e-3,3e-4."
        ),
        "seeds": flags.DEFINE_integer("seeds", None, "Run each with the seeds 0, 1, ... up to so many.", lower_bound=1),
    }


def runs(defined: dict[str, flags.FlagHolder], words: Sequence[str]) -> list[Run]:
    """The runs that the command line asks for.

    Raises:
      ValueError: if there is no command, a field is unknown or named twice, or a run would have no folder of its own.
    """
    return expand(words, defined["sweep"].value, defined["seeds"].value)


def expand(command: Sequence[str], sweep: Sequence[str] = (), seeds: int | None = None) -> list[Run]:
    """`command` with every combination of the values of `sweep` and of the seeds below `seeds`; errors as of `runs`."""
    if not command:
        raise ValueError("the command is missing: put it after --, such as -- python -m experiments.train --config=...")
    if "://" in (workdir(command) or ""):
        raise ValueError(f"--workdir={workdir(command)} {NO_ADDRESS}")
    choices = [_choice(one) for one in sweep]
    if seeds is not None:
        choices.append(("seed", [str(seed) for seed in range(seeds)]))
    if not choices:
        return [Run("", tuple(command))]
    fields = [field for field, _ in choices]
    _check(fields)
    short = _short(fields)
    found = []
    for values in itertools.product(*(values for _, values in choices)):
        name = ",".join(f"{part}={_safe(value)}" for part, value in zip(short, values, strict=True))
        overrides = [f"--config.{field}={value}" for field, value in zip(fields, values, strict=True)]
        found.append(Run(name, (*_below(command, name), *overrides)))
    _refuse_equal(found)
    return found


def workdir(command: Sequence[str]) -> str | None:
    """What a command says after `--workdir`, or None."""
    place = _place(command)
    return None if place is None else command[place].split("=", 1)[-1]


def _place(command: Sequence[str]) -> int | None:
    """Where a command names its `--workdir`."""
    for place, word in enumerate(command):
        flag, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or flag != "workdir":
            continue
        if equals and value:
            return place
        if not equals and place + 1 < len(command):
            return place + 1
    return None


def _choice(sweep: str) -> tuple[str, list[str]]:
    """`("model.width", ["64", "128"])` of `model.width=64,128`; commas within brackets part nothing."""
    field, equals, text = sweep.partition("=")
    field = field.removeprefix("config.")
    depth, values = 0, [""]
    for character in text:
        depth += BRACKETS.get(character, 0)
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    if not (field and equals and text and all(values)):
        raise ValueError(f"--sweep={sweep} cannot work: give FIELD=VALUE,VALUE, such as model.width=64,128")
    return field, values


def _check(fields: list[str]) -> None:
    from experiments import recipe  # takes seconds, and only sweeps need it

    for field in fields:
        recipe.check_override(f"config.{field}")
        if fields.count(field) > 1:
            raise ValueError(f"{field} is swept twice: give all its values at one time")


def _short(fields: list[str]) -> list[str]:
    """Fields by their last parts: as few as tell them apart."""
    parts = [field.split(".") for field in fields]
    for count in range(1, max(map(len, parts)) + 1):
        short = [".".join(part[-count:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    return fields


def _safe(value: str) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-") or "-"


def _below(command: Sequence[str], name: str) -> list[str]:
    """The command with its `--workdir` in a folder below; raises ValueError if it names none."""
    out, place = list(command), _place(command)
    if place is None:
        raise ValueError("a sweep needs --workdir=DIR in its command: each run has a folder of its own below it")
    out[place] = f"{out[place].rstrip('/')}/{name}"
    return out


def _refuse_equal(found: list[Run]) -> None:
    names = [run.name for run in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two runs of the sweep would share the folder {name!r}: give values that differ")
