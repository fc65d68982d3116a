"""Continue prompts: all at once with `generate`, block by block with `stream`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from transformer.decoding import arguments, loop
from transformer.decoding.methods import Greedy, Method
from transformer.decoding.prompts import Rows
from transformer.decoding.whole import whole
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer


def generate(
    model: Transformer,
    params: dict,
    prompt: Rows,
    *,
    length: int = 64,
    method: Method = Greedy(),  # noqa: B008
    key: jax.Array | None = None,
    lengths: Rows | None = None,
    stop: int | Sequence[int] = (),
    pad: int = 0,
    banned: int | Sequence[int] = (),
    repetition_penalty: float = 1.0,
    source: Rows | None = None,
    source_mask: jax.Array | None = None,
    capacity: int | None = None,
    prefix: bool = False,
) -> jax.Array:
    """Continue each row of a prompt by `length` tokens.

    The prompts are read in one pass that fills a key/value cache; then one compiled loop chooses token after token on
    the device and ends early when every row has stopped. Rows do not influence each other.

        tokens = generate(model, params, [[5, 7, 9], [3]], length=20, method=TopP(0.9), key=jax.random.key(0))

    Args:
      prompt: ids `[B, T]`, a sequence of rows of any lengths, or one row. For an encoder-decoder, what the decoder's
        output begins with, such as its start token.
      length: how many tokens to add.
      method: how a token is chosen.
      key: a typed key, needed unless the method is `Greedy`. Row b depends on the key and on b, not on other rows.
      lengths: `[B]` integers, how many of each row's ids to use, for rows that are padded on the right; None: all.
      stop: a token, or several, that end a row; the one chosen is part of the result.
      pad: what follows a stop token; it need not be in the vocabulary.
      banned: a token, or several, that are never chosen.
      repetition_penalty: above 1 makes tokens that a row already holds, its prompt included, less likely
        (`ops.sampling.repetition_penalty`).
      source: what the encoder of an encoder-decoder reads; like `prompt`.
      source_mask: `[B, S]` booleans, True = a real source token; None: all that are given.
      capacity: slots of the key/value cache in each row, at least the longest prompt + `length` - 1. None: enough,
        rounded up. A fixed value lets calls of different lengths share one program.
      prefix: whether the tokens of a prompt all see each other, as a prefix language model was trained; what is added
        sees what came before it.

    Returns:
      The new tokens, `[B, length]` int32; after its stop token a row holds `pad`.

    Raises:
      ValueError: if the model has no decoder, or an argument does not fit the model or the others.
    """
    prepared, choice, slots = _prepare(
        model.config, prompt, length, method, key, lengths, stop, pad, banned, repetition_penalty, source, source_mask,
        capacity, prefix,
    )  # fmt: skip
    state = loop.begin(model, method, params, prepared, choice, capacity=slots)
    if length > 1:  # the first token needs no second copy of the blocks
        state = loop.advance(model, method, loop.prepare(model, params), choice, state, length)
    return state.tokens[:, :length]


def stream(
    model: Transformer,
    params: dict,
    prompt: Rows,
    *,
    length: int = 64,
    block: int = 8,
    method: Method = Greedy(),  # noqa: B008
    key: jax.Array | None = None,
    lengths: Rows | None = None,
    stop: int | Sequence[int] = (),
    pad: int = 0,
    banned: int | Sequence[int] = (),
    repetition_penalty: float = 1.0,
    source: Rows | None = None,
    source_mask: jax.Array | None = None,
    capacity: int | None = None,
    prefix: bool = False,
) -> Iterator[np.ndarray]:
    """The tokens of `generate` with the same arguments, as they come.

    Args:
      block: tokens between two returns from the device, which each cost a little time.

    Returns:
      An iterator over int32 arrays `[B, n]`: the first token, then `block` at a time. It ends when every row has
      stopped, without the columns of padding that `generate` would add.

    Raises:
      ValueError: as `generate`, at once rather than at the first token.
    """
    block = whole("block", block)
    prepared, choice, slots = _prepare(
        model.config, prompt, length, method, key, lengths, stop, pad, banned, repetition_penalty, source, source_mask,
        capacity, prefix,
    )  # fmt: skip
    return _blocks(model, method, params, prepared, choice, slots, length, block)


def _blocks(model, method, params, prepared, choice, slots: int, length: int, block: int) -> Iterator[np.ndarray]:
    state, shown = loop.begin(model, method, params, prepared, choice, capacity=slots), 0
    if length > 1:
        params = loop.prepare(model, params)
    while True:
        # One transfer, and before the next call, which takes the state's buffers.
        tokens, count, done = jax.device_get((state.tokens, state.count, state.done))
        yield tokens[:, shown:count]
        shown = int(count)
        if shown >= length or done.all():
            return
        state = loop.advance(model, method, params, choice, state, min(shown + block, length))


def _prepare(
    config: ModelConfig, prompt, length, method, key, lengths, stop, pad, banned, penalty, source, source_mask,
    capacity, prefix,
) -> tuple[loop.Prompt, loop.Choice, int]:  # fmt: skip
    """Everything checked and on its way to the device, and the number of cache slots."""
    prepared, slots = arguments.prompt(config, prompt, length, lengths, source, source_mask, capacity, prefix)
    return prepared, arguments.choice(config.vocab, method, key, stop, pad, banned, penalty), slots
