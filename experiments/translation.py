"""Sequence to sequence with a trained model: beam search over many sources, and how good what it writes is."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments import scores
from experiments.loading import Trained
from transformer import data, decoding
from transformer.decoding import beam
from transformer.training import parallel

MULTIPLE = 32  # of shapes, so that few programs are compiled
# An output has at most so many tokens more than its source, as in Vaswani et al. 2017, section 6.1; but here the length
# of the source is first rounded up to `MULTIPLE`.
LONGER = 50
TASK = "task:"
EXACT = ("bytes", "characters", "bpe")  # tokenizers that give back every text as it was


@dataclasses.dataclass(frozen=True)
class Search:
    """How outputs are found; see `decoding.beam_search`."""

    beams: int = 4
    length_penalty: float = 0.6
    coverage: float = 0.0
    ratio: float | None = None
    count: int = 1
    batch_size: int = 64  # sources at a time

    def check(self) -> None:
        """Raises ValueError if more hypotheses are wanted than a search has."""
        if self.count > self.beams:
            raise ValueError(f"--count={self.count} exceeds --beams={self.beams}: raise the latter")


class Output(NamedTuple):
    """A hypothesis. `score` is what the search ranks by, `nats` its negative log-probability."""

    text: str
    score: float
    nats: float


def define_flags(beams: int) -> dict[str, flags.FlagHolder]:
    """The flags that make up a `Search`."""
    return {
        "beams": flags.DEFINE_integer(
            "beams", beams, "Hypotheses kept for each source; 1 is greedy.", lower_bound=1, upper_bound=1000
        ),
        "length_penalty": flags.DEFINE_float("length_penalty", 0.6, "Higher favours longer outputs.", lower_bound=0),
        "coverage": flags.DEFINE_float("coverage", 0.0, "What unattended source tokens cost.", lower_bound=0),
        "ratio": flags.DEFINE_float("ratio", None, "The most output tokens for each source token."),
    }


def check(trained: Trained, search: Search) -> None:
    """Raises ValueError if the model is no encoder with a decoder, the target's first token is not known, or the model
    cannot be searched like this."""
    config = trained.model.config
    if config.encoder is None or config.decoder is None:
        raise ValueError(f"{trained.origin} is no encoder with a decoder, so it has no source to read")
    if trained.start is None:
        raise ValueError(f"{trained.origin} names no decoder_start_token_id, so no target can begin: name one")
    beam.check(config, LONGER, search.beams, search.count, search.length_penalty, search.coverage, search.ratio)


def translate(trained: Trained, sources: Sequence[Sequence[int]], search: Search) -> list[list[Output]]:
    """The best outputs for each source, in the order of the sources.

    Sources whose lengths round up to the same multiple of `MULTIPLE` are searched together, and an output may be
    `LONGER` than that multiple, so that what a source gets does not depend on the others.

    Args:
      sources: ids with their end, as `Trained.ids` gives them.

    Raises:
      ValueError: as `check`; or if the model's numbers are not finite.
    """
    check(trained, search)
    outputs: list[list[Output]] = [[] for _ in sources]
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    for longest, members in itertools.groupby(order, lambda index: _rounded(len(sources[index]))):
        alike = list(members)
        rows = min(search.batch_size, len(alike))
        for first in range(0, len(alike), rows):
            chosen = alike[first : first + rows]
            found = _batch(trained, [sources[index] for index in chosen], rows, longest, search)
            for index, row in zip(chosen, found, strict=True):
                outputs[index] = row
    return outputs


def _rounded(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def _batch(
    trained: Trained, sources: list[Sequence[int]], rows: int, longest: int, search: Search
) -> list[list[Output]]:
    """The best outputs for each source, searched in so many rows, so that all sources alike share a program."""
    config = trained.model.config
    length, slots = longest + LONGER, _rounded(longest + LONGER)
    if config.decoder.position.kind == "learned":
        length, slots = min(length, config.length), min(slots, config.length)
    found = decoding.beam_search(
        trained.model, trained.params, [[trained.start]] * rows, source=sources + sources[-1:] * (rows - len(sources)),
        length=length, capacity=slots, beams=search.beams, length_penalty=search.length_penalty,
        coverage=search.coverage, ratio=search.ratio, count=search.count, stop=trained.stop, banned=trained.banned,
    )  # fmt: skip
    found = [array[: len(sources)] for array in parallel.fetch(found)]
    if not np.isfinite(found[-1][:, 0]).all():  # every source has an output of some score, unless it is no number
        raise ValueError(
            f"{trained.origin} gives scores that are not finite: choose parameters that work, or another --dtype"
        )
    return [
        [
            Output(trained.spell(ids[:count]), float(value), float(-nat))
            for ids, count, nat, value in zip(*row, strict=True)
            if np.isfinite(value)
        ]
        for row in zip(*found, strict=True)
    ]


def held_out(trained: Trained, corpus: data.Bitext) -> tuple[list[list[int]], list[str]]:
    """The sources of a run's validation pairs, as ids, and their targets, as text."""
    pairs, tokenizer = corpus.validation, trained.tokenizer
    sources = [[*pairs.source[index].tolist(), tokenizer.end] for index in range(len(pairs))]
    return sources, [tokenizer.decode(pairs.target[index]) for index in range(len(pairs))]


def reservations(trained: Trained, corpus: data.Bitext) -> str:
    """What sets the references of `held_out` apart from those that the pairs came with; empty if nothing does."""
    counts, said = corpus.counts["validation"], []
    if counts["cut"]:
        said.append(f"{counts['cut']:,} are cut")
    if counts["left_out"]:
        said.append(f"{counts['left_out']:,} more are left out")
    if trained.tokenizer.kind not in EXACT:
        said.append("all are as the tokenizer spells them")
    return f"of the references {', '.join(said)}: --pairs measures on whole ones" if said else ""


def sources_of(trained: Trained, named: Iterable[tuple[str, str]], truncate: bool = False) -> list[list[int]]:
    """The ids of texts that the encoder reads; each comes with what to call it in errors.

    Raises:
      ValueError: if a text is empty, cannot be spelt, or is longer than what the model was trained on and `truncate`
        is not set.
    """
    most = longest(trained)
    out = []
    for name, content in named:
        if not content.strip():
            raise ValueError(f"{name} is empty: take it out, or give it some text")
        try:
            ids = trained.ids(content)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if len(ids) > most and not truncate:
            raise ValueError(
                f"{name} has {len(ids)} tokens with its end, and {trained.origin} reads at most {most}: shorten it, or "
                "give --truncate"
            )
        out.append(ids if len(ids) <= most else [*ids[: most - 1], ids[-1]])
    return out


def longest(trained: Trained) -> int:
    """The most tokens of a source, its end included: a run's `data.length`, or the model's longest sequence."""
    return trained.model.config.length if trained.experiment is None else trained.experiment.data.length


def is_task(path: str) -> bool:
    """Whether pairs are of a task whose outputs are right or wrong."""
    return path.startswith(TASK)


def measure(outputs: Sequence[list[Output]], references: Sequence[str], path: str, tokenize: str) -> dict:
    """Of a task, the share of outputs that are right; else BLEU and chrF, each with its signature."""
    best = [row[0].text if row else "" for row in outputs]
    if is_task(path):
        return {"exact": scores.exact(best, references), "sequences": len(references)}
    bleu, chrf = scores.bleu(best, references, tokenize), scores.chrf(best, references)
    return {"bleu": bleu.value, "bleu_signature": bleu.signature, "chrf": chrf.value, "chrf_signature": chrf.signature}


def spoken(measured: dict) -> str:
    """The measures in a line or two, and a line for what is to be known about them."""
    if "exact" in measured:
        lines = [f"{measured['exact']:.2%} of {measured['sequences']:,} sequences right"]
    else:
        names = [("BLEU", "bleu"), ("chrF2", "chrf")]
        lines = [f"{name} {measured[key]:.2f} ({measured[f'{key}_signature']})" for name, key in names]
    return "\n".join([*lines, *([f"note: {measured['note']}"] if "note" in measured else [])])
