from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Init, ModelConfig, Stack
from transformer.nn.projection import Projection, project, standard_deviation


def config(**fields):
    return ModelConfig(11, 8, decoder=Stack(1), **fields)


@pytest.mark.parametrize(
    ("shape", "kernel", "inputs", "einsum"),
    [
        ((2, 3, 4), (4, 5), 1, "bti,io->bto"),
        ((2, 3, 4), (4, 5, 6), 1, "bti,iop->btop"),
        ((2, 3, 4, 5), (4, 5, 6), 2, "btij,ijo->bto"),
        ((4,), (4, 5), 1, "i,io->o"),
    ],
)
def test_project_is_the_einsum(shape, kernel, inputs, einsum):
    draw = np.random.default_rng(0)
    x, matrix = draw.normal(size=shape), draw.normal(size=kernel)
    bias = draw.normal(size=kernel[inputs:])
    arrays = [array.astype(np.float32) for array in (x, matrix, bias)]
    np.testing.assert_allclose(project(*arrays[:2], inputs=inputs), np.einsum(einsum, x, matrix), rtol=1e-5, atol=1e-6)
    expected = np.einsum(einsum, x, matrix) + bias
    np.testing.assert_allclose(project(*arrays, inputs=inputs), expected, rtol=1e-5, atol=1e-6)


def test_standard_deviations():
    assert standard_deviation(Init("normal", scale=0.3), 10, 20) == 0.3
    assert standard_deviation(Init("fan_in", scale=0.3), 16, 20) == pytest.approx(0.3 / 4)
    assert standard_deviation(Init("xavier", scale=0.3), 10, 20) == pytest.approx(0.3 * (2 / 30) ** 0.5)


@pytest.mark.parametrize("kind", ["normal", "fan_in", "xavier"])
def test_a_projection_starts_with_its_deviation_and_no_bias(kind):
    projection = Projection(config(init=Init(kind, scale=0.5)), (40,), (5, 40), True, multiplier=0.25)
    params = projection.init(jax.random.key(0), jnp.zeros((1, 40)))["params"]
    fraction = {"normal": 1.0, "fan_in": 40**-0.5, "xavier": (2 / 240) ** 0.5}[kind]
    # 8,000 draws: the standard deviation is known to a hundredth.
    assert np.std(params["kernel"]) == pytest.approx(0.5 * fraction * 0.25, rel=0.05)
    assert np.mean(params["kernel"]) == pytest.approx(0.0, abs=0.1 * 0.5 * fraction * 0.25)
    np.testing.assert_array_equal(params["bias"], np.zeros((5, 40)))


@pytest.mark.parametrize(("dtype", "param_dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_dtypes_of_activations_and_parameters(dtype, param_dtype):
    projection = Projection(config(dtype=dtype, param_dtype=param_dtype), (4,), (3,), True)
    out, params = projection.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    assert out.dtype == jnp.dtype(dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(param_dtype)}
