r"""Ambiguous words in a grammar whose truth is known: a mole in a meadow, in a laboratory, in a clinic.

    python -m experiments.verdant --workdir=runs/verdant [--word=mole] [--plot=FILE.png] [--json]
    python -m experiments.verdant --workdir=... --config.seed=1 --config.training.steps=4000

A small decoder learns sentences of `experiments.verdant_grammar`, words as tokens. Its loss is compared with the best
possible one. Then it is asked, at each depth, whether the vector of an ambiguous noun tells its sense, and the vector
of a noun with adjectives the manners that go with them; and which heads put that there. Attention is one answer;
ablation and exchanging heads between two contexts are the others (see `experiments.verdant_measures`).

The working directory is a run that every other script opens; the same command goes on where an earlier one ended, and
only measures when it has.
"""

from __future__ import annotations

import functools
import json
import math
import random
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console

from experiments import devices, generated, loading, plots, recipe, verdant_report, writing
from experiments import verdant_measures as measures
from experiments import verdant_questions as questions
from experiments.experiment import Experiment
from experiments.verdant_grammar import Sentence, longest, sample
from experiments.verdant_lexicon import ENGLISH
from transformer import data, text

NAME = "verdant"
RECIPE = Path(__file__).parent / "configs" / "verdant.py"
IDS = questions.numbers()
TOLD = 2048  # sentences on which the loss is measured
PIPE_WIDTH = 110  # wide enough for the tables, where no terminal sets the width

CONFIG = recipe.define()
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run goes.")
WORD = flags.DEFINE_enum("word", "mole", list(ENGLISH.ambiguous), "The noun whose vectors are drawn.")
PLOT = flags.DEFINE_string("plot", None, "Where the plot goes; default: verdant.png in --workdir; empty: nowhere.")
QUESTIONS = flags.DEFINE_integer("questions", 1200, "How many questions of each kind are asked.", lower_bound=500)
DEVICES = devices.define_parallel()
JSON = flags.DEFINE_boolean("json", False, "Print JSON in the place of tables.")


def main() -> None:
    experiment = recipe.build(CONFIG)
    check(experiment)
    if not WORKDIR.value:
        raise ValueError("--workdir is missing: say where the run goes, such as --workdir=runs/verdant")
    workdir, console = Path(WORKDIR.value), writing.console()
    picture = workdir / "verdant.png" if PLOT.value is None else PLOT.value
    if picture:
        plots.check(picture)
    trained = train(experiment, workdir, None if JSON.value else console, DEVICES())
    measured = measure(trained, QUESTIONS.value)
    if picture:
        plots.save(verdant_report.draw(measured, WORD.value), picture)
    if JSON.value:
        print(json.dumps(verdant_report.summary(measured)))
        return
    console.width = max(console.width, PIPE_WIDTH)
    for table in verdant_report.tables(measured):
        console.print(table)
    console.print(f"run:  {workdir}" + (f"\nplot: {picture}" if picture else ""))


def check(experiment: Experiment) -> None:
    """Raises ValueError unless the recipe is one for these sentences."""
    generated.check(experiment, NAME)
    least = longest(ENGLISH) + 1
    if experiment.data.length < least:
        raise ValueError(f"data.length={experiment.data.length} cannot work: sentences have up to {least} tokens")


def told(seed: str, count: int) -> list[Sentence]:
    """So many sentences, a function of the seed."""
    generator = random.Random(seed)
    return [sample(generator) for _ in range(count)]


def batch(sentences: list[Sentence], length: int) -> data.Example:
    """One sentence a row; its words and the END behind them count."""
    tokens = questions.encode([[word.text for word in sentence] for sentence in sentences], IDS, length + 1)
    ends = np.asarray([len(sentence) for sentence in sentences])
    return data.causal(tokens) | {"weights": (np.arange(length) <= ends[:, None]).astype(np.float32)}


def batch_at(seed: int, step: int, rows: int, *, length: int) -> data.Example:
    """The batch of a step."""
    return batch(told(f"{seed} {step}", rows), length)


def train(
    experiment: Experiment,
    workdir: Path,
    console: Console | None = None,
    shared: devices.Devices | None = None,
) -> loading.Trained:
    """A run on these sentences."""
    return generated.train(
        experiment,
        generated.words(tuple(IDS), end=text.END),
        functools.partial(batch_at, length=experiment.data.length),
        workdir,
        console=console,
        devices=shared,
    )


def measure(trained: loading.Trained, count: int) -> verdant_report.Measured:
    """How good a model is, and what it knows of nouns by so many questions of each kind, on sentences of their own."""
    model, params, seed = trained.model, trained.params, trained.experiment.seed
    sentences, length = told(f"{seed} loss", TOLD), trained.experiment.data.length
    example = batch(sentences, length)
    lost, tokens = measures.nats(model, params, example).sum(), float(example["weights"].sum())
    words = [word for sentence in sentences for word in sentence]
    loss = verdant_report.Loss(
        model=lost / tokens,
        best=sum(-math.log(word.options.probabilities[word.text]) for word in words) / tokens,
        entropy=sum(word.options.entropy for word in words) / tokens,
    )
    asked = {}
    for name, kind in (("sense", questions.senses), ("manner", questions.manners)):
        drawn = questions.collect(kind, count, random.Random(f"{seed} {name}"))
        asked[name] = measures.ask(model, params, questions.pack(drawn, IDS, length))
    return verdant_report.Measured(trained.step, loss, **asked)


if __name__ == "__main__":
    recipe.run(main, RECIPE)
