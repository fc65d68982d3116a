"""The two compiled pieces of decoding: one pass over the prompts, and a loop that adds a token to every row each turn.

The state goes in and comes out and is donated, so the loop updates the key/value cache in place. Both pieces compile
once for each model, method and set of shapes; lengths, keys, stop tokens and the number of tokens wanted are traced.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from transformer.decoding.methods import Method
from transformer.models.transformer import Transformer
from transformer.nn import cache as caches
from transformer.nn.cache import Cache
from transformer.nn.tap import Tap
from transformer.ops import sampling
from transformer.ops.sharding import mesh_sizes

# Deeper decoders keep the loop over layers: their programs would be long, and a second copy of their blocks large.
UNROLLED_DEPTH = 24


@flax.struct.dataclass
class Prompt:
    """What rows begin with, padded on the right.

    Attributes:
      tokens: `[B, T]` int32.
      lengths: `[B]` int32, the real tokens of each row, at least 1.
      source: `[B, S]` int32 for an encoder, or None.
      source_mask: `[B, S]` booleans, the real source tokens, or None.
      prefix: whether the tokens of a row all see each other.
    """

    tokens: jax.Array
    lengths: jax.Array
    source: jax.Array | None = None
    source_mask: jax.Array | None = None
    prefix: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class Choice:
    """What decides a row's next token besides its logits and the method.

    Attributes:
      key: a typed key; token n of row b is drawn with `fold_in(fold_in(key, b), n)`, whatever the other rows hold.
      stop: `[n]` int32, tokens that end a row.
      pad: fills a row after its stop token.
      banned: `[n]` int32, tokens that are never chosen.
      penalty: of tokens that the row holds already, or None.
    """

    key: jax.Array
    stop: jax.Array
    pad: jax.Array
    banned: jax.Array
    penalty: jax.Array | None = None


@flax.struct.dataclass
class State:
    """Where decoding stands.

    Attributes:
      tokens: `[B, C]` int32, what was chosen so far, then pad. The cache holds all of it but the newest token.
      count: tokens chosen so far.
      done: `[B]` booleans, the rows that have stopped.
      seen: `[B, V]` booleans, the tokens in a row, its prompt included; None without a penalty.
    """

    tokens: jax.Array
    count: jax.Array
    done: jax.Array
    seen: jax.Array | None
    cache: Cache


@partial(jax.jit, static_argnames=("model", "method", "capacity"))
def begin(model: Transformer, method: Method, params: dict, prompt: Prompt, choice: Choice, *, capacity: int) -> State:
    """Read the prompts in one pass and choose each row's first token; `capacity` is the cache's number of slots."""
    batch = prompt.tokens.shape[0]
    logits, cache = read(model, params, prompt, capacity=capacity)
    state = State(
        tokens=jnp.full((batch, capacity), choice.pad, jnp.int32),
        count=jnp.zeros((), jnp.int32),
        done=jnp.zeros(batch, bool),
        seen=None if choice.penalty is None else _occurrences(prompt, model.config.vocab),
        cache=apart(model, cache),
    )
    return _choose(method, choice, logits, state)


def apart(model: Transformer, cache: Cache) -> Cache:
    """The cache as `advance` reads it fastest: on CPUs a layer of a stack is copied before it is multiplied."""
    looped = unrolled(model).config.unroll < model.config.decoder.depth
    return cache if looped or jax.default_backend() != "cpu" or mesh_sizes() else cache.apart()


def read(
    model: Transformer, params: dict, prompt: Prompt, *, capacity: int, tap: Tap | None = None
) -> tuple[jax.Array, Cache]:
    """Logits `[B, V]` after each row's last token, and a cache of `capacity` slots that holds the prompts."""
    if isinstance(params["decoder"]["blocks"], tuple):
        model, params = unrolled(model), joined(params)
    batch, length = prompt.tokens.shape
    source_length = None if prompt.source is None else prompt.source.shape[1]
    variables = {"params": params}
    # Padding repeats the last real position: positions that scale with the longest one must not see it.
    positions = jnp.minimum(jnp.arange(length), prompt.lengths[:, None] - 1)
    prefix = jnp.arange(length) < prompt.lengths[:, None] if prompt.prefix else None
    features, cache = model.apply(
        variables,
        prompt.tokens,
        source=prompt.source,
        source_mask=prompt.source_mask,
        prefix=prefix,
        positions=positions,
        cache=caches.empty(model.config, batch, capacity, source_length),
        tap=tap,
        method="features",
    )
    last = jnp.take_along_axis(features, prompt.lengths[:, None, None] - 1, axis=1)  # [B, 1, D]
    logits = model.apply(variables, last, method="read")[:, 0]
    return logits, cache.replace(length=prompt.lengths)


@partial(jax.jit, static_argnames=("model",))
def prepare(model: Transformer, params: dict) -> dict:
    """Parameters as `advance` takes them: matrices in the compute dtype, and the decoder's blocks a tuple of layers.

        params = decoding.prepare(model, params)  # once, then as many calls as you like
        decoding.generate(model, params, tokens)

    Whatever decodes does this itself at every call with parameters that are not prepared, which takes GPT-2 small on
    two cores 0.15 s. This spares every token a cast and a copy of each layer out of the stack; it costs a second copy
    of the blocks, which decoders deeper than `UNROLLED_DEPTH` do not get. On CPUs its kernels are turned
    (`nn.Projection`), so that each output's numbers lie side by side: few rows are multiplied faster so. 768 x 3,072
    take two cores with AVX-512 0.61 ms either way with 1 row, 1.01 instead of 1.34 with 8 and 1.84 instead of 2.35
    with 64; in bfloat16 0.47, 0.51 and 0.66 instead of 0.70, 0.78 and 0.89.
    """
    params = _cast(model.config.dtype, params)
    if isinstance(params["decoder"]["blocks"], tuple):  # prepared before
        return params
    depth, blocks = model.config.decoder.depth, params["decoder"]["blocks"]
    if depth <= UNROLLED_DEPTH:
        blocks = tuple(jax.tree.map(lambda leaf: leaf[layer], blocks) for layer in range(depth))  # noqa: B023
        if jax.default_backend() == "cpu" and not mesh_sizes():
            blocks = tuple(_turn(block) for block in blocks)
    return {**params, "decoder": {**params["decoder"], "blocks": blocks}}


@partial(jax.jit, static_argnames=("model", "method"), donate_argnames=("state",))
def advance(
    model: Transformer, method: Method, params: dict, choice: Choice, state: State, limit: jax.Array | int
) -> State:
    """Choose tokens until each row has `limit` of them or every row has stopped; `params` are from `prepare`."""
    model = unrolled(model)

    def going(state: State) -> jax.Array:
        return (state.count < limit) & ~jnp.all(state.done)

    def step(state: State) -> State:
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, axis=1)  # [B, 1]
        # Rows that have stopped run along on any valid token: pad need not be in the vocabulary.
        newest = jnp.where(state.done[:, None], 0, newest)
        logits, cache = model.apply({"params": joined(params)}, newest, cache=state.cache)
        return _choose(method, choice, logits[:, 0], state.replace(cache=cache))

    return jax.lax.while_loop(going, step, state)


def _choose(method: Method, choice: Choice, logits: jax.Array, state: State) -> State:
    """Choose one token for each row from logits `[B, V]` and write it down."""
    rows = jnp.arange(logits.shape[0])
    if choice.penalty is not None:
        logits = sampling.repetition_penalty(logits, state.seen, choice.penalty)
    logits = logits.at[:, choice.banned].set(-jnp.inf)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(choice.key, row), state.count))(rows)
    token = jnp.where(state.done, choice.pad, jax.vmap(method)(logits, keys))
    return state.replace(
        tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, state.count, axis=1),
        count=state.count + 1,
        done=state.done | jnp.any(token[:, None] == choice.stop, axis=1),
        seen=None if state.seen is None else state.seen.at[rows, token].set(True, mode="drop"),
    )


def unrolled(model: Transformer) -> Transformer:
    """The model without a loop over layers, which would copy each layer's parameters at every token."""
    config = model.config
    if config.decoder.depth > UNROLLED_DEPTH:
        return model
    depth = min(stack.depth for stack in (config.encoder, config.decoder) if stack is not None)
    return model.clone(config=dataclasses.replace(config, unroll=depth))


def joined(params: dict) -> dict:
    """The layout that the model wants; the compiler sees through slices of a stack, so nothing is stacked or copied."""
    blocks = params["decoder"]["blocks"]
    if isinstance(blocks, tuple):
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return {**params, "decoder": {**params["decoder"], "blocks": blocks}}


def _turn(block: dict) -> dict:
    """A layer's parameters with the kernels of its projections turned."""

    def turn(name: str, part: dict) -> dict:
        if "kernel" not in part:
            return part
        kernel = part["kernel"]
        if name == "output":  # heads and their features are what attention's output reads
            kernel = kernel.reshape(-1, kernel.shape[-1])
        rest = {key: leaf for key, leaf in part.items() if key != "kernel"}
        return {**rest, "turned": jnp.moveaxis(kernel, 0, -1)}

    parts = {name: part for name, part in block.items() if "router" not in part}  # experts are no projections
    turned = {
        name: {key: turn(key, leaf) if isinstance(leaf, dict) else leaf for key, leaf in part.items()}
        for name, part in parts.items()
    }
    return {**block, **turned}


def _cast(dtype: str, params: dict) -> dict:
    """Parameters whose matrices have the compute dtype: what modules do at every use, done once for all tokens."""

    def cast(path, leaf: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf.astype(dtype) if names.endswith(("/kernel", "/turned")) or names == "embedding/table" else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def _occurrences(prompt: Prompt, vocab: int) -> jax.Array:
    """`[B, V]` booleans: the tokens that each prompt holds."""
    batch, length = prompt.tokens.shape
    real = jnp.arange(length) < prompt.lengths[:, None]
    return jnp.zeros((batch, vocab), bool).at[jnp.arange(batch)[:, None], prompt.tokens].max(real)
