"""The Transformer: an encoder, a decoder, or both, and its read-out."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.models.config import ModelConfig, Stack
from transformer.nn.cache import Cache
from transformer.nn.embedding import Embedding, Unembedding
from transformer.nn.projection import Projection
from transformer.nn.stack import Layers
from transformer.nn.tap import Tap
from transformer.ops.masks import Mask


class Transformer(nn.Module):
    """A model from its config: `tokens [B, T] -> logits [B, T, V]` in float32.

    An encoder alone reads in both directions (BERT); a decoder alone reads from left to right (GPT); both together
    decode `tokens` while attending to `source` (the original Transformer, T5).

        model = Transformer(config)
        params = model.init(jax.random.key(0), tokens)["params"]
        logits = model.apply({"params": params}, tokens)

    Source: Vaswani et al. 2017 (arXiv:1706.03762).
    """

    config: ModelConfig

    def setup(self):
        config = self.config
        self.embedding = Embedding(config)
        if config.encoder is not None:
            self.encoder = self._layers(config.encoder, "encoder", causal=False, crosses=False)
        if config.decoder is not None:
            self.decoder = self._layers(config.decoder, "decoder", causal=True, crosses=config.encoder is not None)
        self.readout = Unembedding(config, config.decoder or config.encoder)
        if config.pooler:
            self.pooler = Projection(config, (config.width,), (config.width,), use_bias=True)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        source: jax.Array | None = None,
        mask: jax.Array | None = None,
        source_mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        source_segments: jax.Array | None = None,
        prefix: jax.Array | None = None,
        positions: jax.Array | None = None,
        source_positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        cache: Cache | None = None,
        tap: Tap | None = None,
        train: bool = False,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """Logits for every position.

        Args:
          tokens: `[B, T]` ids.
          source: `[B, S]` ids that an encoder-decoder attends to; may be left out once a cache holds it.
          mask: `[B, T]` booleans, True = a real token; None = all are.
          source_mask: `[B, S]`, the same for the source.
          segments: `[B, T]` integers; tokens attend only within their own segment (packed documents).
          source_segments: `[B, S]`, the same for the source.
          prefix: `[B, T]` booleans, tokens that a decoder sees from everywhere, the earlier ones included (prefix
            language models); None = none are. With a cache, which must be empty then, of this call's tokens.
          positions: `[B, T]` integers; None counts from 0, or from what the cache holds.
          source_positions: `[B, S]`, the same for the source.
          token_types: `[B, T]` integers, for models that have them.
          cache: from `nn.cache.empty`; the result is then `(logits, cache)`, the cache T tokens longer.
          tap: reads and replaces activations; see `inspection.run`.
          train: whether dropout is on (pass `rngs={"dropout": key}` to `apply`).

        Raises:
          ValueError: if an argument does not fit the model.
        """
        tap = tap or Tap()
        features, cache_out = self.features(
            tokens, source=source, mask=mask, source_mask=source_mask, segments=segments,
            source_segments=source_segments, prefix=prefix, positions=positions, source_positions=source_positions,
            token_types=token_types, cache=cache, tap=tap, train=train,
        )  # fmt: skip
        logits = tap("logits", self.read(features))
        return logits if cache is None else (logits, cache_out)

    def features(
        self,
        tokens: jax.Array,
        *,
        source: jax.Array | None = None,
        mask: jax.Array | None = None,
        source_mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        source_segments: jax.Array | None = None,
        prefix: jax.Array | None = None,
        positions: jax.Array | None = None,
        source_positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        cache: Cache | None = None,
        tap: Tap | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """What the read-out reads, `[B, T, D]`, and the cache: `__call__` without the product over the vocabulary."""
        self._check(source, cache, (source_mask, source_segments, source_positions))
        tap = tap or Tap()
        if self.config.decoder is None:
            if prefix is not None:
                raise ValueError("prefix was given, but an encoder alone sees everything anyway: leave it out")
            hidden = self.encode(tokens, mask=mask, segments=segments, positions=positions, token_types=token_types,
                                 tap=tap, train=train)  # fmt: skip
            return self.readout.features(hidden), None

        memory = memory_mask = None
        if source is not None:
            memory = self.encode(source, mask=source_mask, segments=source_segments, positions=source_positions,
                                 tap=tap, train=train)  # fmt: skip
            memory_mask = _visible(source_mask, segments, source_segments)
            _check_source(source, cache)
            if cache is not None and source_mask is not None:
                cache = cache.replace(cross_mask=source_mask.astype(bool))
        elif cache is not None and cache.cross_mask is not None:
            memory_mask = Mask(valid=cache.cross_mask)

        _check_ids("tokens", tokens, self.config, self.config.decoder, mask, segments, positions, token_types, prefix)
        _check_room(tokens, cache)
        visible = _visible(mask, segments, segments)
        if cache is not None and visible is not None:
            raise ValueError("mask and segments cannot be combined with a cache: set cache.length to each row's length")
        hidden, cache = self.decoder(
            self.embedding(tokens, token_types), memory=memory, mask=visible, memory_mask=memory_mask, prefix=prefix,
            positions=positions, cache=cache, tap=tap, train=train,
        )  # fmt: skip
        return self.readout.features(hidden), cache

    def read(self, features: jax.Array) -> jax.Array:
        """`[B, T, D]` to logits `[B, T, V]` in float32."""
        return self.readout(features, self.embedding.table)

    def encode(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        tap: Tap | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The encoder's output: `[B, S]` ids to `[B, S, D]`; arguments as in `__call__`."""
        if self.config.encoder is None:
            raise ValueError("this model has no encoder: use a config with encoder=Stack(...)")
        name = "tokens" if self.config.decoder is None else "source"
        _check_ids(name, tokens, self.config, self.config.encoder, mask, segments, positions, token_types)
        x = self.embedding(tokens, token_types)
        visible = _visible(mask, segments, segments)
        hidden, _ = self.encoder(x, mask=visible, positions=positions, tap=tap or Tap(), train=train)
        if self.config.pooler and self.is_initializing():
            self.pooler(hidden[:, :1])
        return hidden

    def pool(self, tokens: jax.Array, **arguments) -> jax.Array:
        """One vector for a sequence, `tanh(W h_0 + b)` of the first position (BERT): `[B, S]` ids to `[B, D]`."""
        if not self.config.pooler:
            raise ValueError("this model has no pooler: use a config with pooler=True")
        return jnp.tanh(self.pooler(self.encode(tokens, **arguments)[:, 0]))

    def _layers(self, stack: Stack, role: str, causal: bool, crosses: bool) -> Layers:
        return Layers(self.config, stack, role, causal, crosses)

    def _check(self, source: jax.Array | None, cache: Cache | None, of_source: tuple) -> None:
        config = self.config
        both = config.encoder is not None and config.decoder is not None
        if source is not None and not both:
            raise ValueError("source was given, but the model has no encoder beside a decoder: pass tokens alone")
        if both and source is None and cache is None:
            raise ValueError("an encoder-decoder needs source: pass source=[B, S] ids")
        if source is None and any(argument is not None for argument in of_source):
            raise ValueError("source_mask, source_segments and source_positions describe source: pass source as well")
        if config.decoder is None and cache is not None:
            raise ValueError("a cache was given, but the model has no decoder")


def unembedding(config: ModelConfig, params: dict) -> tuple[jax.Array, jax.Array | None]:
    """The read-out's matrix `[D, V]` and bias `[V]` (or None), for losses that read in chunks."""
    readout = params.get("readout", {})
    kernel = params["embedding"]["table"].T if config.readout.tied else readout["kernel"]
    return kernel, readout.get("bias")


def _check_ids(
    name, ids, config: ModelConfig, stack: Stack, mask, segments, positions, token_types, prefix=None
) -> None:
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name} must be [B, T] integers, not {ids.dtype} of shape {ids.shape}")
    if not ids.shape[1]:
        raise ValueError(f"{name} of shape {ids.shape} are empty: give at least one token in each row")
    if stack.position.kind == "learned" and ids.shape[1] > config.length:
        raise ValueError(f"{name} has length {ids.shape[1]}, but the model has {config.length} learned positions")
    fellows = {"mask": mask, "segments": segments, "positions": positions, "token_types": token_types, "prefix": prefix}
    for argument, array in fellows.items():
        if array is not None and array.shape != ids.shape:
            raise ValueError(f"{argument} of {name} has shape {array.shape}; it must be that of {name}, {ids.shape}")


def _check_room(tokens: jax.Array, cache: Cache | None) -> None:
    if cache is None:
        return
    rows = cache.length.shape[0]
    if tokens.shape[0] != rows or tokens.shape[1] > cache.capacity:
        raise ValueError(f"tokens {tokens.shape} do not fit a cache of {rows} rows and {cache.capacity} slots")


def _check_source(source: jax.Array, cache: Cache | None) -> None:
    if cache is not None and source.shape[1] != cache.cross_key.shape[3]:
        raise ValueError(f"source has length {source.shape[1]}, but the cache was made for {cache.cross_key.shape[3]}")


def _visible(mask, query_segments, key_segments) -> Mask | None:
    """A padding mask over keys and segments on both sides."""
    if (query_segments is None) != (key_segments is None):
        raise ValueError("segments and source_segments come together: give both or neither")
    if mask is None and query_segments is None:
        return None
    return Mask(valid=mask, query_segments=query_segments, key_segments=key_segments)
