"""A model from a run, from a pretrained folder, and as what training begins with."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import loading
from experiments.experiment import Experiment
from transformer import interop, models, text
from transformer.data import Data, Tokenizer
from transformer.models import Attention, ModelConfig, Stack


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("step", "number"), [("latest", 3), ("best", 2), (1, 1)])
def test_a_run_comes_back_with_the_average_the_tokenizer_and_the_experiment(made, step, number):
    trained = loading.load(made.workdir, step)
    assert trained.step == number
    same(trained.params, made.params[number])
    assert trained.experiment == made.experiment
    assert trained.tokenizer.decode(trained.tokenizer.encode("three words")) == "three words"


def test_a_tokenizer_that_the_model_was_not_trained_with_is_refused(made, tmp_path):
    shutil.copytree(made.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "data")
    text.BPE.train(["other text entirely"], 270).save(tmp_path / "run" / "data")
    with pytest.raises(ValueError, match="holds another tokenizer than the checkpoint was trained with"):
        loading.load(tmp_path / "run")


@pytest.mark.parametrize(("name", "step"), [("latest", "latest"), ("best", "best"), ("12", 12)])
def test_a_step_is_named_or_numbered(name, step):
    assert loading.step(name) == step


@pytest.mark.parametrize("name", ["last", "-1", "1.5", ""])
def test_what_is_no_step_is_refused(name):
    with pytest.raises(ValueError, match=f"--step={name} is not a checkpoint"):
        loading.step(name)


def test_a_pretrained_folder_gives_its_model_and_tokenizer(pretrained):
    trained = loading.load(pretrained)
    assert trained.model.config.decoder.attention.kv_heads == 2
    assert (trained.experiment, trained.step, trained.origin) == (None, None, str(pretrained))
    same(trained.params, interop.load(pretrained)[1])
    # A pretrained model's texts begin as its tokenizer says, here with nothing; an empty one with what opens documents.
    assert trained.ids("one two") == trained.tokenizer.encode("one two").tolist()
    assert trained.ids("") == [trained.tokenizer.end]


def test_a_folder_without_a_tokenizer_or_a_step_of_one_is_refused(pretrained, tmp_path):
    with pytest.raises(ValueError, match="--step=3 chooses among checkpoints"):
        loading.load(pretrained, 3)
    shutil.copytree(pretrained, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    with pytest.raises(ValueError, match=r"bare has no tokenizer: put tokenizer\.json"):
        loading.load(tmp_path / "bare")


def recipe(initial, **data):
    small = ModelConfig(
        vocab=300, width=8, length=8, decoder=Stack(depth=1, attention=Attention(2, dropout=0.2), dropout=0.1)
    )
    return Experiment(
        model=dataclasses.replace(small, dtype="bfloat16", unroll=1), data=Data(length=16, **data), initial=str(initial)
    )


def test_training_begins_with_the_architecture_the_parameters_and_the_tokenizer_of_a_folder(pretrained):
    experiment, params = loading.initial(recipe(pretrained))
    _, expected, _ = interop.load(pretrained)
    same(params, expected)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    config = experiment.model
    assert (config.width, config.length, config.decoder.depth) == (16, 32, 2)
    assert (config.decoder.dropout, config.decoder.attention.dropout, config.dtype) == (0.1, 0.2, "bfloat16")
    assert experiment.data.tokenizer.folder == str(pretrained)
    assert Experiment.build(json.loads(json.dumps(experiment.dictionary()))) == experiment


def test_training_begins_with_another_run(made):
    experiment, params = loading.initial(recipe(made.workdir))
    same(params, made.params[3])
    assert experiment.model.width == made.experiment.model.width
    assert text.load(experiment.data.tokenizer.folder).size == 280


def test_a_recipe_keeps_the_tokenizer_that_it_names(pretrained, made):
    experiment, _ = loading.initial(recipe(pretrained, tokenizer=Tokenizer(folder=str(made.workdir / "data"))))
    assert experiment.data.tokenizer.folder == str(made.workdir / "data")


def test_what_does_not_fit_the_initial_model_is_refused(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"initial=.*data\.length=64 exceeds model\.length=32: lower the former"):
        loading.initial(dataclasses.replace(recipe(pretrained), data=Data(length=64)))
    encoder = models.Transformer(models.get("bert-base"))
    small = dataclasses.replace(encoder.config, vocab=280, width=8, encoder=dataclasses.replace(
        encoder.config.encoder, depth=1, attention=Attention(2, bias=True, output_bias=True),
        mlp=dataclasses.replace(encoder.config.encoder.mlp, width=8)))  # fmt: skip
    model = models.Transformer(small)
    params = model.init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    interop.save(tmp_path / "bert", model, params, text.load(pretrained))
    with pytest.raises(ValueError, match="needs a decoder alone"):
        loading.initial(recipe(tmp_path / "bert"))
