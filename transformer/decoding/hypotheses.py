"""The two compiled pieces of beam search: one pass over the prompts, and a loop that extends all hypotheses each turn.

As in `loop`, the state is donated and everything but the model, the number of beams and the shapes is traced. `M` is
the number of beams and `C` that of the cache's slots.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from transformer.decoding import loop
from transformer.models.transformer import Transformer
from transformer.nn.cache import Cache
from transformer.nn.tap import Tap


class Hypotheses(NamedTuple):
    """Finished outputs of each row, best first.

    Attributes:
      tokens: `[B, count, length]` int32; pad after the stop token.
      lengths: `[B, count]` int32, tokens in each, the stop token included.
      log_probabilities: `[B, count]` float32, sums over these tokens.
      scores: `[B, count]` float32, what they are sorted by.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probabilities: jax.Array
    scores: jax.Array


@flax.struct.dataclass
class Search:
    """What decides which hypotheses are kept.

    Attributes:
      stop: `[n]` int32, tokens that end a hypothesis.
      pad: fills a hypothesis after its stop token.
      banned: `[n]` int32, tokens that are never chosen.
      limits: `[B]` int32, the most tokens in each row.
      length_penalty: the exponent of the length in scores.
      coverage: the weight of the covered source in scores, or None.
    """

    stop: jax.Array
    pad: jax.Array
    banned: jax.Array
    limits: jax.Array
    length_penalty: jax.Array
    coverage: jax.Array | None


@flax.struct.dataclass
class State:
    """Where the search stands.

    Attributes:
      tokens: `[B, M, C]` int32, what the hypotheses that go on hold so far, then pad.
      log_probabilities: `[B, M]` float32; -inf where a row has fewer hypotheses.
      covered: `[B, M, S]` float32, the attention that source tokens have received; None without coverage.
      finished: `[B, M, ...]`, the best so far; score -inf where there are fewer.
      count: tokens chosen so far.
      done: `[B]` booleans, the rows whose `finished` are final.
      cache: of B M rows, the M beams of a row side by side.
    """

    tokens: jax.Array
    log_probabilities: jax.Array
    covered: jax.Array | None
    finished: Hypotheses
    count: jax.Array
    done: jax.Array
    cache: Cache


class _Extensions(NamedTuple):
    """One-token extensions of a row's beams, the likeliest first, each `[B, n]`."""

    log_probabilities: jax.Array
    beams: jax.Array
    tokens: jax.Array


@partial(jax.jit, static_argnames=("model", "beams", "capacity"))
def begin(model: Transformer, params: dict, prompt: loop.Prompt, search: Search, *, beams: int, capacity: int) -> State:
    """Read the prompts in one pass, once for all beams, and extend them by a first token."""
    batch = prompt.tokens.shape[0]
    tap = _tap(model, search, prompt.lengths - 1)
    logits, cache = loop.read(model, params, prompt, capacity=capacity, tap=tap)
    tokens, nothing = jnp.full((batch, beams, capacity), search.pad, jnp.int32), jnp.full((batch, beams), -jnp.inf)
    state = State(
        tokens=tokens,
        log_probabilities=nothing.at[:, 0].set(0.0),  # the beams hold the same prompt, which counts once
        covered=None if search.coverage is None else jnp.zeros((batch, beams, prompt.source.shape[1])),
        finished=Hypotheses(tokens, jnp.zeros((batch, beams), jnp.int32), nothing, nothing),
        count=jnp.zeros((), jnp.int32),
        done=jnp.zeros(batch, bool),
        cache=_repeated(cache, beams),
    )
    attended = None if tap is None else _attended(tap)[:, None]
    state, _ = _extend(search, jnp.repeat(logits[:, None], beams, axis=1), attended, state)
    return state


@partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def advance(model: Transformer, params: dict, search: Search, state: State) -> State:
    """Extend hypotheses until every row is done; `params` are from `loop.prepare`."""
    model, (batch, beams, _) = loop.unrolled(model), state.tokens.shape

    def step(state: State) -> State:
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, axis=2).reshape(-1, 1)  # [B M, 1]
        tap = _tap(model, search, jnp.zeros(batch * beams, jnp.int32))
        logits, cache = model.apply({"params": loop.joined(params)}, newest, cache=state.cache, tap=tap)
        attended = None if tap is None else _attended(tap).reshape(batch, beams, -1)
        state, parents = _extend(search, logits.reshape(batch, beams, -1), attended, state.replace(cache=cache))
        return state.replace(cache=_reordered(state.cache, parents))

    return jax.lax.while_loop(lambda state: ~jnp.all(state.done), step, state)


def _extend(search: Search, logits: jax.Array, attended: jax.Array | None, state: State) -> tuple[State, jax.Array]:
    """Extend the beams by logits `[B, M, V]`; with the new state, whose cache is as it was, the beams `[B, M]` that the
    new ones continue. `attended` is `[B, M or 1, S]`, what source tokens received as the logits were computed."""
    beams, count = logits.shape[1], state.count + 1
    covered = None if attended is None else state.covered + attended
    ranked = _ranked(search, logits, state.log_probabilities)
    ends = jnp.any(ranked.tokens[..., None] == search.stop, axis=-1)  # [B, n]
    goes = ~ends & (jnp.cumsum(~ends, axis=1) <= beams)
    finishes = (ends & (jnp.arange(ends.shape[1]) < beams)) | (goes & (count >= search.limits)[:, None])

    written = _along(state.tokens, ranked.beams)  # [B, n, C]
    written = jax.lax.dynamic_update_index_in_dim(written, ranked.tokens, state.count, axis=2)
    finished = _kept(
        state.finished,
        _scored(search, ranked, written, count, covered, state.cache.cross_mask, finishes & ~state.done[:, None]),
    )
    log_probabilities, going = jax.lax.top_k(jnp.where(goes, ranked.log_probabilities, -jnp.inf), beams)
    parents = _along(ranked.beams, going)
    full = jnp.all(finished.scores > -jnp.inf, axis=1)
    exhausted = jnp.all(log_probabilities == -jnp.inf, axis=1)
    state = state.replace(
        tokens=_along(written, going),
        log_probabilities=log_probabilities,
        covered=None if covered is None else _along(covered, parents),
        finished=finished,
        count=count,
        done=state.done | full | exhausted | (count >= search.limits),
    )
    return state, parents


def _ranked(search: Search, logits: jax.Array, log_probabilities: jax.Array) -> _Extensions:
    """The likeliest extensions of beams by logits `[B, M, V]`: enough that M of them do not end, if so many exist."""
    batch, beams, vocab = logits.shape
    room = beams * (1 + len(search.stop))
    # First within each beam and by logits: sums of log-probabilities round away differences that greedy choice sees.
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    best, tokens = jax.lax.top_k(logits.at[..., search.banned].set(-jnp.inf), min(room, vocab))
    sums = (log_probabilities[..., None] + (best - total)).reshape(batch, -1)
    ranked, index = jax.lax.top_k(sums, min(room, sums.shape[1]))
    return _Extensions(ranked, index // best.shape[2], _along(tokens.reshape(batch, -1), index))


def _scored(search: Search, ranked: _Extensions, written, count, covered, source_mask, finishes) -> Hypotheses:
    """Extensions as hypotheses of `count` tokens; those that do not finish have score -inf."""
    log_probabilities = jnp.where(finishes, ranked.log_probabilities, -jnp.inf)
    scores = log_probabilities / ((5 + count) / 6) ** search.length_penalty
    if covered is not None:
        real = source_mask.reshape(covered.shape)
        share = jnp.clip(covered, jnp.finfo(covered.dtype).tiny, 1)  # so that no score of a hypothesis is -inf
        logarithms = jnp.sum(jnp.where(real, jnp.log(share), 0), axis=-1)  # [B, M]
        scores += search.coverage * _along(logarithms, ranked.beams)
    return Hypotheses(written, jnp.broadcast_to(count, scores.shape), log_probabilities, scores)


def _kept(finished: Hypotheses, new: Hypotheses) -> Hypotheses:
    """The best of both, as many as are finished; among equals the finished first."""
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), finished, new)
    _, best = jax.lax.top_k(both.scores, finished.scores.shape[1])
    return jax.tree.map(lambda array: _along(array, best), both)


def _along(array: jax.Array, index: jax.Array) -> jax.Array:
    """Each row's entries `[B, n]` of `[B, M, ...]`: `[B, n, ...]`."""
    return jax.vmap(lambda row, chosen: row[chosen])(array, index)


def _repeated(cache: Cache, beams: int) -> Cache:
    """The cache of B rows as one of B M."""
    layers = {"key": cache.key, "value": cache.value, "cross_key": cache.cross_key, "cross_value": cache.cross_value}
    rows = {"length": cache.length, "cross_mask": cache.cross_mask}
    of = lambda arrays, axis: jax.tree.map(lambda array: jnp.repeat(array, beams, axis=axis), arrays)  # noqa: E731
    return cache.replace(**of(layers, 1), **of(rows, 0))


def _reordered(cache: Cache, parents: jax.Array) -> Cache:
    """The cache with each beam's own keys and values from the beam that it continues; the source is the row's own."""
    batch, beams = parents.shape
    rows = (jnp.arange(batch)[:, None] * beams + parents).reshape(-1)

    def layer(index: jax.Array, arrays: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.tree.map(lambda array: array.at[index].set(array[index, rows]), arrays)

    # A layer at a time, so that there is never a second cache.
    key, value = jax.lax.fori_loop(0, cache.key.shape[0], layer, (cache.key, cache.value))
    return cache.replace(key=key, value=value)


def _tap(model: Transformer, search: Search, positions: jax.Array) -> Tap | None:
    """What reads the last layer's attention to the source, the mean of its heads, at one position of each row."""
    if search.coverage is None:
        return None

    def read(pattern: jax.Array) -> jax.Array:
        """`[B, H, T, S]` to `[B, S]`."""
        mean = jnp.mean(pattern.astype(jnp.float32), axis=1)
        return jnp.take_along_axis(mean, positions[:, None, None], axis=1)[:, 0]

    return Tap({f"decoder/{model.config.decoder.depth - 1}/cross/pattern": read})


def _attended(tap: Tap) -> jax.Array:
    """What the tap of one pass has read, `[B, S]`."""
    return tap.taps().stacked()["decoder/*/cross/pattern"][0]
