"""Requests of unequal lengths in one batch: a row that is done makes room for the next request at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np

from transformer.decoding import arguments, loop, prompts, rows
from transformer.decoding.methods import Greedy, Method
from transformer.decoding.whole import whole
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer

_END = object()


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt to continue.

    Attributes:
      prompt: ids `[T]`.
      length: how many tokens to add at most.
      key: a typed key, needed unless the method is `Greedy`.
      stop: a token, or several, that end it; None: those of `serve`.
    """

    prompt: Sequence[int] | np.ndarray
    length: int = 64
    key: jax.Array | None = None
    stop: int | Sequence[int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """What became of a request.

    Attributes:
      index: its number among all requests, from 0.
      request: itself.
      tokens: `[n]` int32, what was added, a stop token included.
      reason: why it ended: `stop`, `length`, or `error` for a request that was refused.
      turn: how often rows had been advanced by then. A busy row gains a token each time, so a request's tokens but
        the first, which its prompt's reading gives, count the turns that it kept a row busy.
      error: why it was refused; None unless `reason` is `error`.
    """

    index: int
    request: Request
    tokens: np.ndarray
    reason: str
    turn: int
    error: str | None = None


def serve(
    model: Transformer,
    params: dict,
    requests: Iterable[Request | None],
    *,
    capacity: int,
    slots: int = 8,
    block: int = 16,
    method: Method = Greedy(),  # noqa: B008
    stop: int | Sequence[int] = (),
    banned: int | Sequence[int] = (),
    prefix: bool = False,
) -> Iterator[Response]:
    """Continue prompts as they come, `slots` at a time, with the tokens that each would have alone.

        for response in serve(model, params, requests, capacity=512, method=TopP(0.9)):
            print(response.index, response.tokens)

    A request gives the tokens of `generate(model, params, [prompt], length=length, key=key)`, whatever else is served
    and in whatever order: its token n is drawn with `fold_in(fold_in(key, 0), n)`, rows read no other row, and what
    its prompt is padded to depends on itself alone. Products of `slots` rows may be rounded in another way than those
    of one. In float32 that decides between tokens that are all but equally likely; in bfloat16, with 8 bits for a
    number, such pairs are common, and from there on the texts differ.

    Prompts are read one by one, each padded to the next of a doubling series of widths, so that few programs are
    compiled. A row whose request ends within a block idles to the end of it.

    Args:
      requests: read as rows become free, and never further, so it may be endless, or wait for its next; while it
        waits nothing else happens. An iterator that must not wait gives None instead: the rows under way go on, and
        it is asked again after a block.
      capacity: tokens that a row's key/value cache has room for, at least a prompt's tokens + `length` - 1.
      slots: the rows, requests that are under way at a time.
      block: tokens between two returns from the device, which each cost a little time.
      method: how a token is chosen.
      stop: a token, or several, that end a row; the one chosen is part of the result.
      banned: a token, or several, that are never chosen.
      prefix: whether the tokens of a prompt all see each other, as a prefix language model was trained.

    Returns:
      An iterator of responses, each given in the block in which it ends. A request that does not fit the model or
      `capacity` costs no others: it is answered with `reason="error"` where it would have been admitted.

    Raises:
      ValueError: at once, if the model is no decoder alone or another argument does not fit it.

    Source: iteration-level scheduling, Yu et al. 2022 (Orca, OSDI '22), section 3.
    """
    _check(model.config, slots, capacity, block)
    stop, banned = arguments.stop_and_banned(model.config.vocab, stop, banned)
    check = partial(_admission, model.config, method, capacity, stop, prefix)
    table = _Table(model, method, params, banned, rows.idle(model.config, slots, capacity, block))
    return _responses(table, check, iter(requests))


def _responses(
    table: _Table, check: Callable[[Request], rows.Admission], requests: Iterator[Request | None]
) -> Iterator[Response]:
    index, request = 0, None
    while table.busy or request is not _END:
        while request is not _END and table.free:
            request = next(requests, _END)
            if request is None or request is _END:
                break
            try:
                admission = check(request)
            except ValueError as error:
                yield Response(index, request, np.zeros(0, np.int32), "error", table.turn, str(error))
            else:
                table.admit(index, request, admission)
            index += 1
        if table.busy:
            yield from table.advance()


class _Table:
    """The rows on the device, and the host's account of whom they serve."""

    def __init__(self, model: Transformer, method: Method, params: dict, banned: np.ndarray, state: rows.State):
        self.program = model, method, loop.prepare(model, params), banned
        self.state = state
        self.free = list(range(len(state.done)))
        self.busy: dict[int, tuple[int, Request, np.ndarray, list[int]]] = {}
        self.turn = 0

    def admit(self, index: int, request: Request, admission: rows.Admission) -> None:
        """Read a prompt into a free row."""
        row = self.free.pop()
        self.state = rows.admit(*self.program, admission, self.state, row)
        self.busy[row] = index, request, admission.stop, []

    def advance(self) -> list[Response]:
        """Add up to a block of tokens to every busy row; what has ended by then."""
        self.state, turns = rows.advance(*self.program, self.state)
        # One transfer, and before the next call, which takes the state's buffers.
        tokens, count, done, turns = jax.device_get((self.state.tokens, self.state.count, self.state.done, turns))
        self.turn += int(turns)
        for row, (_, _, _, so_far) in self.busy.items():
            so_far.extend(tokens[row, np.arange(len(so_far), count[row]) % tokens.shape[1]].tolist())
        return [self._leave(row) for row in sorted(self.busy) if done[row]]

    def _leave(self, row: int) -> Response:
        index, request, stop, tokens = self.busy.pop(row)
        self.free.append(row)
        reason = "stop" if stop[tokens[-1]] else "length"
        return Response(index, request, np.asarray(tokens, np.int32), reason, self.turn)


def _check(config: ModelConfig, slots: int, capacity: int, block: int) -> None:
    if config.decoder is None or config.encoder is not None:
        raise ValueError("serve continues prompts with a decoder alone: for a model with an encoder use generate")
    for name, value in {"slots": slots, "capacity": capacity, "block": block}.items():
        whole(name, value)
    position = config.decoder.position
    if position.kind == "learned" and capacity > config.length:
        raise ValueError(f"capacity={capacity} exceeds the model's config.length={config.length} learned positions")
    scaling = position.scaling
    if position.kind == "rotary" and scaling.kind == "dynamic" and capacity > scaling.original_length:
        raise ValueError(
            f"capacity={capacity}: beyond original_length={scaling.original_length} dynamic scaling turns every row by "
            "the longest one, so rows would not be alone: use at most that, or generate one row at a time"
        )


def _admission(
    config: ModelConfig, method: Method, capacity: int, stop: np.ndarray, prefix: bool, request: Request
) -> rows.Admission:
    """A request on its way, its prompt padded to a width that few others differ from; errors as of `generate`."""
    prompt, _ = arguments.prompt(config, [request.prompt], request.length, None, None, None, capacity, prefix)
    if request.stop is not None:
        stop, _ = arguments.stop_and_banned(config.vocab, request.stop, ())
    key = arguments.checked_key(method, request.key)
    usual = jax.random.key(0).dtype
    if key.dtype != usual:  # one array holds those of all rows
        raise ValueError(f"key must be of the implementation that jax.random.key has here, {usual}, not {key.dtype}")
    doublings = ((prompt.tokens.shape[1] - 1) // arguments.PROMPT_MULTIPLE).bit_length()
    tokens = prompts.widen(prompt.tokens, arguments.PROMPT_MULTIPLE << doublings, capacity)
    ends = np.zeros(config.vocab, bool)
    ends[stop] = True
    return rows.Admission(prompt.replace(tokens=tokens), key, ends, np.int32(request.length))
