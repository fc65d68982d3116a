"""A trained model from a working directory, and what it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.experiment import Experiment
from transformer import decoding, models, text, training


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a checkpoint promises: the model, its parameters and the tokenizer they were trained with."""

    experiment: Experiment
    model: models.Transformer
    params: dict
    tokenizer: text.Tokenizer
    step: int


def load(workdir: str | Path, step: int | str = "latest") -> Trained:
    """The model of a working directory, at a step, or its `latest` or `best` one.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    workdir = Path(workdir)
    restored = training.load_params(workdir, step)
    experiment = Experiment.build(restored.recipe["config"])
    tokenizer = text.load(workdir / "data")
    if tokenizer.fingerprint != restored.recipe["data"]["tokenizer"]:
        raise ValueError(f"{workdir / 'data'} holds another tokenizer than the checkpoint was trained with")
    params = jax.tree.map(jnp.asarray, restored.state)
    return Trained(experiment, models.Transformer(experiment.model), params, tokenizer, restored.step)


def required(workdir: flags.FlagHolder) -> Path:
    """The value of a `--workdir` flag that must be given."""
    if not workdir.value:
        raise ValueError("--workdir is missing: name the run to use, such as --workdir=runs/stdlib")
    return Path(workdir.value)


def step(name: str) -> int | str:
    """What a `--step` flag names: `latest`, `best`, or a number."""
    if name not in ("latest", "best") and not name.isdecimal():
        raise ValueError(f"--step={name} is not a checkpoint: give latest, best or a number")
    return int(name) if name.isdecimal() else name


def check_prompts(prompts: tuple[str, ...], tokenizer: text.Tokenizer) -> None:
    """Raises ValueError, before anything is trained, if the tokenizer cannot spell what `report` would continue."""
    for prompt in prompts:
        _opened(tokenizer, prompt)


def prompt_ids(trained: Trained, prompt: str, length: int) -> list[int]:
    """The prompt's ids behind the end token, as documents begin; its end, if a learned table leaves no room for all."""
    ids = _opened(trained.tokenizer, prompt)
    config = trained.experiment.model
    room = config.length - length + 1 if config.decoder.position.kind == "learned" else len(ids)
    if room < 1:
        raise ValueError(f"length={length} leaves no room for a prompt: the model has {config.length} positions")
    return ids[-room:]


def write(
    trained: Trained, prompt: str, length: int, method: decoding.Method, key: jax.Array, penalty: float = 1.0
) -> Iterator[str]:
    """The continuation of a prompt, piece by piece; it ends with the text, or after `length` tokens."""
    stop = () if trained.tokenizer.end is None else trained.tokenizer.end
    ids = prompt_ids(trained, prompt, length)
    blocks = decoding.stream(
        trained.model, trained.params, ids, length=length, method=method, key=key, stop=stop, repetition_penalty=penalty
    )
    decoder = text.StreamDecoder(trained.tokenizer)
    for block in blocks:
        yield decoder.feed(_known(block[0], trained.tokenizer.size))
    yield decoder.flush()


def likeliest(trained: Trained, prompt: str, count: int = 10) -> list[tuple[str, float]]:
    """The `count` likeliest next tokens of a prompt, with their probabilities, by the plain forward pass."""
    ids = jnp.asarray([prompt_ids(trained, prompt, 1)])
    logits = jax.jit(trained.model.apply)({"params": trained.params}, ids)[0, -1]
    probabilities = np.asarray(jax.nn.softmax(logits[: trained.tokenizer.size]))
    best = np.argsort(-probabilities)[:count]
    return [(trained.tokenizer.decode([token], keep_end=True), float(probabilities[token])) for token in best]


def report(trained: Trained, prompts: tuple[str, ...], console: Console, length: int = 80) -> None:
    """Continue each prompt, and list the likeliest next tokens of the last one."""
    config = trained.experiment.model
    if config.decoder.position.kind == "learned":
        length = min(length, config.length // 2)
    for index, prompt in enumerate(prompts):
        key = jax.random.fold_in(jax.random.key(trained.experiment.seed), index)
        written = "".join(write(trained, prompt, length, decoding.TopP(0.9, temperature=0.8), key))
        console.print(f"\n{index + 1}. {prompt}", style="bold", end="")
        console.print(written)
    if prompts:
        console.print(next_tokens(prompts[-1], likeliest(trained, prompts[-1])))


def next_tokens(prompt: str, rows: list[tuple[str, float]]) -> Table:
    """Tokens and their probabilities as a table."""
    title = Text(f"likeliest next tokens after {prompt!r}")  # not markup: text may hold [brackets]
    table = Table("token", "probability", title=title, title_justify="left")
    for token, probability in rows:
        table.add_row(Text(repr(token)), f"{probability:.4f}")
    return table


def console() -> Console:
    """A console that prints text as it is."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def _opened(tokenizer: text.Tokenizer, prompt: str) -> list[int]:
    ids = ([] if tokenizer.end is None else [tokenizer.end]) + tokenizer.encode(prompt).tolist()
    if not ids:
        raise ValueError("prompt is empty, and the tokenizer has no token that begins a text: give some text")
    return ids


def _known(ids: np.ndarray, size: int) -> np.ndarray:
    """Ids that the tokenizer can spell: a vocabulary may be wider than its tokenizer."""
    return ids[ids < size]
