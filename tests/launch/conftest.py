"""What launchers write is compared with files in `golden`, which `GOLDEN=write` writes anew."""

import importlib.util
import os
import pathlib

import pytest
from absl import flags

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """`golden("name", text)` compares, or writes."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("GOLDEN") == "write":
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs: look at it, then GOLDEN=write if the new text is right"

    return compare


# What a shell, Slurm, Kubernetes or YAML might take for something of its own.
AWKWARD = (
    "plain", "two words", "", "it's", 'say "no"', "$HOME", "$(echo ran)", "`echo ran`", "back\\slash", "a;b & c|d > e",
    "*", "~", "#no", "!history", "%j", "line\nbreak", "é ü", "null", "yes", "1e3", "{a: b}", "- item", "('x', 'y')",
)  # fmt: skip


@pytest.fixture(scope="session")
def awkward() -> tuple[str, ...]:
    return AWKWARD


@pytest.fixture(scope="module")
def imported_local():
    """`launch.local`, whose flags other launchers define too, with none given."""
    yield from loaded("launch.local")


@pytest.fixture(scope="module")
def imported_slurm():
    """As `imported_local`."""
    yield from loaded("launch.slurm")


def loaded(name: str):
    """A launcher's functions; its flags go when the test module is done, as others define the same ones."""
    known = set(flags.FLAGS)
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags.FLAGS.mark_as_parsed()
    yield module
    flags.FLAGS.unparse_flags()
    for flag in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, flag)
