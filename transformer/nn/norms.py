"""LayerNorm and RMSNorm, computed in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Norm


def layer_norm(x: jax.Array, epsilon: float) -> jax.Array:
    """`(x - mean) / sqrt(variance + epsilon)` over the last axis (Ba et al. 2016, arXiv:1607.06450)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return rms_norm(centred, epsilon)


def rms_norm(x: jax.Array, epsilon: float) -> jax.Array:
    """`x / sqrt(mean(x^2) + epsilon)` over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


FUNCTIONS = {"layer": layer_norm, "rms": rms_norm}


class Normalize(nn.Module):
    """A norm over the last axis with a learned `scale` and, if asked, `bias`: `[..., D] -> [..., D]`, dtype kept."""

    config: ModelConfig
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm, width, dtype = self.norm, x.shape[-1], jnp.dtype(self.config.param_dtype)
        out = FUNCTIONS[norm.kind](x.astype(jnp.float32), norm.epsilon)
        start = nn.initializers.zeros if norm.zero_centred else nn.initializers.ones
        scale = self.param("scale", start, (width,), dtype).astype(jnp.float32)
        out = out * (1.0 + scale if norm.zero_centred else scale)
        if norm.bias:
            out = out + self.param("bias", nn.initializers.zeros, (width,), dtype).astype(jnp.float32)
        return out.astype(x.dtype)
