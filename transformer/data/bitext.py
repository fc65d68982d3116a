"""A bitext: pairs of a source and a target, tokenised once into arrays on disk by one tokenizer for both.

The folder holds, for each side of the split and of the pair, all ids one after the other and where each text ends
(`train_source.npy`, `train_source_ends.npy`, ...), beside the tokenizer and the record that every corpus has.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from transformer import text
from transformer.data import preparing
from transformer.data.config import Data, Objective
from transformer.data.pairs import Pair, divide_pairs, pairs
from transformer.data.preparing import Value

SIDES = ("train", "validation")
LANGUAGES = ("source", "target")


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Ids of many texts: text i is `tokens[ends[i - 1] : ends[i]]`, which is `texts[i]`."""

    tokens: np.ndarray  # [tokens] uint16 or uint32, mapped from disk
    ends: np.ndarray  # [N] int64

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]

    @property
    def lengths(self) -> np.ndarray:
        """`[N]` integers."""
        return np.diff(self.ends, prepend=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Both:
    """The two languages of one side of the split; text i of one belongs to text i of the other."""

    source: Texts
    target: Texts

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> np.ndarray:
        """`[N, 2]`: the tokens of each target and of each source with the end that either gets."""
        return np.stack([self.target.lengths, self.source.lengths], axis=1) + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Bitext:
    """Pairs to train on, pairs to validate on, and what they were made from."""

    train: Both
    validation: Both
    tokenizer: text.Tokenizer
    length: int  # the most tokens of a source or a target, the end included
    segments: bool  # several pairs share a row
    objective: Objective
    counts: Mapping[str, Mapping[str, int]]  # by side: pairs, left_out, cut, source_tokens, target_tokens
    recipe: Mapping[str, Value]  # what determines the batches; `fingerprint` is its hash

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of `recipe`."""
        return preparing.fingerprint(self.recipe)


def prepare(config: Data, folder: str | os.PathLike[str], tokenizer: text.Tokenizer | None = None) -> Bitext:
    """Tokenises the pairs of `config` into `folder`, or maps what lies there if it was made from the same.

    One tokenizer is trained on both languages of the training side, so that sources and targets share their embeddings
    (Vaswani et al. 2017, section 5.1). Otherwise as `corpus.prepare`.

    Args:
      config: what to read, and how; its objective is "pairs".
      folder: of the bitext.
      tokenizer: what `config.tokenizer.folder` holds or held; None loads it from there.

    Raises:
      ValueError: as `corpus.prepare`; or if a source or a target is empty or longer than `config.length` with its end,
        and `config.pairs.misfits` does not say what to do with it.
    """
    if config.length < 2:
        raise ValueError(f"data.length={config.length} has room for an end alone: pairs need 2 or more")
    folder = pathlib.Path(folder).expanduser().resolve()
    found = list(pairs(config))
    if not found:
        raise ValueError(f"data.path={config.path!r} holds no pairs: point it to some")
    if config.pairs.validation is None:
        sides = dict(zip(SIDES, divide_pairs(found, config), strict=True))
    else:
        sides = {"train": found, "validation": list(pairs(config, config.pairs.validation))}
        if not sides["validation"]:
            raise ValueError(f"data.pairs.validation={config.pairs.validation!r} holds no pairs: point it to some")
    loaded = tokenizer or preparing.load_tokenizer(config)
    request = _request(config, sides, loaded)
    return preparing.once(folder, request, read, lambda: _build(folder, config, request, sides, loaded))


def read(record: dict, arrays: dict[str, np.ndarray], tokenizer: text.Tokenizer) -> Bitext:
    """A bitext from what lies in its folder, as `preparing.existing` hands it on."""
    recipe = record["recipe"]
    sides = {
        side: Both(*(Texts(arrays[f"{side}_{name}"], arrays[f"{side}_{name}_ends"]) for name in LANGUAGES))
        for side in SIDES
    }
    return Bitext(
        **sides,
        tokenizer=tokenizer,
        length=recipe["length"],
        segments=recipe["segments"],
        objective=Objective(**json.loads(recipe["objective"])),
        counts=record["counts"],
        recipe=recipe,
    )


def _request(config: Data, sides: Mapping[str, Sequence[Pair]], loaded: text.Tokenizer | None) -> dict[str, Value]:
    """What is asked for, known without training or tokenising."""
    contents = {
        side: preparing.digest(part for pair in sides[side] for part in (pair.source, pair.target)) for side in SIDES
    }
    return {
        "content": contents["train"],
        "validation": contents["validation"],
        "misfits": config.pairs.misfits,
        "tokenizer": preparing.wanted_tokenizer(config, loaded),
        "length": config.length,
        "segments": config.segments,
        "objective": json.dumps(dataclasses.asdict(config.objective)),
    }


def _build(
    folder: pathlib.Path,
    config: Data,
    request: Mapping[str, Value],
    sides: Mapping[str, Sequence[Pair]],
    loaded: text.Tokenizer | None,
) -> None:
    texts = {side: [part for pair in sides[side] for part in (pair.source, pair.target)] for side in SIDES}
    tokenizer = loaded or preparing.train_tokenizer(config, texts["train"], texts["train"] + texts["validation"])
    preparing.check_tokenizer(config, tokenizer)
    arrays, counts = {}, {}
    for side in SIDES:
        ids, counts[side] = _fitted(config, sides[side], tokenizer.encode_batch(texts[side]))
        if not counts[side]["pairs"]:
            raise ValueError(
                f"data.pairs.misfits='drop' leaves out every pair of the {side} side: each has an empty text, or one "
                f"that does not fit data.length={config.length}"
            )
        for name, rows in zip(LANGUAGES, ids, strict=True):
            tokens = np.concatenate(rows).astype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)
            arrays[f"{side}_{name}"] = tokens
            arrays[f"{side}_{name}_ends"] = np.cumsum([len(row) for row in rows], dtype=np.int64)
            counts[side][f"{name}_tokens"] = len(tokens)
    preparing.write(folder, request, tokenizer, arrays, counts)


def _fitted(
    config: Data, side: Sequence[Pair], encoded: Sequence[np.ndarray]
) -> tuple[tuple[list[np.ndarray], list[np.ndarray]], dict[str, int]]:
    """Sources and targets that fit, what does not being refused, cut or left out; and how many of each."""
    room, counts = config.length - 1, {"pairs": 0, "left_out": 0, "cut": 0}  # one place is for the end
    kept = ([], [])
    for index, pair in enumerate(side):
        both = encoded[2 * index : 2 * index + 2]
        lengths = [len(ids) for ids in both]
        if min(lengths) > 0 and max(lengths) <= room:
            pass
        elif config.pairs.misfits == "drop":
            counts["left_out"] += 1
            continue
        elif config.pairs.misfits == "truncate" and min(lengths) > 0:
            counts["cut"] += 1
        else:
            raise ValueError(_misfit(pair, lengths, room, config))
        counts["pairs"] += 1
        for rows, ids in zip(kept, both, strict=True):
            rows.append(ids[:room])
    return kept, counts


def _misfit(pair: Pair, lengths: Sequence[int], room: int, config: Data) -> str:
    """What is wrong with a pair that does not fit, and what would help."""
    if min(lengths) == 0:
        return (
            f"{pair.name} has an empty {LANGUAGES[int(np.argmin(lengths))]}: take the pair out, or set "
            "data.pairs.misfits='drop' to leave such pairs out"
        )
    worst = int(np.argmax(lengths))
    return (
        f"{pair.name} has a {LANGUAGES[worst]} of {lengths[worst]} tokens, and data.length={config.length} has room "
        f"for {room} and the end: raise it, or set data.pairs.misfits to 'truncate' or 'drop'"
    )
