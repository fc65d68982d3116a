"""Every recipe says how it is run and what to expect, builds an experiment, and is as large as stated here."""

import importlib.util
from pathlib import Path

import pytest

from experiments import generated
from experiments.experiment import Experiment
from transformer import models

FOLDER = Path(__file__).parents[1] / "experiments" / "configs"

# Parameters of each setting of a recipe. Published are GPT-2 small's, T5 small's, those of BERT with its head (less the
# two token types), the original Transformer's in millions (63 and 214, printed as 65 and 213), and nanoGPT's without
# the table of positions.
SIZES = {
    ("bert_base", None): 109_514_298 - 2 * 768,
    ("gpt2_small", None): 124_439_808,
    ("gpt3_175b", None): 174_604_259_328,
    ("induction", None): 45_248,
    ("mlm_stdlib", None): 2_164_416,
    ("reverse", "sinusoidal"): 248_320,
    ("reverse", "learned"): 248_320 + 2 * 64 * 64,
    ("reverse", "rotary"): 248_320,
    ("reverse", "relative"): 248_320 + 2 * 4 * 32,
    ("reverse", "alibi"): 248_320,
    ("reverse", "none"): 248_320,
    ("shakespeare_char", "nanogpt"): 804_096,
    ("shakespeare_char", "ours"): 812_288,
    ("shakespeare_char", "full"): 10_745_088,
    ("span_stdlib", None): 3_493_312,
    ("stdlib", None): 2_164_416,
    ("t5_small", None): 60_506_624,
    ("translate_multi30k", None): 2_598_912,
    ("translate_wmt14", "base"): 63_045_632,
    ("translate_wmt14", "big"): 214_171_648,
    ("verdant", None): 144_640,
}


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


RECIPES = {path.stem: module(path) for path in sorted(FOLDER.glob("*.py"))}
SETTINGS = [(name, setting) for name, recipe in RECIPES.items() for setting in getattr(recipe, "SETTINGS", (None,))]


def experiment(name, setting):
    return Experiment.build(RECIPES[name].get_config(*([] if setting is None else [setting])))


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_a_setting_builds_an_experiment_of_the_stated_size(name, setting):
    assert models.ledger(experiment(name, setting).model).total == SIZES[name, setting]


def test_every_stated_size_is_of_a_setting():
    assert set(SIZES) == set(SETTINGS)


@pytest.mark.parametrize(("setting", "published"), [("nanogpt", 0.80), ("full", 10.65)])
def test_shakespeare_is_as_large_as_nanogpt_counts_it(setting, published):
    config = experiment("shakespeare_char", setting).model
    assert round((models.ledger(config).total - config.length * config.width) / 1e6, 2) == published


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if hasattr(recipe, "SETTINGS")])
def test_the_first_setting_is_the_default_and_others_are_refused(name):
    assert experiment(name, None) == experiment(name, next(iter(RECIPES[name].SETTINGS)))
    with pytest.raises(ValueError, match="setting 'huge' is unknown"):
        experiment(name, "huge")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_to_run_it_and_what_to_expect(name):
    text = RECIPES[name].__doc__
    lines = [line.strip() for line in text.splitlines()]
    path = experiment(name, None).data.path  # of a program that generates what it trains on, or of a corpus
    program = path.removeprefix(generated.MARK) if path.startswith(generated.MARK) else "train"
    commands = [line for line in lines if line.startswith(f"python -m experiments.{program} ")]
    assert commands and all(f"--config=experiments/configs/{name}.py" in line for line in commands)
    for word in ("Hardware:", "Time:", "Score:"):
        assert word in text, word
    for setting in list(getattr(RECIPES[name], "SETTINGS", ()))[1:]:
        assert f":{setting}" in text, setting
