"""What is refused, and in which words; `config_test` goes through every field."""

from __future__ import annotations

import dataclasses

import pytest

from transformer.models.checks import check_probability, check_types, one_of, require


@dataclasses.dataclass
class Settings:
    count: int = 1
    rate: float | None = 0.5
    names: tuple[str, ...] = ()
    loud: bool = False


@pytest.mark.parametrize(
    "fields", [{}, {"rate": None}, {"rate": 2}, {"names": ("a", "b")}, {"count": -3, "loud": True}], ids=str
)
def test_values_of_their_types_pass(fields):
    check_types(Settings(**fields), "settings.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 1.0}, "settings.count=1.0 cannot work: its type is int"),
        ({"count": True}, "settings.count=True cannot work: its type is int"),
        ({"count": None}, "settings.count=None cannot work: its type is int"),
        ({"rate": "0.5"}, "settings.rate='0.5' cannot work: its type is float | None"),
        ({"rate": False}, "settings.rate=False cannot work: its type is float | None"),
        ({"names": "ab"}, "settings.names='ab' cannot work: its type is tuple[str, ...]"),
        ({"names": ("a", 3)}, "settings.names=('a', 3) cannot work: its type is tuple[str, ...]"),
        ({"loud": 1}, "settings.loud=1 cannot work: its type is bool"),
    ],
)
def test_other_types_are_named_with_field_and_value(fields, message):
    with pytest.raises(ValueError) as caught:
        check_types(Settings(**fields), "settings.")
    assert str(caught.value) == message


def test_a_condition_a_choice_and_a_rate_are_refused_in_the_same_form():
    require(True, "depth", 3, "")
    one_of("kind", "rms", ("layer", "rms"))
    check_probability("dropout", 0.0)
    for refuse, message in (
        (lambda: require(False, "depth", 0, "it must be positive"), "depth=0 cannot work: it must be positive"),
        (lambda: one_of("kind", "rsm", ("layer", "rms")), "kind='rsm' cannot work: choose one of layer, rms"),
        (
            lambda: check_probability("dropout", 1.0),
            "dropout=1.0 cannot work: a dropout rate is .* below 1",
        ),
        (lambda: check_probability("dropout", -0.1), "dropout=-0.1 cannot work: a dropout rate .* below 1"),
        (lambda: check_probability("dropout", float("nan")), "dropout=nan cannot work: a dropout rate .* below 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            refuse()
