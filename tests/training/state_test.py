import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer.training import state


def test_a_new_state_is_at_step_zero_with_a_copy_of_the_parameters_as_average():
    params = {"w": jnp.arange(3, dtype=jnp.bfloat16)}
    fresh = state.create(params, optax.adam(0.1), ema=0.9)
    assert fresh.step.dtype == jnp.int32 and fresh.step.shape == () and int(fresh.step) == 0
    assert fresh.ema["w"].dtype == jnp.float32
    np.testing.assert_array_equal(fresh.ema["w"], np.arange(3))
    assert state.create(params, optax.adam(0.1)).ema is None


def test_the_average_does_not_share_memory_with_the_parameters():
    params = {"w": jnp.ones(3)}
    fresh = state.create(params, optax.sgd(0.1), ema=0.9)
    jax.block_until_ready(fresh.ema)
    params["w"].delete()
    np.testing.assert_array_equal(fresh.ema["w"], np.ones(3))


def test_average_follows_its_formula():
    random = np.random.default_rng(0)
    series = random.normal(size=(30, 4)).astype(np.float32)
    expected, actual = series[0].astype(np.float64), {"w": jnp.asarray(series[0])}
    for step, row in enumerate(series[1:]):
        d = min(0.7, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * row
        actual = state.average(actual, {"w": jnp.asarray(row)}, jnp.int32(step), 0.7)
    np.testing.assert_allclose(actual["w"], expected, rtol=1e-5, atol=1e-6)
