"""The two compiled pieces of serving, over rows that each stand where their own request does.

`admit` reads a prompt into a row and `advance` adds tokens to all. The state goes in and comes out and is donated, so
the key/value cache is updated in place. `admit` compiles once for each width of prompts, `advance` once.
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from transformer.decoding import loop
from transformer.decoding.methods import Method
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer
from transformer.nn import cache as caches
from transformer.nn.cache import Cache


@flax.struct.dataclass
class Admission:
    """A request on its way to the device: its prompt as one row, and what decides its tokens."""

    prompt: loop.Prompt
    key: jax.Array
    stop: jax.Array  # [V] booleans, whatever the number of tokens, so that all requests share a program
    limit: jax.Array


@flax.struct.dataclass
class State:
    """Where every row stands.

    Attributes:
      tokens: `[B, block + 1]` int32: token n of a row at column n modulo block + 1. A row gains no more of them
        between two looks of the host, its first token included. The cache holds all but the newest.
      count: `[B]` int32, tokens chosen so far.
      limit: `[B]` int32, where a row ends.
      done: `[B]` booleans, the rows that are free or have ended.
      key: `[B]` typed keys.
      stop: `[B, V]` booleans, tokens that end a row.
    """

    tokens: jax.Array
    count: jax.Array
    limit: jax.Array
    done: jax.Array
    key: jax.Array
    stop: jax.Array
    cache: Cache


def idle(config: ModelConfig, slots: int, capacity: int, block: int) -> State:
    """Rows that serve nobody yet."""
    return State(
        tokens=jnp.zeros((slots, block + 1), jnp.int32),
        count=jnp.zeros(slots, jnp.int32),
        limit=jnp.zeros(slots, jnp.int32),
        done=jnp.ones(slots, bool),
        key=jax.random.split(jax.random.key(0), slots),
        stop=jnp.zeros((slots, config.vocab), bool),
        cache=caches.empty(config, slots, capacity),
    )


@partial(jax.jit, static_argnames=("model", "method"), donate_argnames=("state",))
def admit(
    model: Transformer, method: Method, params: dict, banned: jax.Array, admission: Admission, state: State, row: int
) -> State:
    """Read a prompt, choose its first token, and put all that is known of it where `row` was."""
    logits, cache = loop.read(model, params, admission.prompt, capacity=state.cache.capacity)
    one = State(
        tokens=jnp.zeros((1, state.tokens.shape[1]), jnp.int32),
        count=jnp.zeros(1, jnp.int32),
        limit=admission.limit[None],
        done=jnp.zeros(1, bool),
        key=admission.key[None],
        stop=admission.stop[None],
        cache=cache,
    )
    one = _choose(method, banned, logits, one)

    def put(axis: int, rows: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(rows, new, row, axis)

    held = state.cache.replace(
        key=put(1, state.cache.key, cache.key),
        value=put(1, state.cache.value, cache.value),
        length=put(0, state.cache.length, cache.length),
    )
    rest = jax.tree.map(partial(put, 0), state.replace(cache=None), one.replace(cache=None))
    return rest.replace(cache=held)


@partial(jax.jit, static_argnames=("model", "method"), donate_argnames=("state",))
def advance(
    model: Transformer, method: Method, params: dict, banned: jax.Array, state: State
) -> tuple[State, jax.Array]:
    """Add a token to every busy row until a block is full or no row is busy; also returns how often."""
    model, columns = loop.unrolled(model), state.tokens.shape[1]

    def going(carry: tuple[jax.Array, State]) -> jax.Array:
        turn, state = carry
        return (turn < columns - 1) & ~jnp.all(state.done)

    def step(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        turn, state = carry
        newest = jnp.take_along_axis(state.tokens, (state.count[:, None] - 1) % columns, axis=1)  # [B, 1]
        # Idle rows read one token over and over, so that none runs out of positions.
        newest = jnp.where(state.done[:, None], 0, newest)
        cache = state.cache.replace(length=jnp.where(state.done, 0, state.cache.length))
        logits, cache = model.apply({"params": loop.joined(params)}, newest, cache=cache)
        return turn + 1, _choose(method, banned, logits[:, 0], state.replace(cache=cache))

    turns, state = jax.lax.while_loop(going, step, (jnp.zeros((), jnp.int32), state))
    return state, turns


def _choose(method: Method, banned: jax.Array, logits: jax.Array, state: State) -> State:
    """Choose a token for each busy row from logits `[B, V]`, and write it down."""
    rows, columns = jnp.arange(logits.shape[0]), state.tokens.shape[1]
    keys = jax.vmap(lambda key, count: jax.random.fold_in(jax.random.fold_in(key, 0), count))(state.key, state.count)
    token = jax.vmap(method)(logits.at[:, banned].set(-jnp.inf), keys)
    column = jnp.where(state.done, columns, state.count % columns)  # beyond the last one nothing is written
    count = state.count + ~state.done
    return state.replace(
        tokens=state.tokens.at[rows, column].set(token, mode="drop"),
        count=count,
        done=state.done | state.stop[rows, token] | (count >= state.limit),
    )
