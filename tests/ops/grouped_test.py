"""Products by group against a loop over rows in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import grouped

SIZES = [(2, 0, 3), (0, 0, 1), (300, 0, 5, 130), (grouped.TILE, 2 * grouped.TILE, 0), (7,)]


def example(sizes, dtype=jnp.float32):
    draw = np.random.default_rng(0)
    x, kernel, reader = (draw.normal(size=shape) for shape in ((sum(sizes), 6), (len(sizes), 6, 5), (sum(sizes), 5)))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), jnp.asarray(sizes), jnp.asarray(reader, dtype)


def by_hand(x, kernel, sizes, reader):
    """The product, and the gradients of its sum with a reader by rows and matrices."""
    x, kernel, reader = (np.asarray(array, np.float64) for array in (x, kernel, reader))
    out, by_x, by_kernel = np.zeros_like(reader), np.zeros_like(x), np.zeros_like(kernel)
    for row, group in enumerate(np.repeat(np.arange(len(sizes)), sizes)):
        out[row], by_x[row] = x[row] @ kernel[group], kernel[group] @ reader[row]
        by_kernel[group] += np.outer(x[row], reader[row])
    return out, by_x, by_kernel


@pytest.mark.parametrize("sizes", SIZES)
def test_each_row_meets_its_groups_matrix(sizes):
    x, kernel, sizes, reader = example(sizes)
    out, back = jax.vjp(lambda x, kernel: grouped.product(x, kernel, sizes), x, kernel)
    for found, expected in zip((out, *back(reader)), by_hand(x, kernel, sizes, reader), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)  # sums of up to 300 products


@pytest.mark.parametrize("sizes", SIZES[:3])
def test_what_other_devices_compute_is_the_same(sizes):
    x, kernel, sizes, reader = example(sizes)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)  # noqa: E731
    out, by_x, by_kernel = by_hand(x, kernel, sizes, reader)
    close(grouped._native_product(x, kernel, sizes, transposed=False), out)
    close(grouped._native_product(reader, kernel, sizes, transposed=True), by_x)
    close(grouped._native_slopes(x, reader, sizes), by_kernel)


def test_in_bfloat16_sums_are_longer():
    x, kernel, sizes, reader = example(SIZES[2], jnp.bfloat16)
    out, back = jax.vjp(lambda x, kernel: grouped.product(x, kernel, sizes), x, kernel)
    for found, expected in zip((out, *back(reader)), by_hand(x, kernel, sizes, reader), strict=True):
        assert found.dtype == jnp.bfloat16
        # One rounding to 8 bits, and a sum of three parts that have been rounded.
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.01 * np.abs(expected).max())


def test_many_at_once_are_each_alone():
    x, kernel, _, _ = example((4, 3, 5))
    several = jnp.asarray([[4, 3, 5], [0, 12, 0], [1, 0, 11]])
    found = jax.vmap(lambda sizes: grouped.product(x, kernel, sizes))(several)
    for one, sizes in zip(found, several, strict=True):
        np.testing.assert_allclose(one, by_hand(x, kernel, sizes, np.zeros((12, 5)))[0], rtol=1e-5, atol=1e-5)
