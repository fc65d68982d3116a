"""The flag `--config=FILE[:SETTING]` with overrides `--config.model.width=256`, typed by the fields they override."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments import command
from experiments.experiment import Experiment, check_field, without_none


def define() -> flags.FlagHolder:
    """Define the flag; its value is what `Experiment.build` takes."""
    config_flags.register_flag_parser_for_type(int, _IntegerOrNone())
    config_flags.register_flag_parser_for_type(float, _FloatOrNone())
    config_flags.register_flag_parser_for_type(str, _StringOrNone())
    return config_flags.DEFINE_config_file("config", None, "A recipe, such as experiments/configs/stdlib.py.")


def build(holder: flags.FlagHolder) -> Experiment:
    """The experiment that the command line describes.

    Raises:
      ValueError: if no recipe was given, it cannot be read, or a field cannot work.
    """
    if holder.value is None:
        raise ValueError("--config is missing: give a recipe, such as --config=experiments/configs/stdlib.py")
    try:
        return Experiment.build(holder.value)
    except OSError as error:  # the flag library keeps what went wrong until the recipe is looked at
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"--config: {reason}; give a recipe, such as experiments/configs/stdlib.py") from error


def run(main: Callable[[], int | None], default: str | Path) -> None:
    """Run a script on the recipe `default` where the command line names none."""
    # The library would read a flag's default while the flag is being defined, where errors have no one to catch them.
    if not any(argument.lstrip("-").split("=")[0] == "config" for argument in sys.argv[1:]):
        sys.argv.insert(1, f"--config={default}")
    command.run(main, check_override)


def check_override(name: str) -> None:
    """Checks the name of a flag, such as `config.model.width`, against the fields that there are.

    Raises:
      ValueError: naming the first part that is unknown, and the nearest ones.
    """
    path, *parts = name.split(".")
    if path != "config":
        return
    kind: Any = Experiment
    for part in parts:
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        check_field(part, hints, path)
        kind, path = without_none(hints[part]), f"{path}.{part}"


class _IntegerOrNone(flags.IntegerParser):
    def parse(self, argument: Any) -> int | None:
        return None if argument in (None, "None", "none") else super().parse(argument)


class _FloatOrNone(flags.FloatParser):
    def parse(self, argument: Any) -> float | None:
        return None if argument in (None, "None", "none") else super().parse(argument)


class _StringOrNone(flags.ArgumentParser):
    def parse(self, argument: Any) -> str | None:
        return None if argument in (None, "None") else super().parse(argument)  # "none" is a choice of some fields
