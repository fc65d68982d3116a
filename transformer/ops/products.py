"""Matrix products, in the form that XLA for CPUs multiplies fastest.

XLA for CPUs multiplies bfloat16 natively where sums are asked for in float32 and the last axis of the left operand is
contracted with one of the right operand's last two, as they lie in memory; anything else it converts to float32 first.
On two cores with AMX, 3,072 x 384 by 384 x 1,536 takes 5.4 ms natively, 28.6 ms as a product that is asked for in
bfloat16 and 16.6 ms in float32; the gradient of its matrix 9.8 instead of 24.7 ms, transposed copy included (other
programs ran; medians of 7 in turn). GPUs and TPUs always sum in float32, so there nothing changes.

The right operand is packed anew for every product, which for few rows takes longer than the product. So a matrix
`[N, K]` in float32 is taken from the left for them: 8 rows by 3,072 x 768 take two cores without AVX-512 0.71 ms
instead of 1.02, by 50,257 x 768 14.6 instead of 28.3.
"""

from __future__ import annotations

import os
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from transformer.ops.sharding import mesh_sizes

FEW = 4  # rows, that one row is made in bfloat16; more take longer, 2 do not take less
FROM_THE_LEFT = range(2, 33)  # rows, for which a float32 matrix is the left operand


def cores() -> int:
    """The cores of the CPU that this process may use, as many as XLA takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def matmul(left: jax.Array, right: jax.Array, dtype: jnp.dtype | None = None, *, transposed: bool = False) -> jax.Array:
    """`[..., M, K] x [..., K, N] -> [..., M, N]` with the same leading axes; gradients have the operands' dtype.

    Args:
      left, right: the operands.
      dtype: of the sums and of the result; None: the operands'. bfloat16 is summed in float32 and rounded.
      transposed: `right` is `[..., N, K]`.
    """
    if left.dtype != jnp.bfloat16 or right.dtype != jnp.bfloat16:
        plain = partial(_plain, transposed=transposed, dtype=dtype)
        few = left.ndim == 2 and len(left) in FROM_THE_LEFT and left.dtype == right.dtype == jnp.float32
        # Rows may be on several devices though no mesh is set: what is fixed in memory would be gathered.
        if not (few and transposed) or jax.device_count() > 1:
            return plain(left, right)
        return jax.lax.platform_dependent(left, right, cpu=partial(_from_the_left, dtype=dtype), default=plain)
    return _matmul(jnp.dtype(dtype or left.dtype), transposed, left, right)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul(dtype: jnp.dtype, transposed: bool, left: jax.Array, right: jax.Array) -> jax.Array:
    return _product(dtype, left, right, transposed)


def _forward(dtype: jnp.dtype, transposed: bool, left: jax.Array, right: jax.Array) -> tuple:
    return _matmul(dtype, transposed, left, right), (left, right)


def _backward(dtype: jnp.dtype, transposed: bool, operands: tuple, slope: jax.Array) -> tuple:
    left, right = operands
    slope = slope.astype(left.dtype)
    by_left = _product(left.dtype, slope, right, not transposed)
    if left.ndim > 2 and left.shape[-1] > slope.shape[-1]:  # the smaller one is copied
        by_right = _product(right.dtype, slope.mT, left)
        return by_left, by_right if transposed else by_right.mT
    by_right = _product(right.dtype, left.mT, slope)
    return by_left, by_right.mT if transposed else by_right


_matmul.defvjp(_forward, _backward)


@partial(jax.jit, static_argnums=(0, 3), inline=True)
def _product(dtype: jnp.dtype, left: jax.Array, right: jax.Array, transposed: bool = False) -> jax.Array:
    def native(left: jax.Array, right: jax.Array) -> jax.Array:
        if left.shape[-2] == 1:  # XLA has no such product of a single row
            rows = jnp.pad(left, (*((0, 0),) * (left.ndim - 2), (0, FEW - 1), (0, 0)))
            return native(rows, right)[..., :1, :]
        out = _plain(_row_major(left), _row_major(right), transposed, jnp.float32)
        # XLA makes one product of batched matrices and their transposition, which then it cannot compute.
        return (_row_major(out) if out.ndim > 2 else out).astype(dtype)

    plain = partial(_plain, transposed=transposed, dtype=dtype)
    return plain(left, right) if mesh_sizes() else jax.lax.platform_dependent(left, right, cpu=native, default=plain)


def _from_the_left(rows: jax.Array, matrix: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
    """`[M, K] x [N, K] -> [M, N]`."""
    # Fixed in memory, as XLA would undo the turn of a product.
    return _row_major(_plain(matrix, rows, transposed=True, dtype=dtype)).T


def _plain(left: jax.Array, right: jax.Array, transposed: bool, dtype: jnp.dtype | None) -> jax.Array:
    leading = tuple(range(left.ndim - 2))
    contracted = (left.ndim - 1,), (right.ndim - (1 if transposed else 2),)
    return jax.lax.dot_general(left, right, (contracted, (leading, leading)), preferred_element_type=dtype)


def _row_major(x: jax.Array) -> jax.Array:
    """With the numbers of the last axis side by side in memory, even if that takes a copy."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
