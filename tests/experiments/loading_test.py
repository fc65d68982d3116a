"""A model from a run, from a pretrained folder, and as what training begins with."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import loading
from experiments.experiment import SHAPES, Experiment
from transformer import interop, models, text
from transformer.data import Data, Objective, Tokenizer
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


NAMES = ("[MASK]", *(f"<extra_id_{number}>" for number in range(3)))


def of_objective(kind, tokenizer):
    """What `ids` and `start` need of a run, without parameters."""
    stack = Stack(depth=1, attention=Attention(2))
    stacks = {name: stack for name, wanted in zip(("encoder", "decoder"), SHAPES[kind], strict=False) if wanted}
    experiment = Experiment(model=ModelConfig(vocab=4096, width=8, **stacks), data=Data(objective=Objective(kind)))
    return loading.of_run(experiment, {}, tokenizer, 7)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_text_is_read_as_the_objective_has_shown_texts(kind):
    tokenizer = text.BPE.train(["one two three"], 290, special=NAMES)
    trained, end, plain = of_objective(kind, tokenizer), tokenizer.end, tokenizer.encode("one").tolist()
    crosses, reads_names = kind in ("spans", "pairs"), kind in ("masked", "spans")
    assert (trained.start, trained.stop, trained.prefix) == (end if crosses else None, (end,), kind == "prefix")
    assert trained.ids("one") == ([*plain, end] if crosses else [end, *plain])
    assert trained.ids("") == [end]  # not twice
    for name, special in (("[MASK]", tokenizer.mask), ("<extra_id_1>", tokenizer.sentinels[1])):
        written = [special] if reads_names else tokenizer.encode(name).tolist()
        assert trained.ids(f"one{name}") == ([*plain, *written, end] if crosses else [end, *plain, *written])
    if reads_names:  # an end that is written is not doubled
        assert trained.ids("one<|endoftext|>" if crosses else "<|endoftext|>one") == trained.ids("one")


def test_padding_begins_a_target_where_the_tokenizer_has_it():
    class Padded(text.Bytes):
        pad = 3

    assert of_objective("pairs", Padded()).start == 3 and of_objective("pairs", text.Bytes()).start == 256


def test_the_mean_of_checkpoints_is_of_the_last_ones_up_to_a_step(made):
    def mean(*steps):
        return jax.tree.map(lambda *leaves: np.mean(np.asarray(leaves, np.float64), 0).astype(np.float32), *(
            made.params[step] for step in steps))  # fmt: skip

    for arguments, steps in (({}, (2, 3)), ({"step": "best"}, (1, 2)), ({"step": 2}, (1, 2))):
        trained = loading.load(made.workdir, average=2, **arguments)
        same(trained.params, mean(*steps))
        assert (trained.step, trained.origin) == (steps[-1], f"step {steps[-1]}, mean of 2 checkpoints")
        assert trained.experiment == made.experiment and trained.tokenizer.size == 280
    same(loading.load(made.workdir, average=1).params, made.params[3])


def test_a_mean_of_more_than_there_is_or_of_no_run_is_refused(made, pretrained):
    with pytest.raises(ValueError, match=r"average=4: .* has only 3 intact checkpoints up to step 3"):
        loading.load(made.workdir, average=4)
    with pytest.raises(ValueError, match=r"--average=2 chooses among checkpoints, and .* has none: leave it out"):
        loading.load(pretrained, average=2)
