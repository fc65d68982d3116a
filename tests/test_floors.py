"""A file imports only from floors below its own; rooms on one floor are strangers, except where `ARROWS` says so."""

import ast
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "transformer/ops": 0,
    "transformer/nn": 1,
    "transformer/models": 2,
    "transformer/text": 3,
    "transformer/data": 3,
    "transformer/training": 3,
    "transformer/decoding": 3,
    "transformer/inspection": 3,
    "transformer/interop": 3,
    "experiments": 4,
    "launch": 4,
    "notebooks": 4,
}
ARROWS = {
    ("transformer/data", "transformer/text"),
    ("transformer/interop", "transformer/text"),
    ("notebooks", "experiments"),
    ("launch", "experiments"),
}
OUTSIDE = {  # what a room may import from elsewhere, besides the standard library; others may import anything
    "transformer/ops": {"jax", "numpy"},
    "transformer/nn": {"jax", "numpy", "flax"},
    "transformer/models": {"jax", "numpy", "flax"},
}
PACKAGES = ("transformer", "experiments", "launch", "tests")


def violations(root):
    """One line for every import that breaks the floors, under a root with `transformer`, `experiments` and so on."""
    found = []
    for path in sorted(file for top in (*PACKAGES[:3], "notebooks") for file in (root / top).rglob("*")):
        if path.suffix not in (".py", ".ipynb") or ".ipynb_checkpoints" in path.parts:
            continue
        home = room(path.relative_to(root).with_suffix("").parts)
        for name in imports(path, root):
            problem = judge(home, name)
            if problem:
                found.append(f"{path.relative_to(root)} imports {name}: {problem}")
    return found


def judge(home, name):
    """What is wrong with an import in a room, or None."""
    steps = tuple(name.split("."))
    if steps[0] not in PACKAGES:
        allowed = OUTSIDE.get(home)
        foreign = allowed is not None and steps[0] not in allowed | sys.stdlib_module_names
        return f"{home} has only {', '.join(sorted(allowed))} and the standard library" if foreign else None
    there = room(steps)
    if there in (home, "transformer"):
        return None
    if home not in FLOORS or there not in FLOORS:
        return f"{there if home in FLOORS else home} is on no floor; give it one in FLOORS"
    if FLOORS[there] < FLOORS[home] or (home, there) in ARROWS:
        return None
    return f"{there} is on floor {FLOORS[there]}, {home} on floor {FLOORS[home]}"


def room(steps):
    """`transformer/ops` of `("transformer", "ops", "masks")`; `transformer` of what the package itself holds."""
    inside = steps[0] == "transformer" and len(steps) > 1 and not steps[1].startswith("__")
    return "/".join(steps[:2]) if inside else steps[0]


def imports(path, root):
    """Full names of what a file imports when it runs, inside functions too; not what only a type checker sees."""
    package = path.relative_to(root).parts[:-1]
    pending, names = [ast.parse(source(path))], []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names += [f"{module}.{alias.name}" for alias in node.names]
        pending.extend(ast.iter_child_nodes(node))
    return names


def source(path):
    """The text of a module, or of a notebook's code cells without the lines that are not Python."""
    if path.suffix == ".py":
        return path.read_text()
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_no_import_breaks_the_floors():
    assert violations(ROOT) == []


def test_every_room_is_on_a_floor():
    files = (ROOT / "transformer").rglob("*.py")
    rooms = {room(path.relative_to(ROOT).parts) for path in files} - {"transformer"}
    assert rooms <= set(FLOORS)
    assert set(OUTSIDE) <= rooms  # so that the reading of files is known to find them


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("transformer/ops/a.py", "import transformer.nn"),
        ("transformer/ops/a.py", "from transformer.models.config import ModelConfig"),
        ("transformer/ops/a.py", "from transformer import models"),
        ("transformer/ops/a.py", "from ..nn import tap"),
        ("transformer/ops/a.py", "import flax.linen as nn"),
        ("transformer/nn/a.py", "def f():\n    import optax"),
        ("transformer/models/deep/a.py", "from ml_collections import ConfigDict"),
        ("transformer/nn/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from transformer import models"),
        ("transformer/training/a.py", "from transformer import ops, data"),
        ("transformer/text/a.py", "from transformer.data import prepare"),
        ("transformer/decoding/a.py", "try:\n    import experiments.command\nexcept ImportError:\n    pass"),
        ("transformer/data/a.py", "from tests import data"),
        ("transformer/attic/a.py", "import transformer.ops"),
        ("experiments/a.py", "import launch.local"),
        ("launch/a.py", "from tests import launch"),
        ("notebooks/a.ipynb", "%matplotlib inline\nfrom launch import local"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, text):
    plant(tmp_path, file, text)
    (line,) = violations(tmp_path)
    assert line.startswith(f"{file} imports ")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "transformer/ops/a.py",
            "from __future__ import annotations\nimport math, jax.numpy, numpy as np\nfrom . import b",
        ),
        ("transformer/nn/a.py", "if TYPE_CHECKING:\n    from transformer.models.config import ModelConfig"),
        ("transformer/nn/a.py", "import typing\nif typing.TYPE_CHECKING:\n    import optax"),
        (
            "transformer/models/a.py",
            "import flax.linen\nfrom transformer.nn import tap\nfrom transformer.ops import masks",
        ),
        ("transformer/data/a.py", "import grain\nfrom transformer import text, __version__"),
        (
            "experiments/a.py",
            "import transformer\nfrom transformer import models, training\nfrom experiments import command",
        ),
        ("notebooks/a.ipynb", "!ls\nfrom transformer import models\nfrom experiments import count"),
        ("launch/a.py", "from experiments import command"),
        ("notebooks/README.md", "import experiments"),
    ],
)
def test_what_is_allowed_is_let_be(tmp_path, file, text):
    plant(tmp_path, file, text)
    assert violations(tmp_path) == []


def plant(root, file, text):
    path = root / file
    path.parent.mkdir(parents=True)
    if path.suffix == ".ipynb":
        text = json.dumps({"cells": [{"cell_type": "code", "source": text.splitlines(keepends=True)}]})
    path.write_text(text)
