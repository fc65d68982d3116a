"""What every way of decoding checks: prompts, sources, room in the cache, tokens that stop or are banned."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer.decoding import loop, prompts
from transformer.decoding.methods import Method
from transformer.decoding.prompts import Rows
from transformer.decoding.whole import whole
from transformer.models.config import ModelConfig, Stack

# Lengths are rounded up to these, so that prompts of different lengths share compiled programs.
PROMPT_MULTIPLE = 32
CAPACITY_MULTIPLE = 128


def prompt(
    config: ModelConfig,
    prompt: Rows,
    length: int,
    lengths: Rows | None,
    source: Rows | None,
    source_mask: jax.Array | None,
    capacity: int | None,
    prefix: bool,
) -> tuple[loop.Prompt, int]:
    """What rows begin with, on its way to the device, and the number of cache slots; arguments as in `generate`.

    Raises:
      ValueError: if the model has no decoder, or an argument does not fit the model or the others.
    """
    if config.decoder is None:
        raise ValueError("this model has no decoder, so it cannot continue text: use a config with decoder=Stack(...)")
    length = whole("length", length)
    tokens, lengths = prompts.pad("prompt", prompt, config.vocab, lengths)
    slots = _capacity(config, int(lengths.max()), length, capacity)
    source, source_mask = _source(config, len(tokens), source, source_mask)
    tokens = prompts.widen(tokens, PROMPT_MULTIPLE, slots)
    return loop.Prompt(tokens, lengths, source, source_mask, bool(prefix)), slots


def stop_and_banned(
    vocab: int, stop: int | Sequence[int], banned: int | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that end a row and tokens that are never chosen, each `[N]` int32.

    Raises:
      ValueError: if they are not tokens of the vocabulary, or none is left to choose.
    """
    stop, banned = _tokens("stop", vocab, stop), _tokens("banned", vocab, banned)
    if len(np.unique(banned)) == vocab:
        raise ValueError(f"banned holds all {vocab} tokens of the vocabulary: leave one to choose")
    return stop, banned


def padding(token: int) -> np.int32:
    """What fills rows after their stop token: any int32, in the vocabulary or not; else raises ValueError."""
    if isinstance(token, bool) or not isinstance(token, numbers.Integral) or not -(2**31) <= token < 2**31:
        raise ValueError(f"pad={token!r} must be a whole number of 32 bits, such as a token's id or -1")
    return np.int32(token)


def checked_key(method: Method, key: jax.Array | None) -> jax.Array:
    """The key that a method draws with; raises ValueError if it needs one and has none, or it is no typed key."""
    if key is None and method.random:
        raise ValueError(f"{method} draws at random: give it key=jax.random.key(seed), or use Greedy()")
    key = jax.random.key(0) if key is None else key
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"key must be one typed key, such as jax.random.key(0), not {type(key).__name__}")
    return key


def real(number: float) -> bool:
    """Whether it is a finite number."""
    return isinstance(number, numbers.Real) and not isinstance(number, bool) and math.isfinite(number)


def choice(vocab: int, method: Method, key, stop, pad: int, banned, penalty: float) -> loop.Choice:
    """What decides a row's next token besides its logits and the method; arguments as in `generate`.

    Raises:
      ValueError: if the method needs a key, or an argument is out of range.
    """
    key = checked_key(method, key)
    limits = np.finfo(np.float32)
    if not (real(penalty) and float(limits.tiny) <= penalty <= float(limits.max)):
        raise ValueError(f"repetition_penalty={penalty!r}: it must be positive and finite; 1 changes nothing")
    stop, banned = stop_and_banned(vocab, stop, banned)
    return loop.Choice(key, stop, padding(pad), banned, None if penalty == 1 else np.float32(penalty))


def _positions(config: ModelConfig, stack: Stack) -> int | None:
    """The number of positions that a stack can tell apart; None without a limit."""
    return config.length if stack.position.kind == "learned" else None


def _capacity(config: ModelConfig, longest: int, length: int, capacity: int | None) -> int:
    needed, most = longest + length - 1, _positions(config, config.decoder)  # the last token is never read
    if most is not None and needed > most:
        room = f"length={max(most - longest + 1, 0)}" if longest <= most else f"a prompt of at most {most} tokens"
        raise ValueError(
            f"length={length} after a prompt of {longest} needs {needed} positions, but the model has learned "
            f"config.length={most}: use {room} or less"
        )
    if capacity is None:
        return prompts.round_up(needed, CAPACITY_MULTIPLE, most)
    capacity = whole("capacity", capacity)
    if capacity < needed:
        raise ValueError(
            f"capacity={capacity} is too small for a prompt of {longest} and length={length}: use {needed}"
        )
    if most is not None and capacity > most:
        raise ValueError(f"capacity={capacity} exceeds the model's config.length={most} learned positions")
    return capacity


def _tokens(name: str, vocab: int, tokens: int | Sequence[int]) -> np.ndarray:
    """One token or several as `[N]` int32; `name` is what errors call them."""
    out = np.atleast_1d(np.asarray(tokens))
    if out.ndim > 1 or (out.size and not np.issubdtype(out.dtype, np.integer)):
        raise ValueError(f"{name}={tokens!r} must be a token's id or several, integers; leave it out for none")
    wrong = out[(out < 0) | (out >= vocab)]
    if wrong.size:
        raise ValueError(f"{name} holds {wrong[0]}, outside the model's vocabulary of {vocab}")
    return out.astype(np.int32)


def _source(config: ModelConfig, batch: int, source, source_mask) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The source padded to a shared length, and a mask that says so."""
    if (source is None) != (config.encoder is None):
        fix = "pass source=[B, S] ids" if source is None else "the model has no encoder, pass the prompt alone"
        raise ValueError(f"source is for models with an encoder: {fix}")
    if source is None:
        if source_mask is not None:
            raise ValueError("source_mask was given without a source")
        return None, None
    tokens, lengths = prompts.pad("source", source, config.vocab)
    if len(tokens) != batch:
        raise ValueError(f"source has {len(tokens)} rows and prompt {batch}: give one prompt row for each source row")
    most = _positions(config, config.encoder)
    if most is not None and tokens.shape[1] > most:
        raise ValueError(
            f"source has length {tokens.shape[1]}, but the model has config.length={most} learned positions"
        )
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    if source_mask is not None:
        source_mask = np.asarray(source_mask, bool)
        if source_mask.shape != tokens.shape:
            raise ValueError(f"source_mask has shape {source_mask.shape}, but source {tokens.shape}")
        real &= source_mask
    return prompts.widen(tokens, PROMPT_MULTIPLE, most), prompts.widen(real, PROMPT_MULTIPLE, most)
