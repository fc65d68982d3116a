"""What a trained model writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.loading import Trained, opened
from transformer import decoding, text


def check_prompts(prompts: tuple[str, ...], tokenizer: text.Tokenizer, kind: str) -> None:
    """Raises ValueError, before anything is trained, if `report` could not show them after training.

    The tokenizer may be unable to spell one, or one have no mask where the objective, of this kind, fills those in.
    """
    for prompt in prompts:
        opened(tokenizer, prompt)
        if kind == "masked":
            _check_mask(tokenizer, prompt, tokenizer.encode(prompt, special=True))


def _check_mask(tokenizer: text.Tokenizer, prompt: str, ids: Sequence[int]) -> None:
    if tokenizer.mask not in ids:
        name = tokenizer.decode([tokenizer.mask], keep_end=True)
        raise ValueError(f"prompt {prompt!r} has no {name}: an encoder alone fills those in, and writes nothing else")


def prompt_ids(trained: Trained, prompt: str, length: int) -> list[int]:
    """The prompt's ids as the model has seen texts begin.

    If a learned table leaves no room for all, the opening token, where they begin with it, and their end.

    Raises:
      ValueError: if there is no room for a token of the text, or the tokenizer cannot spell it.
    """
    ids, config = trained.ids(prompt), trained.model.config
    reader = config.encoder or config.decoder
    if reader.position.kind != "learned":
        return ids
    room = config.length - (length - 1 if config.encoder is None else 0)
    if len(ids) <= room:
        return ids
    first = ids[:1] if ids[0] == trained.tokenizer.opening else []
    kept = room - len(first)
    if kept < 1:
        raise ValueError(f"length={length} leaves no room for a prompt: the model has {config.length} positions")
    return first + ids[-kept:]


def cut(trained: Trained, prompt: str, length: int) -> int:
    """How many tokens of a prompt `prompt_ids` leaves out, from the first of its text on."""
    return len(trained.ids(prompt)) - len(prompt_ids(trained, prompt, length))


def write(
    trained: Trained, prompt: str, length: int, method: decoding.Method, key: jax.Array, penalty: float = 1.0
) -> Iterator[str]:
    """What follows a prompt, piece by piece; it ends with the text, or after `length` tokens.

    A decoder continues the prompt. An encoder-decoder reads it as its source and writes the target.

    Raises:
      ValueError: if the prompt has no room, or a parameter is not finite.
    """
    check_finite(trained)
    blocks = decoding.stream(
        trained.model,
        trained.params,
        length=length,
        method=method,
        key=key,
        stop=trained.stop,
        banned=trained.banned,
        repetition_penalty=penalty,
        prefix=trained.prefix,
        **_read(trained, prompt, length),
    )
    continues = trained.model.config.encoder is None
    return _spelt(blocks, trained.tokenizer, prompt_ids(trained, prompt, length) if continues else [])


def check_finite(trained: Trained) -> None:
    """Raises ValueError if a parameter is not finite."""
    if not _finite(trained.params):
        raise ValueError(f"{trained.origin} has parameters that are not finite: choose some that work")


@jax.jit
def _finite(params: dict) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def speculate(
    trained: Trained, draft: Trained, prompt: str, length: int, proposals: int, method: decoding.Method, key: jax.Array
) -> tuple[str, float]:
    """What follows a prompt, found with the help of a smaller model, and the share of its proposals that were kept.

    Raises:
      ValueError: if the two models do not spell alike, or one cannot do it or has a parameter that is not finite.
    """
    for name, one in (("the model", trained), ("the draft", draft)):
        if one.prefix or one.model.config.encoder is not None:
            raise ValueError(f"{name}, {one.origin}, is no causal decoder alone, which --draft needs: leave it out")
        check_finite(one)
    vocabularies = [[one.tokenizer.decode([token]) for token in range(one.tokenizer.size)] for one in (trained, draft)]
    if vocabularies[0] != vocabularies[1]:
        raise ValueError(
            f"{trained.origin} and {draft.origin} have different tokenizers: a draft must share the model's"
        )
    ids = prompt_ids(trained, prompt, length)
    out = decoding.speculate(
        trained.model, trained.params, draft.model, draft.params, ids,
        length=length, proposals=proposals, method=method, key=key, stop=trained.stop, banned=trained.banned, pad=-1,
    )  # fmt: skip
    tokens = np.asarray(out.tokens)
    share = float(out.accepted.sum()) / max(1, int(out.proposed.sum()))
    return "".join(_spelt(iter([tokens[:, tokens[0] >= 0]]), trained.tokenizer, ids)), share


def _spelt(blocks: Iterator[np.ndarray], tokenizer: text.Tokenizer, before: list[int]) -> Iterator[str]:
    """The text of blocks of ids that follow others, whose end decides whether a space comes first."""
    decoder = text.StreamDecoder(tokenizer, after=before)
    for block in blocks:
        yield decoder.feed(_known(block[0], tokenizer.size))
    yield decoder.flush()


def _read(trained: Trained, prompt: str, length: int) -> dict[str, list[int]]:
    """What the model reads before it writes: `prompt`, and `source` where it has an encoder."""
    ids, config = prompt_ids(trained, prompt, length), trained.model.config
    if config.encoder is None or config.decoder is None:
        return {"prompt": ids}
    if trained.start is None:
        raise ValueError(f"{trained.origin} names no decoder_start_token_id, so no target can begin: name one")
    return {"prompt": [trained.start], "source": ids}


def likeliest(trained: Trained, prompt: str, count: int = 10) -> list[tuple[str, float]]:
    """The `count` likeliest next tokens of a prompt, with their probabilities, by the plain forward pass."""
    read = {name: jnp.asarray([ids]) for name, ids in _read(trained, prompt, 1).items()}
    tokens = read.pop("prompt")
    if trained.prefix:
        read["prefix"] = jnp.ones(tokens.shape, bool)
    logits = jax.jit(trained.model.apply)({"params": trained.params}, tokens, **read)[0, -1]
    return _best(trained.tokenizer, logits, count)


def fillers(trained: Trained, prompt: str, count: int = 5) -> list[list[tuple[str, float]]]:
    """For each mask in a text, the `count` likeliest tokens in its place, with their probabilities.

    Raises:
      ValueError: if the tokenizer has no mask, or the text has none.
    """
    mask, ids = trained.tokenizer.mask, trained.ids(prompt)
    if mask is None:
        raise ValueError(f"{trained.origin} has an encoder alone and a tokenizer without a mask, so it writes nothing")
    _check_mask(trained.tokenizer, prompt, ids)
    logits = jax.jit(trained.model.apply)({"params": trained.params}, jnp.asarray([ids]))[0]
    return [_best(trained.tokenizer, logits[place], count) for place in np.flatnonzero(np.equal(ids, mask))]


def _best(tokenizer: text.Tokenizer, logits: jax.Array, count: int) -> list[tuple[str, float]]:
    """The likeliest tokens of one position's logits `[V]`; raises ValueError if these are not finite."""
    probabilities = np.asarray(jax.nn.softmax(logits[: tokenizer.size]))
    if not np.isfinite(probabilities).all():
        raise ValueError("the model gives logits that are not finite: choose parameters that work, or another --dtype")
    best = np.argsort(-probabilities)[:count]
    return [(_token(tokenizer, int(token)), float(probabilities[token])) for token in best]


def _token(tokenizer: text.Tokenizer, token: int) -> str:
    """How a token reads within a text: alone, some tokenizers would leave out the space before it."""
    return tokenizer.decode([token, token], keep_end=True).removeprefix(tokenizer.decode([token], keep_end=True))


def report(trained: Trained, prompts: tuple[str, ...], console: Console, length: int = 80) -> None:
    """Continue each prompt, and list the likeliest next tokens of the last one; or fill in the masks of each."""
    config = trained.model.config
    if config.decoder is None:
        for prompt in prompts:
            for place, rows in enumerate(fillers(trained, prompt), start=1):
                console.print(filled(prompt, place, rows))
        return
    if config.decoder.position.kind == "learned":
        length = min(length, config.length // 2)
    writes = config.encoder is not None  # another text than what goes on from the prompt
    for index, prompt in enumerate(prompts):
        key = jax.random.fold_in(jax.random.key(trained.experiment.seed), index)
        method = decoding.Greedy() if writes else decoding.TopP(0.9, temperature=0.8)
        written = "".join(write(trained, prompt, length, method, key))
        console.print(f"\n{index + 1}. {prompt}", style="bold", end="\n   " if writes else "")
        console.print(written)
    if prompts and not writes:
        console.print(next_tokens(prompts[-1], likeliest(trained, prompts[-1])))


def next_tokens(prompt: str, rows: list[tuple[str, float]]) -> Table:
    """Tokens and their probabilities as a table."""
    return _table(f"likeliest next tokens after {prompt!r}", rows)


def filled(prompt: str, place: int, rows: list[tuple[str, float]]) -> Table:
    """What may stand in the place of a mask, the first one of a text being 1."""
    return _table(f"likeliest in mask {place} of {prompt!r}", rows)


def _table(title: str, rows: list[tuple[str, float]]) -> Table:
    title = Text(title)  # not markup: text may hold [brackets]
    table = Table("token", "probability", title=title, title_justify="left")
    for token, probability in rows:
        table.add_row(Text(repr(token)), f"{probability:.4f}")
    return table


def console() -> Console:
    """A console that prints text as it is."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def _known(ids: np.ndarray, size: int) -> np.ndarray:
    """Ids that the tokenizer can spell: a vocabulary may be wider than its tokenizer."""
    return ids[ids < size]
