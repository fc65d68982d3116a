"""Cross-entropy, returned as sums and counts, so that a caller divides once by a global count.

With logits x over a vocabulary of V, target t and log Z = log sum exp x, one position costs

    (1 - smoothing) (log Z - x[t]) + smoothing (log Z - mean x) + z_loss (log Z)^2

Label smoothing trains towards `1 - smoothing` on the target plus `smoothing / V` everywhere: Szegedy et al. 2016
(arXiv:1512.00567), section 7. The last term keeps Z near 1: Chowdhery et al. 2022 (arXiv:2204.02311), section 5.
Everything is computed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer.ops.products import matmul


class Loss(NamedTuple):
    """Float32 scalars that add up over batches and devices: mean `sum / count`, perplexity `exp(nats / count)`.

    `nats` and `hits` are values only: their gradients are zero.
    """

    sum: jax.Array  # what is minimised, with smoothing and z-loss
    count: jax.Array  # the sum of the weights
    nats: jax.Array  # -log p(target) alone
    hits: jax.Array  # the weights of the targets that are the likeliest token


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    """The cross-entropy of targets under logits, by the module's formula.

    Args:
      logits: `[..., V]`, any float dtype.
      targets: `[...]` integers from 0 to V - 1. Outside of it the loss is NaN, for nothing can be raised under jit;
        where the weight is zero any integer is allowed and contributes exactly zero.
      weights: `[...]`, multiplies each position; None is one everywhere.
      smoothing: the share of the target's probability that is spread over the vocabulary, in [0, 1).
      z_loss: the coefficient of (log Z)^2, at least 0.

    Raises:
      ValueError: if shapes do not fit, targets are not integers, or a coefficient is out of range.
    """
    _check(logits.shape[:-1], targets, weights, smoothing, z_loss)
    logits, vocabulary = logits.astype(jnp.float32), logits.shape[-1]
    weights = _float_weights(weights, targets.shape)
    inside = (targets >= 0) & (targets < vocabulary)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, jnp.clip(targets, 0, vocabulary - 1)[..., None], axis=-1)[..., 0]
    loss = nats = jnp.where(inside, log_normaliser - target, jnp.nan)
    if smoothing:
        loss = (1 - smoothing) * nats + smoothing * (log_normaliser - jnp.mean(logits, axis=-1))
    if z_loss:
        loss = loss + z_loss * jnp.square(log_normaliser)
    hits = jnp.where(jnp.argmax(logits, axis=-1) == targets, weights, 0.0)
    return Loss(
        sum=_weighted(weights, loss),
        count=jnp.sum(weights),
        nats=jax.lax.stop_gradient(_weighted(weights, nats)),
        hits=jax.lax.stop_gradient(jnp.sum(hits)),
    )


def chunked_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    """`cross_entropy` of the logits of a read-out, without ever holding `[..., V]` of them.

        logits = scale * hidden @ kernel + bias, then softcap * tanh(logits / softcap)

    Logits are formed for `chunk` positions at a time. Where a gradient is asked for, it is formed beside them and only
    multiplied in the backward pass, for `sum` adds up the positions' losses: no product is taken twice, and memory
    falls from N * V floats to chunk * V, and D * V for the sum of the kernel's gradient. Values and gradients are those
    of the whole, up to rounding; there is a reverse mode only.

    Matrix products of two bfloat16 arrays multiply in bfloat16 and add in float32, with the gradient of logits rounded
    to bfloat16; all others run in float32 (float16 has too small a range for gradients of logits). Gradients are added
    up in float32.

    Args:
      hidden: `[..., D]`.
      kernel: `[D, V]`.
      targets, weights, smoothing, z_loss: as in `cross_entropy`.
      bias: `[V]`, or None.
      scale: multiplies the products.
      softcap: as in `attention.scores`, after the bias; None leaves the logits.
      chunk: positions at a time; need not divide their number. Of positions sharded over devices they are all devices'
        together, and each takes part in every chunk where the number of devices divides it.

    Raises:
      ValueError: as `cross_entropy`, and if kernel, bias, softcap or chunk do not fit.
    """
    _check(hidden.shape[:-1], targets, weights, smoothing, z_loss)
    _check_readout(hidden, kernel, bias, softcap, chunk)
    readout = _Readout(scale, softcap, smoothing, z_loss, chunk)
    weights = _float_weights(weights, targets.shape).reshape(-1)
    bias = None if bias is None else bias.astype(jnp.float32)  # so that its gradient is added up in float32
    # As a table [V, D]: CPUs form its gradient faster so, and a tied table need not be turned round for the loop.
    return _chunked(readout, hidden.reshape(-1, hidden.shape[-1]), kernel.T, bias, targets.reshape(-1), weights)


class _Readout(NamedTuple):
    """What does not change from chunk to chunk and is not differentiated."""

    scale: float
    softcap: float | None
    smoothing: float
    z_loss: float
    chunk: int

    def loss(self, products: jax.Array, bias: jax.Array | None, targets: jax.Array, weights: jax.Array) -> Loss:
        """From `hidden @ kernel` `[C, V]` of a chunk, in float32."""
        logits = self.scale * products
        if bias is not None:
            logits = logits + bias
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        return cross_entropy(logits, targets, weights, smoothing=self.smoothing, z_loss=self.z_loss)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(readout, hidden, table, bias, targets, weights) -> Loss:
    """`[N, D]`, `[V, D]`, `[V]` or None, `[N]` and `[N]` to the loss, without a gradient."""

    def one(hidden, targets, weights):
        return readout.loss(_product(hidden, table, transposed=True), bias, targets, weights), ()

    return _over_chunks(one, readout.chunk, hidden, targets, weights)[0]


def _forward(readout, hidden, table, bias, targets, weights):
    def loss_of(products, bias, weights, targets):
        loss = readout.loss(products, bias, targets, weights)
        return loss.sum, loss

    def one(hidden, targets, weights):
        products = _product(hidden, table, transposed=True)
        slopes, loss = jax.grad(loss_of, argnums=(0, 1, 2), has_aux=True)(products, bias, weights, targets)
        by_products, by_bias, by_weights = slopes
        by_products = by_products.astype(_operand(hidden, table))
        by_hidden = _product(by_products, table).astype(hidden.dtype)
        by_turned = _product(hidden.T, by_products)  # [D, V], as the other way round the larger one would be copied
        return (loss, by_turned, by_bias), (by_hidden, by_weights)

    (loss, by_turned, by_bias), (by_hidden, by_weights) = _over_chunks(one, readout.chunk, hidden, targets, weights)
    return loss, (by_hidden, by_turned.astype(table.dtype).T, by_bias, by_weights)


def _backward(readout, gradients, cotangents):
    scaled = jax.tree.map(lambda x: (cotangents.sum * x).astype(x.dtype), gradients)
    by_hidden, by_table, by_bias, by_weights = scaled
    return by_hidden, by_table, by_bias, None, by_weights + cotangents.count


_chunked.defvjp(_forward, _backward)


def _over_chunks(function: Callable[..., tuple[Any, Any]], chunk: int, *arrays: jax.Array) -> tuple[Any, Any]:
    """`function(*arrays) -> (totals, rows)` of `chunk` positions `[N, ...]` at a time: totals added, rows in order."""
    size = max(1, min(chunk, len(arrays[0])))
    steps = len(arrays[0]) // size
    whole = steps * size
    # Strided, not contiguous: positions that lie on one device stay on it, and every device has some of each chunk.
    chunks = [x[:whole].reshape(size, steps, *x.shape[1:]).swapaxes(0, 1) for x in arrays]

    def add(totals: Any, items: Any) -> tuple[Any, Any]:
        more, rows = function(*items)
        return jax.tree.map(jnp.add, totals, more), rows

    first = jax.eval_shape(function, *(x[:size] for x in arrays))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    totals, rows = jax.lax.scan(add, zeros, chunks)
    rows = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(whole, *x.shape[2:]), rows)
    if whole == len(arrays[0]):
        return totals, rows
    totals, last = add(totals, [x[whole:] for x in arrays])
    return totals, jax.tree.map(lambda *parts: jnp.concatenate(parts), rows, last)


def _operand(left: jax.Array, right: jax.Array) -> jnp.dtype:
    both = left.dtype == jnp.bfloat16 and right.dtype == jnp.bfloat16
    return jnp.dtype(jnp.bfloat16 if both else jnp.float32)


def _product(left: jax.Array, right: jax.Array, transposed: bool = False) -> jax.Array:
    dtype = _operand(left, right)
    return matmul(left.astype(dtype), right.astype(dtype), jnp.float32, transposed=transposed)


def _float_weights(weights: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    return jnp.ones(shape, jnp.float32) if weights is None else weights.astype(jnp.float32)


def _weighted(weights: jax.Array, loss: jax.Array) -> jax.Array:
    """The sum; zero times NaN or infinity is zero."""
    return jnp.sum(weights * jnp.where((weights == 0) & ~jnp.isfinite(loss), 0.0, loss))


def _check(
    shape: tuple[int, ...], targets: jax.Array, weights: jax.Array | None, smoothing: float, z_loss: float
) -> None:
    if targets.shape != shape:
        raise ValueError(f"targets has shape {targets.shape}; one target a position needs {shape}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets has dtype {targets.dtype}; pass token ids as integers")
    if weights is not None and weights.shape != shape:
        raise ValueError(f"weights has shape {weights.shape}; one weight a position needs {shape}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing}: a share of the target's probability is at least 0 and below 1")
    if z_loss < 0:
        raise ValueError(f"z_loss={z_loss}: a negative coefficient drives Z away from 1; pass 0 or more")


def _check_readout(
    hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None, softcap: float | None, chunk: int
) -> None:
    if kernel.ndim != 2 or kernel.shape[0] != hidden.shape[-1]:
        raise ValueError(f"kernel has shape {kernel.shape}; hidden {hidden.shape} needs [{hidden.shape[-1]}, V]")
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias has shape {bias.shape}; kernel {kernel.shape} needs {kernel.shape[1:]}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap={softcap}: logits are kept within +-softcap; pass a positive number or None")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: it counts positions; pass 1 or more")
