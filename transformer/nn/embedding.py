"""From token ids to vectors, and from vectors to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.nn.mlp import ACTIVATIONS
from transformer.nn.norms import Normalize
from transformer.nn.positions import look_up
from transformer.nn.projection import Projection, project, standard_deviation
from transformer.ops.sharding import constrain

if TYPE_CHECKING:
    from transformer.models.config import ModelConfig, Stack


class Embedding(nn.Module):
    """One table `[V, D]` for encoder and decoder, and, where a model has token types, one for those."""

    config: ModelConfig

    def setup(self):
        config, start = self.config, nn.initializers.normal(self.config.init.embedding)
        dtype = jnp.dtype(config.param_dtype)
        self.table = self.param("table", start, (config.vocab, config.width), dtype)
        if config.token_types:
            self.types = self.param("types", start, (config.token_types, config.width), dtype)

    def __call__(self, tokens: jax.Array, token_types: jax.Array | None = None) -> jax.Array:
        """`[B, T]` integers to `[B, T, D]`; an id outside the vocabulary gives NaN, never a neighbour's vector.

        Raises:
          ValueError: if token types are given to a model that has none.
        """
        config = self.config
        # Many rows are looked up where tokens are, in a whole table; for one, a table need not be gathered.
        table = constrain(self.table, None, None) if tokens.shape[1] > 1 else self.table
        out = constrain(look_up(table, tokens).astype(jnp.dtype(config.dtype)), "rows", "residual", None)
        if config.embedding_scale:
            out = out * jnp.asarray(config.width**0.5, out.dtype)
        if config.token_types:
            types = jnp.zeros_like(tokens) if token_types is None else token_types
            out = out + look_up(self.types, types).astype(out.dtype)
        elif token_types is not None:
            raise ValueError("token_types were given, but the model has none: set token_types in its config")
        return out


class Unembedding(nn.Module):
    """From the last residual to logits, with the embedding's table or with a matrix of its own."""

    config: ModelConfig
    stack: Stack  # the one that is read out

    def setup(self):
        config, readout = self.config, self.config.readout
        if readout.transform:
            self.transform = Projection(config, (config.width,), (config.width,), use_bias=True)
            self.norm = Normalize(config, self.stack.norm)
        if not readout.tied:
            start = nn.initializers.normal(standard_deviation(config.init, config.width, config.vocab))
            self.kernel = self.param("kernel", start, (config.width, config.vocab), jnp.dtype(config.param_dtype))
        if readout.bias:
            self.bias = self.param("bias", nn.initializers.zeros, (config.vocab,), jnp.dtype(config.param_dtype))

    def features(self, x: jax.Array) -> jax.Array:
        """What the matrix reads: `[B, T, D]` after transform and scale."""
        readout = self.config.readout
        if readout.transform:
            activation = ACTIVATIONS[self.stack.mlp.activation if self.stack.mlp else "gelu"]
            x = self.norm(activation(self.transform(x)))
        return x * jnp.asarray(self.config.width**-0.5, x.dtype) if readout.scale else x

    def __call__(self, features: jax.Array, table: jax.Array) -> jax.Array:
        """`[B, T, D]` and the embedding table `[V, D]` to float32 logits `[B, T, V]`."""
        readout = self.config.readout
        kernel = (table if readout.tied else self.kernel).astype(features.dtype)
        logits = project(features, kernel, dtype=jnp.float32, transposed=readout.tied)
        logits = constrain(logits, "rows", "residual", None)
        if readout.bias:
            logits = logits + self.bias.astype(jnp.float32)
        if readout.softcap is not None:
            logits = readout.softcap * jnp.tanh(logits / readout.softcap)
        return logits
