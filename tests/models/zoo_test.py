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
    for name in ("roberta-large", "minilm-l6", "gemma2-9b", "pythia-12b", "marian-base", "llama3.2-3b"):
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


@pytest.mark.parametrize("wrong", [None, 3, ["gpt2-small"]])
def test_what_is_no_string_is_refused_in_one_line(wrong):
    with pytest.raises(ValueError, match=r"name=.* must be a string, such as 'gpt2-small'") as caught:
        models.get(wrong)
    assert repr(wrong) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("transformer-big", "both"),
        ("t5-small", "both"),
        ("marian-base", "both"),
        ("bert-base", "encoder"),
        ("roberta-base", "encoder"),
        ("minilm-l6", "encoder"),
        ("gpt2-small", "decoder"),
        ("pythia-70m", "decoder"),
    ],
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
        ("mixtral-8x7b", "decoder.mlp.experts.active", 2),
        ("mixtral-8x7b", "decoder.mlp.experts.normalize", True),
        ("mixtral-8x7b", "decoder.mlp.experts.capacity", None),
        ("mixtral-8x7b", "decoder.attention.windows", ()),
        ("mixtral-8x7b", "decoder.position.base", 1e6),
        ("mixtral-8x22b", "length", 65_536),
        ("qwen2-0.5b", "decoder.attention.bias", True),
        ("qwen3-0.6b", "decoder.attention.query_key_norm", True),
        ("gemma-2b", "decoder.norm.zero_centred", True),
        ("gemma-2b", "embedding_scale", True),
        ("gemma-2b", "decoder.mlp.activation", "gelu_tanh"),
        ("gemma2-2b", "decoder.norm_placement", "both"),
        ("gemma2-2b", "decoder.norm.zero_centred", True),
        ("gemma2-9b", "decoder.attention.windows", (4096, 0)),
        ("gemma2-9b", "decoder.attention.softcap", 50.0),
        ("gemma2-9b", "decoder.attention.scale", 1 / 16),
        ("gemma2-27b", "decoder.attention.scale", 1 / 12),
        ("gemma2-27b", "readout.softcap", 30.0),
        ("llama3.2-1b", "length", 131_072),
        ("llama3.2-1b", "decoder.position.base", 500_000.0),
        ("llama3.2-3b", "decoder.position.scaling", models.Scaling("llama3", 32.0, 8192, 1.0, 4.0)),
        ("llama3.2-3b", "readout.tied", True),
        ("marian-base", "vocab", 58_101),
        ("marian-base", "embedding_scale", True),
        ("marian-base", "encoder.position.halves", True),
        ("marian-base", "decoder.norm_placement", "post"),
        ("marian-base", "decoder.mlp.activation", "silu"),
        ("marian-base", "readout", models.Readout(tied=True, bias=True)),
        ("minilm-l6", "encoder.attention.heads", 12),
        ("minilm-l6", "encoder.norm.epsilon", 1e-12),
        ("pythia-160m", "decoder.parallel", True),
        ("pythia-160m", "decoder.mlp.activation", "gelu"),
        ("pythia-160m", "decoder.position.fraction", 0.25),
        ("pythia-160m", "vocab", 50_304),
        ("pythia-12b", "vocab", 50_688),
        ("roberta-base", "vocab", 50_265),
        ("roberta-base", "token_types", 1),
        ("roberta-base", "length", 512),
        ("roberta-base", "encoder.norm.epsilon", 1e-5),
    ],
)
def test_published_choices(name, path, value):
    node = models.get(name)
    for step in path.split("."):
        node = getattr(node, step)
    assert node == value


def test_pythia_starts_as_its_trainer_says():
    """Black et al. 2022, section 2.1.3: sqrt(2 / (d + 4 d)), and 2 / (L sqrt(d)) where the residual is written to."""
    config = models.get("pythia-410m")
    assert config.init.scale == config.init.embedding == pytest.approx((2 / (1024 + 4 * 1024)) ** 0.5)
    assert config.init.scale * config.output_multiplier(config.decoder) == pytest.approx(2 / (24 * 1024**0.5))


def test_tiny_models_differ_from_the_defaults_in_size_alone():
    config = models.get("tiny-both")
    assert config.encoder == config.decoder == dataclasses.replace(models.Stack(), depth=config.decoder.depth)
    assert config.vocab >= 256
