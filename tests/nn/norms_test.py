from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import ModelConfig, Norm, Stack
from transformer.nn.norms import Normalize

CONFIG = ModelConfig(11, 8, decoder=Stack(1))


def expected(kind, x, epsilon):
    x = x.astype(np.float64)
    if kind == "layer":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + epsilon)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("zero_centred", [False, True])
def test_norms_are_their_formulas(kind, zero_centred):
    draw = np.random.default_rng(0)
    norm = Norm(kind, epsilon=0.1, bias=kind == "layer", zero_centred=zero_centred)
    x, scale, bias = (draw.normal(2, 3, shape).astype(np.float32) for shape in ((2, 3, 8), (8,), (8,)))
    params = {"scale": scale, "bias": bias} if norm.bias else {"scale": scale}
    out = Normalize(CONFIG, norm).apply({"params": params}, x)
    reference = expected(kind, x, 0.1) * (scale + zero_centred) + (bias if norm.bias else 0)
    np.testing.assert_allclose(out, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zero_centred", [False, True])
def test_a_fresh_norm_only_normalises(zero_centred):
    x = jax.random.normal(jax.random.key(0), (3, 8)) * 5 + 1
    out, params = Normalize(CONFIG, Norm(zero_centred=zero_centred)).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(np.mean(np.square(out), -1), np.ones(3), rtol=1e-4)
    np.testing.assert_array_equal(params["params"]["scale"], np.full(8, float(not zero_centred)))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_low_precision_is_normalised_in_float32(kind):
    x = (jax.random.normal(jax.random.key(0), (4, 512)) * 100).astype(jnp.bfloat16)  # its squares overflow float16
    for dtype, bits in (("bfloat16", 8), ("float16", 11)):
        cast = x.astype(dtype)
        out = Normalize(CONFIG, Norm(kind)).apply({"params": {"scale": np.ones(512, np.float32)}}, cast)
        assert out.dtype == cast.dtype
        # Only the result is rounded, to half of its last bit.
        np.testing.assert_allclose(
            np.asarray(out).astype(np.float64), expected(kind, np.asarray(cast), 1e-6), rtol=2.0**-bits, atol=1e-5
        )


def test_layer_norm_is_blind_to_offset_and_a_large_one_costs_no_precision():
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    norm = lambda x: Normalize(CONFIG, Norm("layer")).apply({"params": {"scale": np.ones(8, np.float32)}}, x)  # noqa: E731
    # The offset itself rounds x to 6e-5; the one-pass variance E[x^2] - E[x]^2 would be off by 0.1.
    np.testing.assert_allclose(norm(x + 1000), norm(x), atol=3e-4)
