"""Blocks that repeat, what is measured on them, and the script; marked slow, that two layers learn and one does not."""

import importlib.util
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import loading, plots
from experiments.experiment import Experiment
from transformer import inspection, models, text
from transformer.training import metrics

INDUCTION = "experiments.induction"
QUICK = (
    "--config.model.width=16",
    "--config.training.evaluate_every=30",
    "--config.training.checkpoint_every=30",
    "--config.training.batch_size=16",
    "--config.data.length=40",
)


@pytest.fixture(scope="module")
def induction():
    """The script's functions, without its flags being defined twice."""
    from absl import flags

    spec = importlib.util.find_spec(INDUCTION)
    module = importlib.util.module_from_spec(spec)
    known = set(flags.FLAGS)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def experiment(induction):
    """The recipe as it is."""
    spec = importlib.util.spec_from_file_location("recipe", induction.RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Experiment.build(module.get_config())


@pytest.fixture(scope="module")
def untrained(experiment):
    """The recipe's model and its parameters at step 0."""
    model = models.Transformer(experiment.model)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def test_every_row_repeats_a_block_of_distinct_symbols(induction):
    rows, periods = induction.sequences(1, 2, 2200, 65)
    assert rows.shape == (2200, 65) and rows.min() == 0 and rows.max() == 63
    for row, period in zip(rows, periods, strict=True):
        assert len(set(row[:period])) == period
        assert all(row[place] == row[place - period] for place in range(period, 65))


def test_periods_and_symbols_are_drawn_alike(induction):
    rows, periods = induction.sequences(0, 0, 2200, 65)
    for drawn, values, count in ((periods, range(10, 32), 2200), (rows[:, :10], range(64), 22_000)):
        counts = np.bincount(np.ravel(drawn), minlength=max(values) + 1)
        assert counts.sum() == counts[list(values)].sum() == count
        expected = count / len(values)
        assert np.abs(counts[list(values)] - expected).max() < 5 * expected**0.5  # standard deviations, of 86 counts
    assert abs(np.corrcoef(rows[:-1, 0], rows[1:, 0])[0, 1]) < 0.1  # each row has a block of its own


def test_a_batch_is_a_function_of_seed_and_step(induction):
    one, same, step, seed = (induction.batch_at(*which, 4, length=64) for which in ((5, 6), (5, 6), (5, 7), (6, 6)))
    assert one.keys() == {"inputs", "targets", "weights"}
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    for other in (step, seed):
        assert (other["inputs"] != one["inputs"]).mean() > 0.9


def test_those_targets_count_that_an_earlier_occurrence_tells(induction):
    batch = induction.batch_at(0, 0, 50, length=64)
    assert {name: array.dtype for name, array in batch.items()} == {
        "inputs": np.int32, "targets": np.int32, "weights": np.float32,
    }  # fmt: skip
    for inputs, targets, weights in zip(*batch.values(), strict=True):
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        for place, symbol in enumerate(inputs):
            earlier = [index for index in range(place) if inputs[index] == symbol]
            assert weights[place] == bool(earlier)
            assert all(targets[index] == targets[place] for index in earlier)


def test_parameters_begin_as_the_recipe_says(untrained):
    _, params = untrained
    sizes = {"table": 0.5, "kernel": 64**-0.5}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    matrices = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
        if leaf.ndim > 2 or "scale" not in str(path)
    }
    assert len(matrices) == 7
    for name, leaf in matrices.items():
        wanted = sizes[name.split("/")[-1]] * (0.5 if "output" in name else 1)
        # The sample's deviation has a standard error of 1 / sqrt(2 n).
        assert np.std(leaf) == pytest.approx(wanted, rel=5 * (2 * leaf.size) ** -0.5), name
        assert abs(np.mean(leaf)) < 5 * wanted * leaf.size**-0.5, name


def test_accuracy_is_over_the_targets_that_count(induction, untrained, monkeypatch):
    batch = induction.batch_at(0, 1, 8, length=64)
    counts = batch["weights"] > 0

    def predicting(tokens):
        monkeypatch.setattr(inspection, "run", lambda *given, patches: (jax.nn.one_hot(tokens, 64), None))
        return induction.accuracy(*untrained, batch)

    wrong = (batch["targets"] + 1) % 64
    assert predicting(np.where(counts, batch["targets"], wrong)) == 1
    assert predicting(np.where(counts, wrong, batch["targets"])) == 0
    half = np.where(np.arange(64) % 2, batch["targets"], wrong)
    assert predicting(half) == pytest.approx(counts[:, 1::2].sum() / counts.sum())


def test_scores_are_those_of_the_patterns(induction, untrained):
    model, params = untrained
    batch = induction.batch_at(0, 1, 4, length=64)
    seen = induction.observe(model, params, batch)
    _, taps = inspection.run(model, params, batch["inputs"], capture="decoder/*/pattern")
    assert len(seen) == 1 + 2 * 2 * 4
    for layer in range(2):
        pattern = np.asarray(taps[f"decoder/{layer}/pattern"], np.float64)  # [B, H, T, S]
        previous, copied = [], []
        for row, (inputs, weights) in enumerate(zip(batch["inputs"], batch["weights"], strict=True)):
            previous += [pattern[row, :, place, place - 1] for place in range(1, 64)]
            for place in np.flatnonzero(weights):
                after = [index + 1 for index in range(place) if inputs[index] == inputs[place]]
                copied.append(pattern[row, :, place, after].sum(0))
        for name, values in (("previous_token", previous), ("induction", copied)):
            got = [seen[f"heads/decoder/{layer}/{head}/{name}"] for head in range(4)]
            np.testing.assert_allclose(got, np.mean(values, 0), rtol=2e-5)  # sums in float32


def test_without_its_first_layer_a_model_is_one_whose_first_layer_writes_nothing(induction, experiment, untrained):
    model, params = untrained
    trained = loading.of_run(experiment, params, text.Characters(induction.SYMBOLS, fallback=False), 0)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[0].set(0) if "output" in jax.tree_util.keystr(path) else leaf, params
    )
    measured = induction.measure(trained)
    alone = induction.accuracy(model, silent, induction.held_out_batch(experiment))
    assert measured["without_first_layer"] == alone != measured["accuracy"]


def test_the_first_step_that_reached_the_mark_is_found(induction):
    rows = [{"step": 10}, {"step": 20, "validation_accuracy": 0.97}]
    assert induction.learnt_at(rows) is None
    more = [{"step": step, "validation_accuracy": value} for step, value in ((30, 0.98), (40, 0.5), (50, 1.0))]
    assert induction.learnt_at(rows + more) == 30
    values = {"0/1/induction": 0.9, "1/0/induction": 0.2, "1/1/induction": 0.3, "1/1/previous_token": 0.8}
    assert induction.best({f"heads/decoder/{name}": value for name, value in values.items()}, 1, "induction") == 0.3


@pytest.mark.slow
def test_a_run_that_went_on_is_measured_as_one_that_did_not_and_other_scripts_open_it(scripts, tmp_path):
    pictured = importlib.util.find_spec("matplotlib") is not None
    plot = tmp_path / "plots" / "picture.svg"

    def request(name, steps, *more):
        return [INDUCTION, f"--workdir={tmp_path / name}", *QUICK, f"--config.training.steps={steps}", *more]

    run = tmp_path / "halves" / "layers-2-seed-0"
    processes = scripts(
        [
            request("halves", 30, "--json", "--plot="),
            request("halves", 60, "--json", "--plot="),
            request("whole", 60, f"--plot={plot if pictured else ''}"),
            ["experiments.generate", f"--workdir={run}", "--prompt=abc", "--length=4"],
        ]
    )
    for process in processes:
        assert process.returncode == 0, process.stderr
    half, both = (json.loads(process.stdout) for process in processes[:2])
    assert [(row["layers"], row["seed"], row["step"]) for row in half] == [(1, 0, 30), (2, 0, 30)]
    for row in both:
        folder = f"layers-{row['layers']}-seed-0"
        lines = metrics.read(tmp_path / "halves" / folder)
        timed = ("tokens_per_second",)
        for line, other in zip(lines, metrics.read(tmp_path / "whole" / folder), strict=True):
            assert all(line[name] == other[name] for name in line if name not in timed)
        assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
        assert lines[-1]["validation_accuracy"] == row["accuracy"]
        heads = [lines[-1][f"validation_heads/decoder/{row['layers'] - 1}/{head}/induction"] for head in range(4)]
        assert max(heads) == row["induction"][-1] and len(row["induction"]) == row["layers"]
        cells = (row["layers"], 0, f"{row['accuracy']:.3f}", "never", f"{row['previous_token']:.3f}")
        assert re.search(r"\s+│\s+".join(map(str, cells)), processes[2].stdout)
    assert plot.is_file() == pictured and not list(tmp_path.glob("*/*.png"))
    assert processes[3].stdout.startswith("abc") and len(processes[3].stdout.strip()) == 7


def test_every_mistake_is_one_line_and_leaves_nothing_behind(scripts, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    mistakes = {
        "--workdir is missing": [],
        "seeds=0": [workdir, "--seeds=0"],
        "config.data: this program makes its own sequences": [workdir, "--config=experiments/configs/stdlib.py"],
        "config.data: this program": [workdir, "--config.data.validation=0.2"],
        "data.length=31 cannot work: every block must repeat, so 32 or more": [workdir, "--config.data.length=31"],
        "data.length=65 exceeds model.length=64": [workdir, "--config.data.length=65"],
        "model.vocab=63 is too small for the tokenizer's 64": [workdir, "--config.model.vocab=63", "--plot="],
        "config.training has no field 'step'": [workdir, "--config.training.step=3"],
        "initial='gpt2' cannot work": [workdir, "--config.initial=gpt2", "--plot="],
    }
    if importlib.util.find_spec("matplotlib"):
        mistakes["--plot=picture.doc has no ending of a picture"] = [workdir, "--plot=picture.doc"]
    processes = scripts([[INDUCTION, *arguments] for arguments in mistakes.values()])
    for message, process in zip(mistakes, processes, strict=True):
        assert process.returncode == 2 and message in process.stderr, process.stderr
        assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_plot_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'transformer-research\[plots\]'"):
        plots.check("picture.png")


@pytest.mark.slow  # about a minute
def test_two_layers_learn_to_copy_by_induction_heads_and_one_layer_cannot(induction, experiment, tmp_path):
    one, two = (
        induction.measure(induction.train(induction.resized(experiment, depth, 0), tmp_path / str(depth)))
        for depth in (1, 2)
    )
    assert one["accuracy"] <= 0.15
    assert two["accuracy"] >= 0.98 and two["step"] == 1500
    assert two["induction"][1] >= 0.8
    assert two["without_first_layer"] <= 0.15
