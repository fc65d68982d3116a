import jax
import numpy as np
import pytest

from transformer.training import schedules
from transformer.training.config import Optimizer

PEAK, STEPS, WARMUP = 0.3, 40, 8


def rates(**fields):
    schedule = schedules.build(Optimizer(learning_rate=PEAK, **fields), STEPS)
    return np.array([schedule(count) for count in range(STEPS)], np.float64)


def close(actual, expected):
    # optax works in float32: a few units in the last place of the peak.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_constant_rises_to_the_peak_and_stays():
    s = np.arange(1, STEPS + 1)
    close(rates(schedule="constant", warmup=WARMUP), PEAK * np.minimum(1, s / WARMUP))
    close(rates(schedule="constant"), np.full(STEPS, PEAK))


def test_inverse_sqrt_is_equation_3_of_vaswani():
    width = 512
    s = np.arange(1, STEPS + 1)
    paper = width**-0.5 * np.minimum(s**-0.5, s * WARMUP**-1.5)
    peak = (width * WARMUP) ** -0.5
    schedule = schedules.build(Optimizer(schedule="inverse_sqrt", learning_rate=peak, warmup=WARMUP), STEPS)
    close([schedule(count) for count in range(STEPS)], paper)


@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_cosine_falls_to_the_final_share_at_the_last_update(warmup):
    final = 0.1
    s = np.arange(1, STEPS + 1)
    fall = final + (1 - final) * (1 + np.cos(np.pi * (s - warmup) / (STEPS - warmup))) / 2
    expected = PEAK * np.where(s < warmup, s / max(warmup, 1), fall)
    actual = rates(schedule="cosine", warmup=warmup, final=final)
    close(actual, expected)
    assert actual[-1] == pytest.approx(final * PEAK)


def test_warmup_stable_decay_has_three_phases():
    decay, final = 0.25, 0.2
    s = np.arange(1, STEPS + 1)
    start = STEPS - decay * STEPS
    fall = 1 - (1 - final) * np.maximum(0, s - start) / (decay * STEPS)
    expected = PEAK * np.minimum(s / WARMUP, fall)
    close(rates(schedule="warmup_stable_decay", warmup=WARMUP, decay=decay, final=final), expected)


def test_a_schedule_can_be_traced():
    schedule = schedules.build(Optimizer(schedule="warmup_stable_decay", warmup=4), STEPS)
    assert float(jax.jit(schedule)(35)) == pytest.approx(float(schedule(35)))


def test_a_run_of_warmup_only_still_has_a_rate():
    schedule = schedules.build(Optimizer(schedule="cosine", learning_rate=PEAK, warmup=4), 4)
    assert float(schedule(3)) == pytest.approx(PEAK)


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="steps=5 is too short for warmup=6"):
        schedules.build(Optimizer(warmup=6), 5)
