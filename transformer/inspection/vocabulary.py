"""What one head looks for and what it writes, in tokens of the vocabulary."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.inspection.circuits import after_norm, check_distance, check_linear, read_out
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer, unembedding
from transformer.nn.embedding import Embedding
from transformer.nn.norms import Normalize
from transformer.nn.positions import rotation
from transformer.ops import attention as ops


class HeadTable(NamedTuple):
    """What one head looks for and writes, for N tokens, k tokens of the vocabulary each, in falling order.

    Attributes:
      keys: `[N, k]` ids, what a query from the token scores highest.
      scores: `[N, k]`, their scores.
      writes: `[N, k]` ids, whose logits attention to the token raises most.
      logits: `[N, k]`, by how much, where all that the norms behind the head divide by is 1.
    """

    keys: jax.Array
    scores: jax.Array
    writes: jax.Array
    logits: jax.Array


def head_table(
    model: Transformer,
    params,
    tokens: jax.Array,
    *,
    layer: int,
    head: int,
    top: int = 10,
    distance: jax.Array | int | None = None,
    chunk: int = 4096,
) -> HeadTable:
    """What a head of self-attention looks for and writes, on the path from embeddings through it alone to the logits.

    Tokens stand in the residual as if no half before the head had written anything: embedded, without positions,
    through the norms on the way. Queries, keys and values have their biases and norms. What is written goes on through
    the norms behind, centred and with their gains, to the read-out.

    Args:
      tokens: `[N]` ids.
      layer, head: whose; negative ones from the end.
      top: k, how many tokens of the vocabulary to name.
      distance: as in `query_key`.
      chunk: how many tokens of the vocabulary are in memory at a time, as vectors `[chunk, D]`.

    Raises:
      ValueError: if layer, head, top or distance does not fit, or the read-out has a transform, which is not linear.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", on one-layer transformers, whose
    circuits run from tokens to tokens too.
    """
    check_linear(model.config)
    stack = read_out(model.config)[1]
    check_distance(distance, stack)
    for name, index, size in (("layer", layer, stack.depth), ("head", head, stack.attention.heads)):
        if not -size <= index < size:
            raise ValueError(f"{name}={index} is out of range; there are {size}: use 0 to {size - 1}")
    if not 1 <= top <= model.config.vocab:
        raise ValueError(f"top={top} is out of range: there are 1 to {model.config.vocab} tokens")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} cannot work: it counts tokens, such as 4096")
    chunk = min(chunk, model.config.vocab)
    tokens, layer = jnp.asarray(tokens), layer % stack.depth
    if tokens.ndim != 1:
        raise ValueError(f"tokens have shape {tokens.shape}: give ids [N], such as [5]")
    return _head_table(params, tokens, layer, head, distance, model=model, top=top, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("model", "top", "chunk"))
def _head_table(params, tokens, layer, head, distance, *, model, top, chunk):
    config, (role, stack) = model.config, read_out(model.config)
    own = jax.tree.map(lambda leaf: leaf[layer], params[role]["blocks"]["attention"])
    part = functools.partial(_part, config, own, head)
    query, value = (part(name, _seen(config, params, layer, tokens), distance) for name in ("query", "value"))
    written = value @ own["output"]["kernel"][head].astype(jnp.float32)  # [N, D]
    written = _to_read_out(config, params, layer, written)
    kernel = unembedding(config, params)[0]

    def score(ids: jax.Array) -> jax.Array:
        key = part("key", _seen(config, params, layer, ids), None if distance is None else 0)
        query_and_key = (array[None, :, None] for array in (query, key))
        return ops.scores(*query_and_key, scale=stack.attention.scale, softcap=stack.attention.softcap)[0, 0]

    keys = _highest(score, config.vocab, top, chunk, len(tokens))
    writes = _highest(lambda ids: written @ kernel[:, ids].astype(jnp.float32), config.vocab, top, chunk, len(tokens))
    return HeadTable(*keys, *writes)


def _highest(
    score: Callable[[jax.Array], jax.Array], vocab: int, top: int, chunk: int, rows: int
) -> tuple[jax.Array, jax.Array]:
    """The ids with the highest scores and these, `[rows, top]` each, where ids `[chunk]` score `[rows, chunk]`."""

    def step(best: tuple, start: jax.Array) -> tuple:
        ids = start + jnp.arange(chunk, dtype=jnp.int32)
        new = jnp.where(ids < vocab, score(jnp.minimum(ids, vocab - 1)), -jnp.inf)
        ids = jnp.concatenate([best[0], jnp.broadcast_to(ids, new.shape)], axis=1)
        scores, places = jax.lax.top_k(jnp.concatenate([best[1], new], axis=1), top)
        return (jnp.take_along_axis(ids, places, axis=1), scores), None

    none = (jnp.zeros((rows, top), jnp.int32), jnp.full((rows, top), -jnp.inf))
    return jax.lax.scan(step, none, jnp.arange(0, vocab, chunk, dtype=jnp.int32))[0]


def _seen(config: ModelConfig, params, layer: jax.Array, ids: jax.Array) -> jax.Array:
    """What a layer's attention reads of tokens `[N]`, had nothing been written before it: `[N, D]` in float32."""
    role, stack = read_out(config)
    own, norm = params[role], lambda params, x: Normalize(config, stack.norm).apply({"params": params}, x)
    x = Embedding(config).apply({"params": params["embedding"]}, ids[None])[0].astype(jnp.float32)
    x = norm(own["embedding_norm"], x) if stack.embedding_norm else x
    if stack.norm_placement != "post":
        return norm(_layer(own["blocks"]["attention_norm"], layer), x)
    return jax.lax.fori_loop(0, layer, lambda index, x: _through(own["blocks"], index, x, norm), x)


def _to_read_out(config: ModelConfig, params, layer: jax.Array, x: jax.Array) -> jax.Array:
    """What the read-out's matrix reads of what attention in a layer writes, had norms only divided by 1: `[N, D]`."""
    role, stack = read_out(config)
    own, norm = params[role], functools.partial(after_norm, stack.norm)
    if stack.norm_placement == "both":
        x = norm(_layer(own["blocks"]["attention_post_norm"], layer), x)
    if stack.norm_placement == "post":
        x = jax.lax.fori_loop(layer, stack.depth, lambda index, x: _through(own["blocks"], index, x, norm), x)
    else:
        x = norm(own["final_norm"], x)
    return x * config.width**-0.5 if config.readout.scale else x


def _through(blocks, index: jax.Array, x: jax.Array, norm: Callable) -> jax.Array:
    """Through the norms of one block, one behind each half."""
    for half in ("attention", "cross", "mlp"):
        x = norm(_layer(blocks[f"{half}_norm"], index), x) if f"{half}_norm" in blocks else x
    return x


def _layer(params, index: jax.Array):
    return jax.tree.map(lambda leaf: leaf[index], params)


def _part(config: ModelConfig, own, head: jax.Array, name: str, x: jax.Array, position) -> jax.Array:
    """One head's queries, keys or values of `[N, D]`, turned as at a position unless it is None: `[N, K]`."""
    stack = read_out(config)[1]
    kernel = own[name]["kernel"]
    index = head * kernel.shape[1] // stack.attention.heads
    made = x @ kernel[:, index].astype(jnp.float32)
    made += own[name]["bias"][index].astype(jnp.float32) if "bias" in own[name] else 0.0
    if name == "value":
        return made
    if stack.attention.query_key_norm:
        norm = dataclasses.replace(stack.norm, kind="rms", bias=False)
        made = Normalize(config, norm).apply({"params": own[f"{name}_norm"]}, made)
    if position is None:
        return made
    return rotation(config, stack, jnp.full((1, len(x)), position))(made[None, :, None])[0, :, 0]
