"""Decoding with a draft: a small model proposes tokens, and the large one judges several in one pass.

A pass of a large model costs about the same for one token as for a few, since its parameters must be read either way.
Accepting or replacing proposals by the right rule leaves the tokens the distribution that the large model alone has.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from transformer.decoding import arguments, loop
from transformer.decoding.methods import Greedy, Method
from transformer.decoding.prompts import Rows
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer
from transformer.nn.cache import Cache


class Speculated(NamedTuple):
    """Continuations, and how well the draft foresaw them. `accepted.sum() / proposed.sum()` is the acceptance rate.

    Attributes:
      tokens: `[B, length]` int32; pad after a stop token.
      rounds: `[B]` int32, passes of the model after the one over the prompt; `generate` needs `length` - 1.
      proposed: `[B]` int32, proposals that were judged; what follows a rejected one or a row's end never is.
      accepted: `[B]` int32, proposals that became tokens of the row.
    """

    tokens: jax.Array
    rounds: jax.Array
    proposed: jax.Array
    accepted: jax.Array


@flax.struct.dataclass
class State:
    """Where decoding stands.

    Attributes:
      tokens: `[B, 1 + C]` int32: the prompt's last token, what was chosen so far, then pad.
      count: `[B]` int32, tokens chosen so far; the newest is `tokens[count]`.
      done: `[B]` booleans, the rows that have stopped.
      rounds, proposed, accepted: as in `Speculated`.
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


def speculate(
    model: Transformer,
    params: dict,
    draft: Transformer,
    draft_params: dict,
    prompt: Rows,
    *,
    length: int = 64,
    proposals: int = 4,
    method: Method = Greedy(),  # noqa: B008
    key: jax.Array | None = None,
    lengths: Rows | None = None,
    stop: int | Sequence[int] = (),
    pad: int = 0,
    banned: int | Sequence[int] = (),
    capacity: int | None = None,
) -> Speculated:
    """Continue each row of a prompt by `length` tokens of the model's distribution, with fewer passes of the model.

    In each round the draft proposes tokens x_1 .. x_n, one after another, and one pass of the model gives its own
    probabilities p at these n places and the next. With q those of the draft, both after the method's filter, a row
    takes its proposals in order, each with probability

        min(1, p(x) / q(x)),

    and puts in the place of the first that fails a token drawn from max(p - q, 0) / sum(max(p - q, 0)); where none
    fails, a token drawn from p follows. So each round adds 1 to n + 1 tokens, and each token has the probability p that
    `generate` would draw it with, whatever the draft: a bad one costs time alone. With `Greedy()` the tokens are those
    of `generate`, except that a pass over several tokens rounds sums in another order, which may decide near ties.

        out = speculate(model, params, draft, draft_params, [[5, 7, 9], [3]], length=20, proposals=4)
        out.tokens, out.accepted.sum() / out.proposed.sum()

    Args:
      draft: a cheaper model over the same vocabulary, that agrees with the model as often as may be.
      length: how many tokens to add.
      proposals: n, at least 1. More are worth their cost where most are accepted.
      key: a typed key, needed unless the method is `Greedy`. Row b depends on the key and on b, not on other rows. The
        tokens are not those that `generate` draws with it, except the first.
      capacity: slots of each of the two key/value caches in each row, at least the longest prompt + `length` - 1. None:
        enough, rounded up.
      prompt, method, lengths, stop, pad, banned: as in `generate`.

    Returns:
      `Speculated`, whose tokens are laid out as those of `generate`.

    Raises:
      ValueError: if either is not a decoder alone, vocabularies differ, or an argument does not fit them or the others.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), algorithm 1; Chen et al. 2023 (arXiv:2302.01318), algorithm 2.
    """
    _check(model.config, draft.config, proposals)
    prepared, slots = arguments.prompt(model.config, prompt, length, lengths, None, None, capacity, False)
    try:
        draft_slots = arguments.prompt(draft.config, prompt, length, lengths, None, None, capacity, False)[1]
    except ValueError as error:
        raise ValueError(f"draft: {error}") from None
    choice = arguments.choice(model.config.vocab, method, key, stop, pad, banned, penalty=1.0)
    proposals = min(proposals, length - 1)  # the first token is chosen from the prompt alone
    _check_scaling(model.config, int(prepared.lengths.max()) + length + proposals)
    models, both = (model, draft), (params, draft_params)
    state = begin(models, method, both, prepared, choice, slots=(slots, draft_slots))
    if proposals:
        both = tuple(map(loop.prepare, models, both))
        state = advance(models, method, both, choice, state, length, proposals=proposals)
    return Speculated(state.tokens[:, 1 : length + 1], state.rounds, state.proposed, state.accepted)


@partial(jax.jit, static_argnames=("models", "method", "slots"))
def begin(models, method: Method, params, prompt: loop.Prompt, choice: loop.Choice, *, slots: tuple[int, int]) -> State:
    """Let both models read the prompts, each into a cache of its `slots`, and choose each row's first token.

    `models` and `params` are those of the model, then those of the draft.
    """
    first = loop.begin(models[0], method, params[0], prompt, choice, capacity=slots[0])
    narrow = prompt.replace(tokens=prompt.tokens[:, : slots[1]])  # padding may be more than the draft has room for
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
        draft_cache=draft_cache,
    )


@partial(jax.jit, static_argnames=("models", "method", "proposals"), donate_argnames=("state",))
def advance(models, method: Method, params, choice: loop.Choice, state: State, limit, *, proposals: int) -> State:
    """Propose and judge until each row has `limit` tokens or has stopped; `params` are from `loop.prepare`."""
    model, draft = map(loop.unrolled, models)

    def one_round(state: State) -> State:
        keys = _keys(choice.key, state.count, proposals + 1)
        proposed, draft_cache = _propose(draft, method, params[1], choice, state, keys.propose[:, :proposals])
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


def _propose(draft, method, params, choice, state: State, keys: jax.Array) -> tuple[_Proposals, Cache]:
    """Draw proposals from the draft, one for each of the keys `[B, n]`, each given those before it."""
    variables = {"params": loop.joined(params)}

    def draw(logits: jax.Array, keys: jax.Array) -> _Proposals:
        token = jax.vmap(method)(logits.at[:, choice.banned].set(-jnp.inf), keys)
        return _Proposals(token, _probabilities(method, choice, logits))

    def step(carry: tuple[jax.Array, Cache], keys: jax.Array):
        token, cache = carry
        logits, cache = draft.apply(variables, token[:, None], cache=cache)
        drawn = draw(logits[:, 0], keys)
        return (drawn.tokens, cache), drawn

    # The newest token and the one before, which the draft has not read if it was the last of a round's proposals.
    pair = jnp.take_along_axis(state.tokens, state.count[:, None] + jnp.arange(-1, 1), axis=1)
    cache = state.draft_cache.replace(length=state.cache.length - 1)
    logits, cache = draft.apply(variables, pair, cache=cache)
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


def _check(config: ModelConfig, draft: ModelConfig, proposals: int) -> None:
    for name, one in (("model", config), ("draft", draft)):
        if one.decoder is None or one.encoder is not None:
            raise ValueError(f"{name} has an encoder: speculate takes models that are a decoder alone; use generate")
    if config.vocab != draft.vocab:
        vocabularies = f"draft has a vocabulary of {draft.vocab} and model one of {config.vocab}"
        raise ValueError(f"{vocabularies}: use two models of one tokenizer")
    if isinstance(proposals, bool) or not isinstance(proposals, numbers.Integral) or proposals < 1:
        raise ValueError(f"proposals={proposals!r}: it must be a whole number, 1 or more")


def _check_scaling(config: ModelConfig, longest: int) -> None:
    """Refuse positions whose meaning changes with how many are read in one pass."""
    scaling = config.decoder.position.scaling
    if scaling.kind == "dynamic" and longest > scaling.original_length:
        raise ValueError(
            f"model turns positions by scaling.kind='dynamic', which beyond {scaling.original_length} of them depends "
            f"on how many are read at once, and this may read {longest}: ask for a smaller length, or use generate"
        )
