"""Cross-entropy, returned as sums and counts, so that a caller divides once by a global count.

With logits x over a vocabulary of V, target t and log Z = log sum exp x, one position costs

    (1 - smoothing) (log Z - x[t]) + smoothing (log Z - mean x) + z_loss (log Z)^2

Label smoothing trains towards `1 - smoothing` on the target plus `smoothing / V` everywhere: Szegedy et al. 2016
(arXiv:1512.00567), section 7. The last term keeps Z near 1: Chowdhery et al. 2022 (arXiv:2204.02311), section 5.
Everything is computed in float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Loss(NamedTuple):
    """Float32 scalars that add up over batches and devices: mean `sum / count`, perplexity `exp(nats / count)`."""

    sum: jax.Array  # what is minimised, with smoothing and z-loss
    count: jax.Array  # the sum of the weights
    nats: jax.Array  # -log p(target) alone


class _Statistics(NamedTuple):
    """What a loss needs of each position's logits, `[N]` each."""

    log_normaliser: jax.Array
    target: jax.Array
    mean: jax.Array


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
    logits = logits.astype(jnp.float32)
    safe = jnp.clip(targets, 0, logits.shape[-1] - 1)
    statistics = _Statistics(
        log_normaliser=jax.nn.logsumexp(logits, axis=-1),
        target=jnp.take_along_axis(logits, safe[..., None], axis=-1)[..., 0],
        mean=jnp.mean(logits, axis=-1),
    )
    return _total(statistics, targets, weights, logits.shape[-1], smoothing, z_loss)


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

    Logits are formed for `chunk` tokens of the vocabulary at a time, reduced by an online log-sum-exp (Milakov and
    Gimelshein 2018, arXiv:1805.02867), and formed again in the backward pass. Memory falls from N * V to N * chunk
    floats for one more matrix product. Values and gradients are those of the whole, up to rounding.

    Matrix products of two bfloat16 arrays multiply in bfloat16 and add in float32; all others run in float32 (float16
    has too small a range for gradients of logits).

    Args:
      hidden: `[..., D]`.
      kernel: `[D, V]`.
      targets, weights, smoothing, z_loss: as in `cross_entropy`.
      bias: `[V]`, or None.
      scale: multiplies the products.
      softcap: as in `attention.scores`, after the bias; None leaves the logits.
      chunk: tokens of the vocabulary at a time; need not divide V.

    Raises:
      ValueError: as `cross_entropy`, and if kernel, bias, softcap or chunk do not fit.
    """
    _check(hidden.shape[:-1], targets, weights, smoothing, z_loss)
    _check_readout(hidden, kernel, bias, softcap, chunk)
    vocabulary = kernel.shape[1]
    readout = _Readout(scale, softcap, min(chunk, vocabulary))
    bias = jnp.zeros(vocabulary, jnp.float32) if bias is None else bias
    flat = hidden.reshape(-1, hidden.shape[-1])  # [N, D]
    statistics = _chunked_statistics(readout, flat, kernel, bias, targets.reshape(-1))
    flat_weights = None if weights is None else weights.reshape(-1)
    return _total(statistics, targets.reshape(-1), flat_weights, vocabulary, smoothing, z_loss)


def _total(
    statistics: _Statistics,
    targets: jax.Array,
    weights: jax.Array | None,
    vocabulary: int,
    smoothing: float,
    z_loss: float,
) -> Loss:
    weights = jnp.ones(targets.shape) if weights is None else weights
    weights = weights.astype(jnp.float32)
    inside = (targets >= 0) & (targets < vocabulary)
    nats = jnp.where(inside, statistics.log_normaliser - statistics.target, jnp.nan)
    loss = nats
    if smoothing:
        loss = (1 - smoothing) * nats + smoothing * (statistics.log_normaliser - statistics.mean)
    if z_loss:
        loss = loss + z_loss * jnp.square(statistics.log_normaliser)
    counted = weights != 0  # zero times NaN is NaN
    return Loss(
        sum=jnp.sum(jnp.where(counted, weights * loss, 0.0)),
        count=jnp.sum(weights),
        nats=jnp.sum(jnp.where(counted, weights * nats, 0.0)),
    )


class _Readout(NamedTuple):
    """How logits are formed, for one chunk of the vocabulary at a time."""

    scale: float
    softcap: float | None
    chunk: int

    def columns(self, step: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
        """The first column of a chunk, and which of its columns no earlier chunk had.

        The last chunk reaches back so that all are equally wide; a padded copy of the kernel is never made.
        """
        start = jnp.minimum(step * self.chunk, vocabulary - self.chunk)
        return start, start + jnp.arange(self.chunk) >= step * self.chunk

    def logits(self, hidden: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        """`[N, D]`, `[D, C]` and `[C]` to `[N, C]` in float32."""
        out = self.scale * _product("ND,DC->NC", hidden, kernel) + bias.astype(jnp.float32)
        return out if self.softcap is None else self.softcap * jnp.tanh(out / self.softcap)

    def steps(self, vocabulary: int) -> int:
        return -(-vocabulary // self.chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_statistics(
    readout: _Readout, hidden: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array
) -> _Statistics:
    vocabulary = kernel.shape[1]

    def add_chunk(step, carry):
        peak, total, target, mean = carry
        start, fresh = readout.columns(step, vocabulary)
        kernel_chunk, bias_chunk = _slice(kernel, start, readout.chunk), _slice(bias, start, readout.chunk)
        logits = readout.logits(hidden, kernel_chunk, bias_chunk)  # [N, C]
        higher = jnp.maximum(peak, jnp.max(logits, axis=-1))
        exponentials = jnp.exp(logits - higher[:, None])
        total = total * jnp.exp(peak - higher) + jnp.sum(exponentials, axis=-1, where=fresh)
        hit = fresh & (targets[:, None] == start + jnp.arange(readout.chunk))
        target = target + jnp.sum(logits, axis=-1, where=hit)
        return higher, total, target, mean + jnp.sum(logits, axis=-1, where=fresh) / vocabulary

    zeros = jnp.zeros(targets.shape, jnp.float32)
    # The smallest float, not -inf, whose difference with itself would be NaN where a bias rules a whole chunk out.
    start = (zeros + jnp.finfo(jnp.float32).min, zeros, zeros, zeros)
    peak, total, target, mean = jax.lax.fori_loop(0, readout.steps(vocabulary), add_chunk, start)
    return _Statistics(peak + jnp.log(total), target, mean)


def _forward(readout, hidden, kernel, bias, targets):
    statistics = _chunked_statistics(readout, hidden, kernel, bias, targets)
    return statistics, (hidden, kernel, bias, targets, statistics.log_normaliser)


def _backward(readout, saved, cotangents):
    """Gradients of log Z, x[t] and mean x by the logits: softmax, the one-hot target and 1 / V."""
    hidden, kernel, bias, targets, log_normaliser = saved
    vocabulary = kernel.shape[1]

    def add_chunk(step, carry):
        by_hidden, by_kernel, by_bias = carry
        start, fresh = readout.columns(step, vocabulary)
        kernel_chunk, bias_chunk = _slice(kernel, start, readout.chunk), _slice(bias, start, readout.chunk)
        logits = readout.logits(hidden, kernel_chunk, bias_chunk)  # [N, C]
        hit = targets[:, None] == start + jnp.arange(readout.chunk)
        slope = cotangents.log_normaliser[:, None] * jnp.exp(logits - log_normaliser[:, None])
        slope = slope + jnp.where(hit, cotangents.target[:, None], 0.0) + cotangents.mean[:, None] / vocabulary
        if readout.softcap is not None:
            slope = slope * (1 - jnp.square(logits / readout.softcap))
        by_product = (readout.scale * slope).astype(_operand(hidden, kernel))
        # Columns of an earlier chunk add nothing to hidden, and write the same kernel and bias gradients again.
        by_hidden = by_hidden + _product("NC,DC->ND", jnp.where(fresh, by_product, 0), kernel_chunk)
        by_kernel = _write(by_kernel, _product("ND,NC->DC", hidden, by_product), start)
        return by_hidden, by_kernel, _write(by_bias, jnp.sum(slope, axis=0), start)

    zeros = jnp.zeros_like(hidden, jnp.float32), jnp.zeros_like(kernel), jnp.zeros_like(bias)
    by_hidden, by_kernel, by_bias = jax.lax.fori_loop(0, readout.steps(vocabulary), add_chunk, zeros)
    return by_hidden.astype(hidden.dtype), by_kernel, by_bias, None


_chunked_statistics.defvjp(_forward, _backward)


def _operand(left: jax.Array, right: jax.Array) -> jnp.dtype:
    both = left.dtype == jnp.bfloat16 and right.dtype == jnp.bfloat16
    return jnp.dtype(jnp.bfloat16 if both else jnp.float32)


def _product(contraction: str, left: jax.Array, right: jax.Array) -> jax.Array:
    dtype = _operand(left, right)
    return jnp.einsum(contraction, left.astype(dtype), right.astype(dtype), preferred_element_type=jnp.float32)


def _slice(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis=-1)


def _write(array: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part.astype(array.dtype), start, axis=-1)


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
        raise ValueError(f"chunk={chunk}: it counts tokens of the vocabulary; pass 1 or more")
