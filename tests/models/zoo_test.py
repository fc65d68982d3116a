"""Published facts that the parameter counts of `ledger_test` cannot see."""

import dataclasses

import pytest

from transformer import models


@pytest.mark.parametrize("name", models.names())
def test_every_name_gives_an_equal_config_each_time(name):
    assert name == name.lower()
    assert models.get(name) == models.get(name)
    assert isinstance(models.get(name), models.ModelConfig)


def test_names_are_unique_and_all_families_are_there():
    names = models.names()
    assert len(set(names)) == len(names)
    for name in ("transformer-base", "gpt2-xl", "gpt3-175b", "bert-large", "t5-11b", "t5-v1.1-xxl", "llama2-70b"):
        assert name in names
    for name in ("llama3-8b", "mistral-7b", "qwen2-0.5b", "qwen3-0.6b", "gemma-2b", "tiny-both"):
        assert name in names


@pytest.mark.parametrize(
    ("wrong", "meant"), [("gpt2-smal", "gpt2-small"), ("llama-3-8b", "llama3-8b"), ("T5-v1.1-base", "t5-v1.1-base")]
)
def test_an_unknown_name_lists_the_nearest(wrong, meant):
    with pytest.raises(ValueError, match=f"{wrong}.*nearest.*{meant}"):
        models.get(wrong)


@pytest.mark.parametrize("wrong", ["", "-", "base", "zzzz", "gpt2"])
def test_a_name_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="no model is called"):
        models.get(wrong)


@pytest.mark.parametrize(
    ("name", "roles"),
    [("transformer-big", "both"), ("t5-small", "both"), ("bert-base", "encoder"), ("gpt2-small", "decoder")],
)
def test_architectures_have_the_stacks_they_should(name, roles):
    config = models.get(name)
    assert (config.encoder is not None) == (roles != "decoder")
    assert (config.decoder is not None) == (roles != "encoder")


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("transformer-base", "decoder.norm_placement", "post"),
        ("transformer-big", "encoder.dropout", 0.3),
        ("transformer-base", "embedding_scale", True),
        ("gpt2-small", "decoder.mlp.activation", "gelu_tanh"),
        ("gpt2-small", "decoder.norm.epsilon", 1e-5),
        ("gpt3-1.3b", "decoder.attention.heads", 24),
        ("gpt3-13b", "width", 5140),
        ("gpt3-175b", "length", 2048),
        ("bert-base", "encoder.mlp.activation", "gelu"),
        ("bert-base", "encoder.norm.epsilon", 1e-12),
        ("t5-small", "encoder.attention.scale", 1.0),
        ("t5-small", "readout.scale", True),
        ("t5-v1.1-small", "readout.scale", False),
        ("t5-v1.1-small", "decoder.mlp.activation", "gelu_tanh"),
        ("llama2-7b", "decoder.position.base", 10_000.0),
        ("llama3-8b", "decoder.position.base", 500_000.0),
        ("mistral-7b", "decoder.attention.windows", (4096,)),
        ("qwen2-0.5b", "decoder.attention.bias", True),
        ("qwen3-0.6b", "decoder.attention.query_key_norm", True),
        ("gemma-2b", "decoder.norm.zero_centred", True),
        ("gemma-2b", "embedding_scale", True),
        ("gemma-2b", "decoder.mlp.activation", "gelu_tanh"),
    ],
)
def test_published_choices(name, path, value):
    node = models.get(name)
    for step in path.split("."):
        node = getattr(node, step)
    assert node == value


def test_tiny_models_differ_from_the_defaults_in_size_alone():
    config = models.get("tiny-both")
    assert config.encoder == config.decoder == dataclasses.replace(models.Stack(), depth=config.decoder.depth)
    assert config.vocab >= 256
