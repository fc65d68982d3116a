r"""Induction heads, and the moment at which they form: attention alone on blocks of random tokens that repeat.

    python -m experiments.induction --workdir=runs/induction [--seeds=5] [--plot=FILE.png] [--json]
    python -m experiments.induction --workdir=... --config.training.steps=3000

A sequence repeats one block of distinct random symbols, of a length drawn for it, so a model that finds the last
occurrence of a symbol and copies what came next is always right. In one layer no head can do so: it takes a head that
tells each position which symbol came before it, and in a later layer one that looks for the symbol at hand among those
(Elhage et al. 2021, transformer-circuits.pub/2021/framework; Olsson et al. 2022, arXiv:2209.11895).

For every seed one layer and the recipe's layers are trained, each in a folder of the working directory that every other
script opens, and measured on held-out sequences. The same command goes on where an earlier one ended.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import devices, generated, loading, plots, recipe, writing
from experiments.experiment import Experiment
from transformer import data, inspection, models, text
from transformer.inspection import patterns
from transformer.training import metrics

SYMBOLS = string.ascii_letters + string.digits + "+-"
PERIODS = (10, 31)  # the shortest block and the longest
ROWS = 128  # of held-out sequences
SCORES = ("previous_token", "induction")
RECIPE = Path(__file__).parent / "configs" / "induction.py"
NAME = "induction"
LEARNT = 0.98  # accuracy
PIPE_WIDTH = 110  # wide enough for the table, where no terminal sets the width

CONFIG = recipe.define()
WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go, a folder for each.")
SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds, from the recipe's on.", lower_bound=1)
PLOT = flags.DEFINE_string("plot", None, "Where the plot goes; default: induction.png in --workdir; empty: nowhere.")
DEVICES = devices.define_parallel()
JSON = flags.DEFINE_boolean("json", False, "Print JSON in the place of tables.")


def main() -> None:
    experiment = recipe.build(CONFIG)
    check(experiment)
    if not WORKDIR.value:
        raise ValueError("--workdir is missing: say where the runs go, such as --workdir=runs/induction")
    workdir, console = Path(WORKDIR.value), writing.console()
    picture = workdir / "induction.png" if PLOT.value is None else PLOT.value
    if picture:
        plots.check(picture)
    rows, runs = [], {}
    for seed in range(experiment.seed, experiment.seed + SEEDS.value):
        for depth in sorted({1, experiment.model.decoder.depth}):
            folder = workdir / f"layers-{depth}-seed-{seed}"
            trained = train(resized(experiment, depth, seed), folder, None if JSON.value else console, DEVICES())
            runs[depth, seed] = metrics.read(folder)
            rows.append({"layers": depth, "seed": seed, **measure(trained), "learnt_at": learnt_at(runs[depth, seed])})
    if JSON.value:
        print(json.dumps(rows))
    else:
        console.width = max(console.width, PIPE_WIDTH)
        console.print(table(rows))
        console.print(f"runs: {workdir}" + (f"\nplot: {picture}" if picture else ""))
    if picture:  # last, so that no picture that fails takes the numbers with it
        plots.save(draw(runs), picture)


def check(experiment: Experiment) -> None:
    """Raises ValueError unless the recipe is one for these sequences."""
    generated.check(experiment, NAME)
    if experiment.data.length <= PERIODS[1]:
        least = PERIODS[1] + 1
        raise ValueError(
            f"data.length={experiment.data.length} cannot work: every block must repeat, so {least} or more"
        )


def resized(experiment: Experiment, depth: int, seed: int) -> Experiment:
    """The experiment with so many layers and a seed of its own."""
    decoder = dataclasses.replace(experiment.model.decoder, depth=depth)
    model = dataclasses.replace(experiment.model, decoder=decoder, unroll=min(experiment.model.unroll, depth))
    return dataclasses.replace(experiment, model=model, seed=seed)


def sequences(seed: int, step: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that repeat a block of their own, and the length of each block.

    Args:
      seed, step: what the rows are a function of.
      rows: how many, B.
      length: of each row.

    Returns:
      Ids `[B, length]`, where `ids[b, t] = ids[b, t - period[b]]` and a block has no symbol twice; and `period` `[B]`,
      uniform between the two of `PERIODS`.
    """
    random = np.random.default_rng((seed, step))
    periods = random.integers(PERIODS[0], PERIODS[1] + 1, rows)
    blocks = random.permuted(np.tile(np.arange(len(SYMBOLS)), (rows, 1)), axis=1)  # [B, V], the first ones are used
    return np.take_along_axis(blocks, np.arange(length) % periods[:, None], axis=1), periods


def batch_at(seed: int, step: int, rows: int, *, length: int) -> data.Example:
    """The batch of a step: the next tokens in `sequences`, of which the repeated part counts.

    It holds the targets of the tokens from the second occurrence of the block on: `inputs[b, t]` with
    `t >= period[b]` was there before, and `targets[b, t]` is what came after it then. The target of the first block's
    last token is not among them, since nothing before it tells that the block ends.
    """
    ids, periods = sequences(seed, step, rows, length + 1)
    repeated = np.arange(length) >= periods[:, None]
    return data.causal(ids) | {"weights": repeated.astype(np.float32)}


def train(
    experiment: Experiment,
    workdir: Path,
    console: Console | None = None,
    shared: devices.Devices | None = None,
) -> loading.Trained:
    """A run on these sequences, with what `observe` measures in its metrics."""
    tokenizer = text.Characters(SYMBOLS, fallback=False)
    model, held_out = models.Transformer(experiment.model), held_out_batch(experiment)
    return generated.train(
        experiment,
        tokenizer,
        functools.partial(batch_at, length=experiment.data.length),
        workdir,
        observe=lambda step, params: observe(model, params, held_out),
        console=console,
        devices=shared,
    )


def held_out_batch(experiment: Experiment) -> data.Example:
    """A large batch that training never reaches."""
    return batch_at(experiment.seed, generated.HELD_OUT, ROWS, length=experiment.data.length)


def observe(model: models.Transformer, params: Any, batch: data.Example) -> dict[str, float]:
    """The accuracy, and of each head, as `heads/decoder/LAYER/HEAD/SCORE`, what `SCORES` names."""
    found = patterns.scores(model, params, batch["inputs"], names=SCORES)["decoder"]
    heads = {
        f"heads/decoder/{layer}/{head}/{name}": float(value)
        for name in SCORES
        for (layer, head), value in np.ndenumerate(np.asarray(found[name]))
    }
    return {"accuracy": accuracy(model, params, batch), **heads}


def accuracy(model: models.Transformer, params: Any, batch: data.Example, patches: Any = ()) -> float:
    """The share of the targets that count which are the likeliest token."""
    logits, _ = inspection.run(model, params, batch["inputs"], patches=patches)
    right = np.asarray(jnp.argmax(logits, axis=-1)) == batch["targets"]
    return float(np.average(right, weights=batch["weights"]))


def measure(trained: loading.Trained) -> dict[str, Any]:
    """A row of the table: how well a model does, by which heads, and how well without its first layer."""
    batch = held_out_batch(trained.experiment)
    seen = observe(trained.model, trained.params, batch)
    without = inspection.Patch("decoder/0/mixed", 0.0)
    return {
        "step": trained.step,
        "accuracy": seen["accuracy"],
        "induction": [best(seen, layer, "induction") for layer in range(trained.model.config.decoder.depth)],
        "previous_token": best(seen, 0, "previous_token"),
        "without_first_layer": accuracy(trained.model, trained.params, batch, without),
    }


def best(values: Mapping[str, float], layer: int, score: str) -> float:
    """The highest score of a layer's heads."""
    start, end = f"heads/decoder/{layer}/", f"/{score}"
    return max(value for name, value in values.items() if name.startswith(start) and name.endswith(end))


def learnt_at(rows: list[dict[str, Any]]) -> int | None:
    """The first step that was measured at which a run's accuracy reached `LEARNT`."""
    return next((row["step"] for row in rows if row.get("validation_accuracy", 0) >= LEARNT), None)


def table(rows: list[dict[str, Any]]) -> Table:
    """What was measured of each run."""
    title = f"accuracy, and the best head's score by layer, on {ROWS} held-out sequences"
    out = Table("layers", "seed", title=title, title_justify="left")
    depth = max(row["layers"] for row in rows)
    scores = ("previous token 0", *(f"induction {layer}" for layer in range(depth)))
    for name in ("accuracy", f"{LEARNT:.0%} at step", *scores, "without layer 0"):
        out.add_column(name, justify="right")
    for row in rows:
        learnt = "never" if row["learnt_at"] is None else str(row["learnt_at"])
        scores = [f"{value:.3f}" for value in (row["previous_token"], *row["induction"])]
        scores += [""] * (depth - row["layers"])
        last = f"{row['without_first_layer']:.3f}"
        out.add_row(str(row["layers"]), str(row["seed"]), f"{row['accuracy']:.3f}", learnt, *scores, last)
    return out


def draw(runs: Mapping[tuple[int, int], list[dict[str, Any]]]) -> Any:
    """A figure of the accuracy of runs by depth and seed over steps and, of the deepest, of the best heads' scores."""
    figure, (above, below) = plots.library().subplots(2, sharex=True, figsize=(7, 6))
    deepest, labelled = max(depth for depth, _ in runs), set()

    def line(axes: Any, points: Mapping[int, float], label: str, colour: str) -> None:
        once = None if label in labelled else label  # in the legend
        labelled.add(label)
        axes.plot(list(points), list(points.values()), color=colour, alpha=0.8, linewidth=1.2, label=once)

    for (depth, _), rows in sorted(runs.items(), reverse=True):
        seen = {row["step"]: held_out(row) for row in rows if held_out(row)}
        accuracies = {step: values["accuracy"] for step, values in seen.items()}
        line(above, accuracies, f"{depth} layer{'s' * (depth > 1)}", plots.COLOURS[depth != deepest])
        if depth == deepest:
            for layer, score, colour in ((depth - 1, "induction", 3), (0, "previous_token", 2)):
                points = {step: best(values, layer, score) for step, values in seen.items()}
                line(below, points, f"{score.replace('_', ' ')}, layer {layer}", plots.COLOURS[colour])
    above.set(title="Accuracy where the block repeats, one line a seed", ylim=(0, 1.02))
    below.set(title=f"Attention of the best head, {deepest} layers", xlabel="step", ylim=(0, 1.02), xlim=(0, None))
    for axes in (above, below):
        axes.legend(loc="best")
    return figure


def held_out(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of metrics says of held-out sequences; empty where nothing was measured."""
    return {name.removeprefix("validation_"): row[name] for name in row if name.startswith("validation_")}


if __name__ == "__main__":
    recipe.run(main, RECIPE)
