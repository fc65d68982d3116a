"""The batches and the script; marked slow, that a trained model tells senses apart by the heads that are found."""

import importlib.util
import json

import numpy as np
import pytest

from experiments import loading, verdant_measures
from experiments import verdant_questions as questions
from experiments.experiment import Experiment

VERDANT = "experiments.verdant"
IDS = questions.numbers()
QUICK = (
    "--config.model.width=16",
    "--config.model.decoder.mlp.width=16",
    "--config.training.batch_size=8",
    "--config.training.optimizer.warmup=0",
    "--config.training.steps=20",
    "--questions=500",
)


@pytest.fixture(scope="module")
def verdant():
    """The script's functions, without its flags being defined twice."""
    from absl import flags

    spec = importlib.util.find_spec(VERDANT)
    module = importlib.util.module_from_spec(spec)
    known = set(flags.FLAGS)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def experiment(verdant):
    """The recipe as it is."""
    spec = importlib.util.spec_from_file_location("recipe", verdant.RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Experiment.build(module.get_config())


def test_a_batch_is_sentences_and_a_function_of_seed_and_step(verdant):
    names = list(IDS)
    one, same, step, seed = (verdant.batch_at(*which, 4, length=28) for which in ((5, 6), (5, 6), (5, 7), (6, 6)))
    assert {name: array.dtype for name, array in one.items()} == {
        "inputs": np.int32, "targets": np.int32, "weights": np.float32,
    }  # fmt: skip
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert (step["inputs"] != one["inputs"]).any() and (seed["inputs"] != one["inputs"]).any()
    for inputs, targets, weights in zip(*one.values(), strict=True):
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        stop = next(place for place, token in enumerate(targets) if names[token] == ".")
        assert inputs[0] == 0 and not targets[stop + 1 :].any()
        np.testing.assert_array_equal(weights, np.arange(28) <= stop + 1)


@pytest.mark.slow
def test_the_script_trains_once_measures_and_leaves_a_run(scripts, tmp_path):
    plot, pictured = tmp_path / "plots" / "picture.svg", importlib.util.find_spec("matplotlib") is not None

    def request(*more):
        return [VERDANT, f"--workdir={tmp_path / 'run'}", *QUICK, *more]

    processes = scripts(
        [
            request("--json", "--plot="),
            request(f"--plot={plot if pictured else ''}", "--word=tower"),
            ["experiments.generate", f"--workdir={tmp_path / 'run'}", "--prompt=near the meadow ,", "--length=4"],
        ]
    )
    for process in processes:
        assert process.returncode == 0, process.stderr
    whole = json.loads(processes[0].stdout)
    assert whole["step"] == loading.load(tmp_path / "run").step == 20
    loss = whole["loss"]
    assert loss["best"] < loss["model"] < np.log(len(IDS))
    for kind in ("sense", "manner"):
        assert whole[kind]["accuracy"]["decoder/embedding"] == pytest.approx(whole[kind]["chance"], abs=0.1)
        assert np.shape(whole[kind]["exchanged"]["followed"]) == (2, 4)
    assert whole["sense"]["spread"]["decoder/embedding"] == 0
    shown = processes[1].stdout
    assert shown.startswith("resuming") and "step 20: nats per token" in shown
    for number in (loss["model"], loss["best"]):
        assert f" {number:.4f} " in shown
    for site in ("decoder/embedding", "decoder/final_norm"):
        assert f" {whole['sense']['accuracy'][site]:.3f} │  {whole['manner']['accuracy'][site]:.3f} " in shown
    assert plot.is_file() == pictured and not list(tmp_path.glob("*/*.png"))
    assert processes[2].stdout.startswith("near the meadow ,")


def test_every_mistake_is_one_line_and_leaves_nothing_behind(scripts, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    mistakes = {
        "--workdir is missing": [],
        "questions=20": [workdir, "--questions=20"],
        "--word=vole": [workdir, "--word=vole"],
        "config.data: this program makes its own sequences": [workdir, "--config=experiments/configs/stdlib.py"],
        "data.length=27 cannot work: sentences have up to 28 tokens": [workdir, "--config.data.length=27"],
        "model.vocab=206 is too small for the tokenizer's 207": [workdir, "--config.model.vocab=206", "--plot="],
    }
    if importlib.util.find_spec("matplotlib"):
        mistakes["--plot=picture.doc has no ending of a picture"] = [workdir, "--plot=picture.doc"]
    for message, process in zip(mistakes, scripts([[VERDANT, *flags] for flags in mistakes.values()]), strict=True):
        assert process.returncode == 2 and message in process.stderr, process.stderr
        assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # two minutes
def test_a_trained_model_tells_senses_apart_by_the_heads_that_are_found(verdant, experiment, tmp_path):
    measured = verdant.measure(verdant.train(experiment, tmp_path), 1200)
    assert 0 < measured.loss.model - measured.loss.best < 0.02
    for asked in measured.asked().values():
        first, *_, last = asked.accuracy.values()
        assert first == pytest.approx(asked.chance, abs=0.05) and last >= 0.99
        (found, exchanged), (others, rest) = (asked.carriers.together[name] for name in ("found", "others"))
        assert exchanged.followed >= 0.95 and rest.followed <= 0.05
        assert found.right <= 0.75 and others.right >= 0.95
    sense = measured.sense
    assert sense.accuracy["decoder/embedding"] == pytest.approx(sense.chance)
    nouns = sense.questions.tokens[np.arange(1200), sense.questions.noun]
    assert verdant_measures.spread(sense.vectors["decoder/embedding"], nouns) == 0
