"""Decoding with a draft: a small model proposes tokens, and the large one judges several in one pass.

A pass of a large model costs about the same for one token as for a few, since its parameters must be read either way.
Accepting or replacing proposals by the right rule leaves the tokens the distribution that the large model alone has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax

from transformer.decoding import arguments, loop, rounds
from transformer.decoding.methods import Greedy, Method
from transformer.decoding.prompts import Rows
from transformer.decoding.whole import whole
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer


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
      draft: a cheaper model with the same tokenizer, that agrees with the model as often as may be. Its logits may be
        more or fewer, as where one of the two vocabularies is padded.
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
      ValueError: if either is not a decoder alone, or an argument does not fit them or the others.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), algorithm 1; Chen et al. 2023 (arXiv:2302.01318), algorithm 2.
    """
    _check(model.config, draft.config, proposals)
    vocab = model.config.vocab
    prepared, slots = arguments.prompt(model.config, prompt, length, lengths, None, None, capacity, False)
    choice = arguments.choice(vocab, method, key, stop, pad, banned, penalty=1.0)
    try:
        wide = dataclasses.replace(draft.config, vocab=vocab)
        draft_slots = arguments.prompt(wide, prompt, length, lengths, None, None, capacity, False)[1]
        arguments.stop_and_banned(draft.config.vocab, (), choice.banned[choice.banned < draft.config.vocab])
    except ValueError as error:
        raise ValueError(f"draft: {error}") from None
    proposals = min(proposals, length - 1)  # the first token is chosen from the prompt alone
    _check_scaling(model.config, int(prepared.lengths.max()) + length + proposals)
    models, both = (model, draft), (params, draft_params)
    state = rounds.begin(models, method, both, prepared, choice, slots=(slots, draft_slots))
    if proposals:
        both = tuple(map(loop.prepare, models, both))
        state = rounds.advance(models, method, both, choice, state, length, proposals=proposals)
    return Speculated(state.tokens[:, 1 : length + 1], state.rounds, state.proposed, state.accepted)


def _check(config: ModelConfig, draft: ModelConfig, proposals: int) -> None:
    for name, one in (("model", config), ("draft", draft)):
        if one.decoder is None or one.encoder is not None:
            raise ValueError(f"{name} has an encoder: speculate takes models that are a decoder alone; use generate")
    whole("proposals", proposals)


def _check_scaling(config: ModelConfig, longest: int) -> None:
    """Refuse positions whose meaning changes with how many are read in one pass."""
    scaling = config.decoder.position.scaling
    if scaling.kind == "dynamic" and longest > scaling.original_length:
        raise ValueError(
            f"model turns positions by scaling.kind='dynamic', which beyond {scaling.original_length} of them depends "
            f"on how many are read at once, and this may read {longest}: ask for a smaller length, or use generate"
        )
