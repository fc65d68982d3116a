"""The likeliest continuations of prompts rather than the likeliest next tokens: beam search."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from transformer.decoding import arguments, hypotheses, loop
from transformer.decoding.hypotheses import Hypotheses, Search
from transformer.decoding.prompts import Rows
from transformer.decoding.whole import whole
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer

# Far above what anyone uses; float32 still tells scores of outputs of ten thousand tokens apart.
MOST = {"length_penalty": 10, "coverage": 1000}


def beam_search(
    model: Transformer,
    params: dict,
    prompt: Rows,
    *,
    length: int = 64,
    beams: int = 4,
    length_penalty: float = 0.6,
    coverage: float = 0.0,
    count: int = 1,
    ratio: float | None = None,
    lengths: Rows | None = None,
    stop: int | Sequence[int] = (),
    pad: int = 0,
    banned: int | Sequence[int] = (),
    source: Rows | None = None,
    source_mask: jax.Array | None = None,
    capacity: int | None = None,
    prefix: bool = False,
) -> Hypotheses:
    """The `count` best continuations Y of each row of a prompt that a beam search finds, by

        score(Y) = log P(Y|X) / ((5 + |Y|) / 6)^length_penalty + coverage * sum_i log min(sum_j p_ij, 1)

    where |Y| counts the stop token, p_ij is the weight that the decoder's last layer, averaged over its heads, gives
    source token i as it chooses output token j, and i runs over the real source tokens.

    At each step the extensions of a row's `beams` hypotheses by one token are ranked by log-probability. Those among
    the first `beams` that end with a stop token are finished, of which the `beams` best by score are kept; the best
    `beams` that do not end go on. A row is done when it has `beams` finished hypotheses, or at its longest length,
    where those still going count as finished too, without a stop token. So one beam is `generate` with `Greedy()`.

        best = beam_search(model, params, [[0], [0]], source=[[5, 7, 9, 1], [3, 1]], stop=1)
        best.tokens[:, 0]  # [B, length]

    Args:
      length: the most tokens to add.
      beams: hypotheses of each row that go on from step to step. Each has its own rows of the key/value cache.
      length_penalty: 0 compares log-probabilities, which favours short outputs; higher favours longer ones; at most 10.
      coverage: how much it costs to leave source tokens unattended, at most 1000; needs an encoder. The search computes
        the attention patterns only if it is not 0.
      count: how many hypotheses of each row to return, at most `beams`.
      ratio: a row's output has at most `max(1, floor(ratio * its real source tokens))` tokens, and `length`; None: only
        `length` counts.
      banned: a token, or several, that are never chosen; the others are no likelier for it.
      prompt, lengths, stop, pad, source, source_mask, capacity, prefix: as in `generate`.

    Returns:
      `Hypotheses` of `count` hypotheses for each row, the best first. Rows do not influence each other. Where a row has
      fewer hypotheses of probability above zero, the others have length 0 and score -inf.

    Raises:
      ValueError: if the model has no decoder, or an argument does not fit the model or the others.

    Source: Wu et al. 2016 (arXiv:1609.08144), section 7, equation 14.
    """
    check(model.config, length, beams, count, length_penalty, coverage, ratio)
    stop, banned = arguments.stop_and_banned(model.config.vocab, stop, banned)
    prepared, slots = arguments.prompt(model.config, prompt, length, lengths, source, source_mask, capacity, prefix)
    search = Search(
        stop=np.unique(stop),
        pad=arguments.padding(pad),
        banned=banned,
        limits=_limits(prepared, length, ratio),
        length_penalty=np.float32(length_penalty),
        coverage=np.float32(coverage) if coverage else None,
    )
    state = hypotheses.begin(model, params, prepared, search, beams=beams, capacity=slots)
    state = hypotheses.advance(model, loop.prepare(model, params), search, state)
    tokens, *others = (array[:, :count] for array in state.finished)
    return Hypotheses(tokens[..., :length], *others)


def check(
    config: ModelConfig,
    length: int,
    beams: int,
    count: int,
    length_penalty: float,
    coverage: float,
    ratio: float | None,
) -> None:
    """Raises ValueError unless these arguments of `beam_search` fit the model and each other."""
    for name, number in (("length", length), ("beams", beams), ("count", count)):
        whole(name, number)
    if count > beams:
        raise ValueError(f"count={count}: a search with beams={beams} finds that many hypotheses, so ask for no more")
    if beams > (most := (2**31 - 1) // config.vocab):
        raise ValueError(f"beams={beams}: at most {most} can be ranked over {config.vocab} tokens")
    for (name, most), weight in zip(MOST.items(), (length_penalty, coverage), strict=True):
        if not (arguments.real(weight) and 0 <= weight <= most):
            raise ValueError(f"{name}={weight!r}: it must be a number from 0 to {most}; 0 changes nothing")
    if coverage and (config.encoder is None or config.decoder is None):
        raise ValueError(f"coverage={coverage}: only a model with an encoder beside its decoder has a source to cover")
    if ratio is None:
        return
    if not (arguments.real(ratio) and ratio > 0):
        raise ValueError(f"ratio={ratio!r}: it must be a positive number of output tokens for each source token")
    if config.encoder is None:
        raise ValueError(f"ratio={ratio}: only a model with an encoder has a source to compare with; use length")


def _limits(prompt: loop.Prompt, length: int, ratio: float | None) -> np.ndarray:
    """`[B]` int32: the most tokens that each row may get."""
    if ratio is None:
        return np.full(len(prompt.tokens), length, np.int32)
    allowed = np.floor(ratio * prompt.source_mask.sum(axis=1))
    return np.clip(allowed, 1, length).astype(np.int32)
