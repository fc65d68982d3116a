from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops.products import matmul

# M, K, N and leading axes: also single rows, as decoding has, and odd sizes.
SHAPES = [
    ((), 5, 7, 3),
    ((), 1, 64, 256),
    ((2, 3), 5, 70, 4),
    ((2, 3), 5, 4, 70),
    ((2,), 64, 128, 256),
    ((2,), 1, 64, 9),
]


def operands(leading, rows, inner, columns, transposed, dtype=jnp.bfloat16):
    draw = np.random.default_rng(0)
    right = (columns, inner) if transposed else (inner, columns)
    return [jnp.asarray(draw.normal(size=(*leading, *shape)), dtype) for shape in ((rows, inner), right)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", SHAPES)
def test_products_and_gradients_are_those_of_float64(sizes, transposed):
    left, right = operands(*sizes, transposed)
    exact = [np.asarray(x, np.float64) for x in (left, right)]
    exact[1] = exact[1].swapaxes(-1, -2) if transposed else exact[1]
    slope = np.asarray(operands(*sizes, transposed)[0], np.float64)[..., :1] + np.zeros_like(exact[0] @ exact[1])
    by_right = exact[0].swapaxes(-1, -2) @ slope
    expected = exact[0] @ exact[1], slope @ exact[1].swapaxes(-1, -2), by_right

    def both(left, right, dtype):
        out, pull = jax.vjp(lambda *pair: matmul(*pair, dtype, transposed=transposed), left, right)
        by_left, by_right = pull(jnp.asarray(slope, out.dtype))
        return out, by_left, by_right.mT if transposed else by_right

    for dtype in (None, jnp.float32):
        runs = {
            "plain": both,
            "compiled": jax.jit(both, static_argnums=2),
            "rows of a batch": lambda *pair: (
                x[0] for x in jax.vmap(both, (0, 0, None))(pair[0][None], pair[1][None], pair[2])
            ),
        }
        for name, run in runs.items():
            for got, wanted in zip(run(left, right, dtype), expected, strict=True):
                error = np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max()
                assert error < 2**-8, (name, dtype, error)
        assert both(left, right, dtype)[0].dtype == (dtype or jnp.bfloat16)


@pytest.mark.parametrize("rows", [1, 2, 7, 32, 33])
def test_few_rows_of_float32_are_multiplied_as_many_are(rows):
    left, right = operands((), rows, 40, 24, True, jnp.float32)
    slope = np.random.default_rng(1).normal(size=(rows, 24))
    out, pull = jax.vjp(jax.jit(lambda *pair: matmul(*pair, transposed=True)), left, right)
    exact = [np.asarray(x, np.float64) for x in (left, right)]
    expected = exact[0] @ exact[1].T, slope @ exact[1], slope.T @ exact[0]
    for got, wanted in zip((out, *pull(jnp.asarray(slope, jnp.float32))), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    batched = jax.vmap(lambda row: matmul(row, right, transposed=True))(left[None])
    np.testing.assert_allclose(batched[0], expected[0], rtol=1e-5, atol=1e-5)
    assert matmul(left, right, jnp.bfloat16, transposed=True).dtype == jnp.bfloat16


def test_of_few_rows_the_matrix_is_the_left_operand():
    left, right = operands((), 8, 40, 24, True, jnp.float32)
    lowered = jax.jit(lambda *pair: matmul(*pair, transposed=True)).lower(left, right).compile().as_text()
    products = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", lowered)
    assert products == [("24", "8")] or jax.default_backend() != "cpu"


def test_sums_are_not_rounded_on_the_way():
    left = jnp.ones((1, 4096), jnp.bfloat16)
    assert matmul(left, jnp.full((4096, 3), 1 / 256, jnp.bfloat16))[0, 0] == 16
    small = matmul(left[:, :2], jnp.asarray([[1.0], [2**-12]], jnp.bfloat16), jnp.float32)
    assert small == 1 + 2**-12


def test_an_update_of_bfloat16_matrices_multiplies_bfloat16_on_cpus(optimised):
    """Within a loop over layers, where the compiler chooses how kernels lie; a float32 operand means a slow product."""

    def multiplied(function, *arrays):
        text = jax.jit(function).lower(*arrays).compile().as_text()
        types = dict(re.findall(r"([\w.\-]+): (\w+)\[", text) + re.findall(r"%([\w.\-]+) = (\w+)\[", text))
        return [(types[left], types[right]) for left, right in re.findall(r" dot\(%([\w.\-]+), %([\w.\-]+)\)", text)]

    def loss(x, kernels):
        def layer(x, kernel):
            return matmul(jnp.tanh(matmul(x, kernel)), kernel.T), None

        return jax.lax.scan(layer, x, kernels)[0].astype(jnp.float32).sum()

    x, kernels = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((3, 32, 128), jnp.bfloat16)
    plain = multiplied(lambda x, kernel: jnp.matmul(x, kernel, preferred_element_type=jnp.float32), x, kernels[0])
    if plain != [("bf16", "bf16")]:
        pytest.skip("the compiler multiplies no bfloat16 on this processor")
    pairs = multiplied(jax.grad(loss, (0, 1)), x, kernels)
    assert len(pairs) == 6 and set(pairs) == {("bf16", "bf16")}, pairs


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_dtypes_and_mixed_ones_are_multiplied_as_they_are(dtype):
    left, right = operands((), 5, 7, 3, False, jnp.float32)
    out = matmul(left, right.astype(dtype))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, left @ right.astype(dtype).astype(jnp.float32), rtol=1e-5, atol=1e-5)
