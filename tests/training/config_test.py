import dataclasses

import pytest

from transformer.training.config import OPTIMIZERS, Optimizer, Training


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "adam"),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("schedule", "linear"),
        ("warmup", -1),
        ("decay", 0.0),
        ("final", 1.5),
        ("weight_decay", -0.1),
        ("clip", 0.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", 0.0),
    ],
)
def test_an_impossible_field_of_the_optimizer_is_named(field, value):
    with pytest.raises(ValueError, match=rf"optimizer\.{field}={value!r} cannot work"):
        Optimizer(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("accumulation", 3),
        ("label_smoothing", 1.0),
        ("z_loss", -1.0),
        ("loss_chunk", -1),
        ("ema", 1.0),
        ("evaluate_every", 0),
        ("checkpoint_every", 0),
        ("keep", 0),
        ("log_every", 0),
        ("head_metrics_every", -1),
    ],
)
def test_an_impossible_field_of_training_is_named(field, value):
    with pytest.raises(ValueError, match=rf"training\.{field}={value!r} cannot work"):
        Training(**{field: value})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_field_that_the_optimizer_does_not_read_is_refused_and_no_other(name):
    for field in ("beta1", "beta2", "epsilon", "momentum"):
        if field in OPTIMIZERS[name]:
            assert getattr(Optimizer(name=name, **{field: 0.5}), field) == 0.5
        else:
            with pytest.raises(ValueError, match=rf"optimizer\.{field}=0\.5 cannot work: name='{name}' does not read"):
                Optimizer(name=name, **{field: 0.5})


def test_a_field_that_the_schedule_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.final=0\.1 cannot work: schedule='constant'"):
        Optimizer(schedule="constant", final=0.1)
    with pytest.raises(ValueError, match=r"optimizer\.decay=0\.5 cannot work: schedule='cosine'"):
        Optimizer(schedule="cosine", decay=0.5)


def test_inverse_sqrt_needs_a_warmup():
    with pytest.raises(ValueError, match=r"optimizer\.warmup=0"):
        Optimizer(schedule="inverse_sqrt")


def test_the_schedule_must_fit_into_the_run():
    with pytest.raises(ValueError, match=r"optimizer\.warmup=20 .* training\.steps=10"):
        Training(steps=10, optimizer=Optimizer(warmup=20))
    with pytest.raises(ValueError, match=r"optimizer\.decay=0\.5"):
        Training(steps=10, optimizer=Optimizer(schedule="warmup_stable_decay", warmup=6, decay=0.5))


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Training().steps = 2
