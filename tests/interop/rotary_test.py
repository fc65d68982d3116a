"""Rotary positions in both of their forms, and back."""

import dataclasses
import math

import pytest

from transformer.interop import rotary
from transformer.interop.fields import Fields
from transformer.models.config import Attention, ModelConfig, Position, Scaling, Stack

LENGTH, WIDTH = 128, 16
SCALINGS = {
    "linear": (dict(rope_type="linear", factor=4), Scaling("linear", 4.0)),
    "dynamic": (dict(rope_type="dynamic", factor=2.0), Scaling("dynamic", 2.0, LENGTH)),
    "dynamic beyond an earlier length": (
        dict(rope_type="dynamic", factor=2.0, original_max_position_embeddings=32),
        Scaling("dynamic", 2.0, LENGTH),
    ),
    "llama3": (
        dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=32),
        Scaling("llama3", 8.0, 32, 1.0, 4.0),
    ),
    "llama3 without its length": (
        dict(rope_type="llama3", factor=8.0, low_freq_factor=2, high_freq_factor=4),
        Scaling("llama3", 8.0, LENGTH, 2.0, 4.0),
    ),
    "yarn": (
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        Scaling("yarn", 4.0, 32, 1.0, 32.0),
    ),
    "yarn in full": (
        dict(rope_type="yarn", factor=4.0, beta_slow=2, beta_fast=16, attention_factor=1.5, truncate=True),
        Scaling("yarn", 4.0, LENGTH, 2.0, 16.0, 1.5),
    ),
    "an older name": (dict(type="linear", factor=2.0), Scaling("linear", 2.0)),
    "default": (dict(rope_type="default"), Scaling()),
}  # fmt: skip


def read(length=LENGTH, head_width=WIDTH, base=10_000.0, fraction=1.0, **values) -> Position:
    fields = Fields(values, "config.json")
    position = rotary.read(fields, length, head_width, base, fraction)
    fields.finish()
    return position


@pytest.mark.parametrize("name", SCALINGS)
def test_both_forms_say_the_same(name):
    said, scaling = SCALINGS[name]
    expected = Position("rotary", 5e5, scaling=scaling)
    assert read(rope_theta=500_000, rope_scaling=said) == expected
    assert read(rope_parameters={"rope_theta": 5e5, **said}) == expected
    assert read(rope_theta=7, rope_parameters={"rope_theta": 5e5, **said}) == expected  # the inner one counts


def test_where_nothing_is_said_the_architecture_decides():
    assert read() == read(rope_scaling=None, rope_parameters=None) == Position("rotary", 10_000.0)
    assert read(base=500.0, fraction=0.25) == Position("rotary", 500.0, 0.25)
    assert read(fraction=0.25, rope_parameters={"partial_rotary_factor": 0.5}).fraction == 0.5
    assert read(head_width=10, fraction=0.45).fraction == 0.4  # 4.5 features are 4


def test_the_magnitude_of_yarn_from_two_scales():
    said = dict(rope_type="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.5)
    growth = {scale: 0.1 * scale * math.log(40.0) + 1 for scale in (1.0, 0.5)}
    assert read(rope_scaling=said).scaling.magnitude == pytest.approx(growth[1.0] / growth[0.5], rel=1e-12)
    assert read(rope_scaling=said | dict(attention_factor=2.0)).scaling.magnitude == 2.0
    assert read(rope_scaling=said | dict(mscale_all_dim=0)).scaling.magnitude is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(rope_scaling=dict(rope_type="longrope", factor=2.0)), "rope_type='longrope' has no counterpart"),
        (dict(rope_scaling=dict(rope_type="linear")), "has no field 'factor'"),
        (dict(rope_scaling=dict(rope_type="linear", factor=0.5)), "factor=0.5 cannot work: it must be at least 1"),
        (dict(rope_scaling=dict(rope_type="linear", factor="2")), "factor='2' is of the wrong type"),
        (dict(rope_scaling=dict(rope_type="linear", factor=2.0, low=1)), "the field low=1 is not known"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=2.0)), "has no field 'low_freq_factor'"),
        (dict(rope_scaling=dict(rope_type="yarn", factor=2.0, truncate=False)), "truncate=False has no counterpart"),
        (dict(rope_scaling=dict(rope_type="yarn", factor=2.0, mscale=-9.0)), "mscale=-9 .* not be negative"),
        (dict(rope_scaling=dict(rope_type="yarn", factor=2, original_max_position_embeddings=0)), "must lie in"),
        (dict(rope_scaling=[2.0]), r"rope_scaling=\[2.0\] is of the wrong type: an object or null"),
        (dict(rope_parameters=dict(full_attention={}, sliding_attention={})), "differ between layers"),
        (dict(rope_scaling=dict(rope_type="linear", factor=2.0), rope_parameters=dict(rope_type="default")),
         "rope_scaling and rope_parameters differ"),
        (dict(rope_theta=float("inf")), "rope_theta=inf .* finite"),
        (dict(rope_parameters=dict(partial_rotary_factor=1e308)), "of a head of width 16 cannot turn"),
        (dict(rope_parameters=dict(partial_rotary_factor=0)), "0 of a head of width 16 cannot turn"),
        (dict(head_width=0), "of a head of width 0 cannot turn"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(values, words):
    with pytest.raises(ValueError, match=f"^config.json.*{words}"):
        read(**values)


def config_of(scaling: Scaling) -> ModelConfig:
    return ModelConfig(
        60, 64, decoder=Stack(2, Attention(4), position=Position(base=5e5, scaling=scaling)), length=LENGTH
    )


@pytest.mark.parametrize("name", SCALINGS)
def test_what_is_written_is_read_back(name):
    config = config_of(SCALINGS[name][1])
    assert read(**rotary.write(config, config.decoder)) == config.decoder.position


def test_a_scaling_without_a_name_there_is_left_out():
    config = config_of(Scaling("ntk", 2.0))
    assert rotary.write(config, config.decoder) == {"rope_theta": 5e5, "rope_scaling": None}


def test_no_scaling_is_written_as_none():
    config = config_of(dataclasses.replace(Scaling(), factor=3.0))
    assert rotary.write(config, config.decoder) == {"rope_theta": 5e5, "rope_scaling": None}
