"""Every command and every line of Python in README.md works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = """
    model.vocab=300 model.width=8 model.length=16 model.unroll=1 model.decoder.depth=1 model.decoder.attention.heads=2
    model.decoder.mlp.width=8 data.path={path} data.split=tail data.validation=0.05 data.length=16
    data.tokenizer.vocab=280 training.steps=2 training.batch_size=2 training.optimizer.warmup=0
"""
SMALL_PAIRS = """
    model.width=8 model.encoder.depth=1 model.decoder.depth=1 model.unroll=1 model.encoder.mlp.width=8
    model.decoder.mlp.width=8 data.path=task:reverse:1-3 data.pairs.count=60 data.validation=0.1
    training.steps=2 training.batch_size=8 training.optimizer.warmup=0
"""


def blocks(language):
    """The fenced blocks of a language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


COMMANDS = [
    shlex.split(line, comments=True) for body in blocks("") for line in body.replace("\\\n", " ").splitlines() if line
]
MAKES, SCRIPTS = ([words for words in COMMANDS if (words[0] == "make") == makes] for makes in (True, False))


def test_the_commands_are_found():
    assert [words[1] for words in MAKES] == ["train", "test"]
    programs = [words[2] for words in SCRIPTS]
    names = "train evaluate generate count train launch.local launch.plan train translate evaluate export generate"
    names += " evaluate train senses explore induction verdant"
    assert programs == [name if "." in name else f"experiments.{name}" for name in names.split()]
    assert all(words[:2] == [".venv/bin/python", "-m"] for words in SCRIPTS)


@pytest.mark.parametrize("words", MAKES, ids=" ".join)
def test_make_runs_what_it_says(words):
    expected = {
        "train": ["-m experiments.train --config=experiments/configs/stdlib.py --workdir=runs/stdlib"],
        "test": ["ruff check .", "ruff format --check .", "-m pytest -q"],
    }
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of make itself
    process = subprocess.run([*words, "-n"], capture_output=True, text=True, cwd=ROOT, env=outside)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()[-len(expected[words[1]]) :]
    for line, part in zip(lines, expected[words[1]], strict=True):
        assert line.startswith(".venv/bin/") and part in line


@pytest.fixture(scope="module")
def exported(script, trained, tmp_path_factory):
    """What the command that exports has written."""
    folder = tmp_path_factory.mktemp("readme") / "exported"
    process = script("experiments.export", f"--workdir={trained[0]}", f"--to={folder}")
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def backwards(script, tmp_path_factory):
    """A run of the recipe for reversing."""
    folder = tmp_path_factory.mktemp("readme") / "reverse"
    small = [f"--config.{field}" for field in SMALL_PAIRS.split()]
    process = script(
        "experiments.train", "--config=experiments/configs/reverse.py", f"--workdir={folder}", *small, "--traceback"
    )
    assert process.returncode == 0, process.stderr
    return folder, process


# These train; what they do is tested beside their own files, at a smaller size.
SLOW = ("experiments.induction", "experiments.verdant", "launch.local", "launch.plan")


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=words[2], marks=[pytest.mark.slow] * (words[2] in SLOW)) for words in SCRIPTS]
)
def test_a_command_works(request, script, tiny, trained, exported, tmp_path, words):
    program, *arguments = words[2:]
    if arguments[-1] == "--workdir=runs/reverse":
        works_backwards(script, program, arguments, *request.getfixturevalue("backwards"))
        return
    folders = {
        "--workdir=runs/stdlib": f"--workdir={trained[0]}",
        "--workdir=runs/mine": f"--workdir={tmp_path / 'run'}",
        "--workdir=runs/two": f"--workdir={tmp_path / 'run'}",
        ".venv/bin/python": sys.executable,
        "--workdir=runs/tuned": f"--workdir={tmp_path / 'run'}",
        "--to=runs/exported": f"--to={tmp_path / 'exported'}",
        "--workdir=runs/exported": f"--workdir={exported}",
        "--config.initial=runs/exported": f"--config.initial={exported}",
        "--stride=128": "--stride=8",  # of a model that reads 16 tokens
        "--output=runs/page.html": f"--output={tmp_path / 'page.html'}",
        "--workdir=runs/induction": f"--workdir={tmp_path / 'run'}",
        "--workdir=runs/verdant": f"--workdir={tmp_path / 'run'}",
    }
    arguments = [folders.get(argument, argument) for argument in arguments]
    assert not any("runs/" in argument for argument in arguments)
    if "experiments.train" in (program, *arguments):
        recipe = next(word for word in arguments if word.startswith("--config="))
        assert (ROOT / recipe.removeprefix("--config=")).is_file()
        arguments += [f"--config.{field}" for field in SMALL.format(path=tiny / "text.txt").split()]
    if program == "experiments.senses":
        arguments.append(f"--workdir={exported}")  # the package that has a model need not be there
    if program in ("experiments.induction", "experiments.verdant"):
        quick = ["steps=2", "evaluate_every=2", "optimizer.warmup=0"]
        arguments += [*(f"--config.training.{field}" for field in quick), "--plot="]
    process = script(program, *arguments)
    assert (process.returncode, process.stderr) == (0, "")
    expected = {
        "train": "validation: ",
        "evaluate": "bits per byte",
        "generate": next((word.removeprefix("--prompt=") for word in words if word.startswith("--prompt=")), None),
        "count": "174,604,259,328",
        "export": " as llama",
        "senses": "15 times 'mole': burrow, chemistry, skin",
        "explore": "page.html: ",
        "induction": "induction",
        "verdant": "the best possible",
        "launch.local": "validation: ",
        "launch.plan": "it fits",
    }
    assert expected[program.removeprefix("experiments.")] in process.stdout


def works_backwards(script, program, arguments, folder, training):
    """The commands about pairs, on a small run; that which trains it was given already, with smaller numbers."""
    if program == "experiments.train":
        assert arguments == [training.args[3], "--workdir=runs/reverse"] and "validation: " in training.stdout
        return
    process = script(program, *arguments[:-1], f"--workdir={folder}")
    assert (process.returncode, process.stderr) == (0, "")
    assert program == "experiments.translate" or "of 6 sequences right" in process.stdout


def test_the_python_works(script, tmp_path):
    (body,) = blocks("python")
    checks = [
        "assert logits.shape == (1, 8, config.vocab), logits.shape",
        "assert book.total == sum(leaf.size for leaf in jax.tree.leaves(params)), book.total",
        "assert jnp.allclose(pattern.sum(-1), 1, atol=1e-5)",
        "assert jnp.abs(changed - logits).max() > 1e-3",
        "assert new.shape == (1, 16), new.shape",
        "layers, heads = config.decoder.depth, config.decoder.attention.heads",
        "assert effects.shape == scores.shape == (layers, heads), effects.shape",
        "assert inspection.sites(model)['decoder/0/pattern'].shape == pattern.shape",
        "assert jnp.allclose(model.apply({'params': params}, tokens), logits, atol=1e-6) and tokenizer is None",
    ]
    assert body.count("runs/saved") == 2
    (tmp_path / "readme.py").write_text("\n".join([body.replace("runs/saved", str(tmp_path / "saved")), *checks]))
    process = script(str(tmp_path / "readme.py"))
    assert (process.returncode, process.stderr) == (0, "")
