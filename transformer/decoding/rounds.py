"""The two compiled pieces of decoding with a draft: one pass over the prompts, and a loop of rounds.

In each round the draft proposes tokens and the model judges them. As in `loop`, the state is donated and everything but
the models, the method, the number of proposals and the shapes is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from transformer.decoding import loop
from transformer.decoding.methods import Method
from transformer.models.transformer import Transformer
from transformer.nn.cache import Cache


@flax.struct.dataclass
class State:
    """Where decoding stands.

    Attributes:
      tokens: `[B, 1 + C]` int32: the prompt's last token, what was chosen so far, then pad.
      count: `[B]` int32, tokens chosen so far; the newest is `tokens[count]`.
      done: `[B]` booleans, the rows that have stopped.
      rounds, proposed, accepted: as in `speculative.Speculated`.
      cache: the model's; it holds all of a row but the newest token.
      draft_cache: the draft's, which may lack the token before that too. Its `length` is not read.
    """

    tokens: jax.Array
    count: jax.Array
    done: jax.Array
    rounds: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    cache: Cache
    draft_cache: Cache


class _Proposals(NamedTuple):
    """What the draft proposes, `[B, n]` int32, and the distributions that it drew from, `[B, n, V]`."""

    tokens: jax.Array
    probabilities: jax.Array


class _Keys(NamedTuple):
    """Keys of a round's tokens, each `[B, n + 1]`: to propose one, to judge the proposal, to choose without one."""

    propose: jax.Array
    judge: jax.Array
    choose: jax.Array


@partial(jax.jit, static_argnames=("models", "method", "slots"))
def begin(models, method: Method, params, prompt: loop.Prompt, choice: loop.Choice, *, slots: tuple[int, int]) -> State:
    """Let both models read the prompts, each into a cache of its `slots`, and choose each row's first token.

    `models` and `params` are those of the model, then those of the draft.
    """
    first = loop.begin(models[0], method, params[0], prompt, choice, capacity=slots[0])
    # Padding may be more than the draft has room for.
    narrow = prompt.replace(tokens=_known(models[1], prompt.tokens[:, : slots[1]]))
    _, draft_cache = loop.read(models[1], params[1], narrow, capacity=slots[1])
    last = jnp.take_along_axis(prompt.tokens, prompt.lengths[:, None] - 1, axis=1)
    nothing = jnp.zeros_like(prompt.lengths)
    return State(
        tokens=jnp.concatenate([last, first.tokens], axis=1),
        count=nothing + 1,
        done=first.done,
        rounds=nothing,
        proposed=nothing,
        accepted=nothing,
        cache=first.cache,
        draft_cache=loop.apart(models[1], draft_cache),
    )


@partial(jax.jit, static_argnames=("models", "method", "proposals"), donate_argnames=("state",))
def advance(models, method: Method, params, choice: loop.Choice, state: State, limit, *, proposals: int) -> State:
    """Propose and judge until each row has `limit` tokens or has stopped; `params` are from `loop.prepare`."""
    model, draft = map(loop.unrolled, models)

    def one_round(state: State) -> State:
        keys = _keys(choice.key, state.count, proposals + 1)
        read = partial(_read, draft, loop.joined(params[1]), model.config.vocab)
        proposed, draft_cache = _propose(read, method, choice, state, keys.propose[:, :proposals])
        newest = jnp.take_along_axis(state.tokens, state.count[:, None], axis=1)
        tokens = jnp.concatenate([newest, proposed.tokens], axis=1)  # [B, n + 1]
        logits, cache = model.apply({"params": loop.joined(params[0])}, tokens, cache=state.cache)
        accepted, token = _judge(_probabilities(method, choice, logits), proposed, keys)
        length = state.cache.length  # slots beyond it will be written again before anything sees them
        state = state.replace(cache=cache.replace(length=length), draft_cache=draft_cache)
        return _add(choice, state, limit, proposed.tokens, accepted, token)

    return jax.lax.while_loop(lambda state: jnp.any(_going(state, limit)), one_round, state)


def _going(state: State, limit) -> jax.Array:
    """The rows `[B]` that want more tokens. The others run along, and nothing of them is kept."""
    return ~state.done & (state.count < limit)


def _keys(key: jax.Array, count: jax.Array, width: int) -> _Keys:
    """Keys of the next `width` tokens of each row, which depend on row and place alone.

    A place may be proposed in several rounds by the same key: nothing that was kept came from what is proposed anew.
    """

    def one(row: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, row), place), 3)

    places = count[:, None] + jnp.arange(width)
    keys = jax.vmap(jax.vmap(one, (None, 0)))(jnp.arange(len(count)), places)  # [B, n + 1, 3]
    return _Keys(keys[..., 0], keys[..., 1], keys[..., 2])


def _probabilities(method: Method, choice: loop.Choice, logits: jax.Array) -> jax.Array:
    """What the method draws from, `[..., V]` in float32."""
    return jax.nn.softmax(method.filter(logits.at[..., choice.banned].set(-jnp.inf)).astype(jnp.float32), axis=-1)


def _read(draft: Transformer, params: dict, vocab: int, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """The draft's logits `[B, T, vocab]`: -inf where it has none, without those that only it has."""
    logits, cache = draft.apply({"params": params}, _known(draft, tokens), cache=cache)
    more = vocab - logits.shape[2]  # or fewer: what is padded by a negative number is cut
    return jax.lax.pad(logits, jnp.array(-jnp.inf, logits.dtype), ((0, 0, 0), (0, 0, 0), (0, more, 0))), cache


def _known(draft: Transformer, tokens: jax.Array) -> jax.Array:
    """Tokens that the draft has a vector for, in the place of others its last one."""
    return jnp.minimum(tokens, draft.config.vocab - 1)


def _propose(read: Callable, method, choice, state: State, keys: jax.Array) -> tuple[_Proposals, Cache]:
    """Draw proposals from the draft, one for each of the keys `[B, n]`, each given those before it."""

    def draw(logits: jax.Array, keys: jax.Array) -> _Proposals:
        token = jax.vmap(method)(logits.at[:, choice.banned].set(-jnp.inf), keys)
        return _Proposals(token, _probabilities(method, choice, logits))

    def step(carry: tuple[jax.Array, Cache], keys: jax.Array):
        token, cache = carry
        logits, cache = read(token[:, None], cache)
        drawn = draw(logits[:, 0], keys)
        return (drawn.tokens, cache), drawn

    # The newest token and the one before, which the draft has not read if it was the last of a round's proposals.
    pair = jnp.take_along_axis(state.tokens, state.count[:, None] + jnp.arange(-1, 1), axis=1)
    cache = state.draft_cache.replace(length=state.cache.length - 1)
    logits, cache = read(pair, cache)
    first = draw(logits[:, 1], keys[:, 0])
    (_, cache), others = jax.lax.scan(step, (first.tokens, cache), keys[:, 1:].T)
    join = lambda one, more: jnp.moveaxis(jnp.concatenate([one[None], more]), 0, 1)  # noqa: E731
    return jax.tree.map(join, first, others), cache


def _judge(probabilities: jax.Array, proposed: _Proposals, keys: _Keys) -> tuple[jax.Array, jax.Array]:
    """How many proposals each row accepts, `[B]`, and the token that follows those, `[B]`.

    Args:
      probabilities: `[B, n + 1, V]`, the model's at the places of the proposals and the next.
    """
    rows, count = jnp.arange(len(probabilities)), proposed.tokens.shape[1]
    at = lambda array: jnp.take_along_axis(array, proposed.tokens[..., None], axis=2)[..., 0]  # noqa: E731
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys.judge[:, :count])
    passes = uniform * at(proposed.probabilities) < at(probabilities[:, :count])
    accepted = jnp.sum(jnp.cumprod(passes.astype(jnp.int32), axis=1), axis=1)
    wanted = probabilities[rows, accepted]  # [B, V]
    # Nothing was proposed after the last: all that the model wants there is missing.
    had = proposed.probabilities.at[rows, accepted].get(mode="fill", fill_value=0)
    missing = jnp.maximum(wanted - had, 0)
    missing = jnp.where(jnp.any(missing > 0, axis=-1, keepdims=True), missing, wanted)  # what rounding has eaten
    token = jax.vmap(jax.random.categorical)(keys.choose[rows, accepted], jnp.log(missing))
    return accepted, token.astype(jnp.int32)


def _add(choice: loop.Choice, state: State, limit, proposed: jax.Array, accepted: jax.Array, token: jax.Array) -> State:
    """Write down the accepted proposals of each row and the token after them, up to a stop token and the limit."""
    rows, places = jnp.arange(len(token))[:, None], jnp.arange(proposed.shape[1] + 1)
    run = jnp.pad(proposed, ((0, 0), (0, 1)))
    run = jnp.where(places == accepted[:, None], token[:, None], run)  # [B, n + 1]
    room = jnp.where(_going(state, limit), limit - state.count, 0)
    kept = jnp.minimum(accepted + 1, room)  # [B]
    stops = jnp.any(run[..., None] == choice.stop, axis=-1) & (places < kept[:, None])
    stopped = jnp.any(stops, axis=1)
    kept = jnp.where(stopped, jnp.argmax(stops, axis=1) + 1, kept)
    places = jnp.where(places < kept[:, None], state.count[:, None] + 1 + places, state.tokens.shape[1])
    return state.replace(
        tokens=state.tokens.at[rows, places].set(run, mode="drop"),
        count=state.count + kept,
        done=state.done | stopped,
        rounds=state.rounds + (kept > 0),
        proposed=state.proposed + jnp.minimum(kept, proposed.shape[1]),
        accepted=state.accepted + jnp.minimum(kept, accepted),
        cache=state.cache.replace(length=state.cache.length + kept),
    )
