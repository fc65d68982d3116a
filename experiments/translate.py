r"""Translate a file, or lines typed at a prompt, with a model that reads a source and writes a target.

    python -m experiments.translate --workdir=runs/multi30k --input=test.en --output=test.de [--average=10] [--beams=5]
    python -m experiments.translate --workdir=runs/multi30k --input=test.en --beams=5 --count=5
    python -m experiments.translate --workdir=runs/multi30k

A file has one source a line, and its output one target a line in the same order; with `--count`, one hypothesis a line:
the number of its source from 1, its score and its text, parted by tabs. Without `--input`, lines are read from the
terminal or a pipe and each is answered at once; what is typed may have empty lines. `--workdir` also takes a folder in
the format of Hugging Face, such as a Marian or T5 model, or a name on its hub.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from experiments import command, devices, inputs, loading, outputs, translation
from experiments.loading import Trained
from experiments.translation import Output, Search
from transformer.training import distributed

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
DTYPE = loading.define_dtype()
MESH = devices.define_mesh()
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
AVERAGE = loading.define_average()
INPUT = flags.DEFINE_string("input", None, "A file of sources, one a line; default: standard input, line by line.")
OUTPUT = flags.DEFINE_string("output", None, "Where the targets go; default: standard output.")
COUNT = flags.DEFINE_integer("count", 1, "How many hypotheses of each source to write.", lower_bound=1)
TRUNCATE = flags.DEFINE_boolean("truncate", False, "Cut sources that are too long, in the place of an error.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Sources searched at a time.", lower_bound=1, upper_bound=65_536)
SEARCH = translation.define_flags(beams=4)


def main() -> None:
    distributed.check_alone()
    source = loading.required(WORKDIR)
    search = Search(
        count=COUNT.value, batch_size=BATCH_SIZE.value, **{name: flag.value for name, flag in SEARCH.items()}
    )
    search.check()
    lines = None if INPUT.value is None else read(INPUT.value)
    if OUTPUT.value is None:
        out = outputs.standard()
        if lines is None:
            answer(load(source, search), search)
        else:
            out.write(translated(load(source, search), lines, search))
        return
    if lines is None:
        raise ValueError("--output goes with --input: lines from standard input are answered on standard output")
    with outputs.replacing(OUTPUT.value) as temporary:  # before the model is loaded, so that a mistake is seen at once
        outputs.check_apart(OUTPUT.value, INPUT.value)
        temporary.write_text(translated(load(source, search), lines, search), encoding="utf-8")


def load(source: Path, search: Search) -> Trained:
    """The model of the command line, which can be searched."""
    trained = loading.load(source, loading.step(STEP.value), DTYPE.value, AVERAGE.value)
    trained = devices.spread(trained, MESH.value)
    translation.check(trained, search)
    return trained


def translated(trained: Trained, lines: list[str], search: Search) -> str:
    """What the lines of a file become."""
    named = ((f"{INPUT.value}, line {number}", line) for number, line in enumerate(lines, start=1))
    sources = translation.sources_of(trained, named, TRUNCATE.value)
    return "".join(spelt(translation.translate(trained, sources, search), search.count))


def read(path: str) -> list[str]:
    """The lines of a file of sources; raises ValueError if it cannot be read, is not UTF-8, or has none."""
    lines = enumerate(inputs.lines(path, "source"), start=1)
    return [inputs.spelt(f"{path}, line {number}", number, line) for number, line in lines]


def spelt(found: list[list[Output]], count: int, first: int = 1) -> list[str]:
    """The lines to write: one target a source, or hypotheses with their scores, numbered from `first`."""
    if count == 1:
        return [f"{_line(row[0].text) if row else ''}\n" for row in found]
    return [
        f"{number}\t{output.score:.4f}\t{_line(output.text)}\n"
        for number, row in enumerate(found, start=first)
        for output in row
    ]


def answer(trained: Trained, search: Search) -> None:
    """Translate what is typed, a line at a time, until there is no more."""
    inputs.check_open()
    typed, number = sys.stdin.isatty(), 0
    while True:
        if typed:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        number += 1
        if number == 1:
            line = line.removeprefix(inputs.MARK)
        if typed and not line.strip():
            continue
        name = "the line" if typed else f"standard input, line {number}"
        try:
            rows = translation.sources_of(trained, [(name, line.rstrip("\r\n"))], TRUNCATE.value)
        except ValueError as error:
            if not typed:
                raise
            print(f"error: {error}", file=sys.stderr)
            continue
        written = spelt(translation.translate(trained, rows, search), search.count, number)
        print("".join(written), end="", flush=True)


def _line(content: str) -> str:
    """One line that can be encoded: a model may write what would be two, or what no encoding can spell."""
    return " ".join(content.split("\n")).encode("utf-8", "replace").decode("utf-8")


if __name__ == "__main__":
    command.run(main)
