"""Write a page that shows what a trained model does with a text, or serve one that answers.

    python -m experiments.explore --workdir=runs/stdlib --text="def main(" --output=page.html
    python -m experiments.explore --workdir=FOLDER --text="the mole dug" --text="one mole of carbon" --output=page.html
    python -m experiments.explore --workdir=FOLDER --source="the mole dug a burrow" --serve

The page is one file that needs no network. Up to three texts are compared. --workdir also takes a folder in the format
of Hugging Face, or the name of a model on its hub: decoders, encoders, and both. An encoder-decoder reads --source, one
for each --text, its target; without a text, the model writes one. A page has the patterns and the exact queries, keys
and values of as many layers as fit into --budget, and says what it leaves out; --layers and --detail choose.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from experiments import command, loading, outputs
from transformer import decoding, text
from transformer.inspection import explorer
from transformer.inspection.explorer import Reading, Token

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
DTYPE = loading.define_dtype()
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
TEXT = flags.DEFINE_multi_string("text", [], "A text to look at; up to three.")
SOURCE = flags.DEFINE_multi_string("source", [], "What an encoder-decoder reads; one for each text.")
OUTPUT = flags.DEFINE_string("output", None, "The page to write.")
SERVE = flags.DEFINE_boolean("serve", False, "Serve the page on this machine, for other texts and interventions.")
PORT = flags.DEFINE_integer("port", 0, "Of --serve; 0: any that is free.", lower_bound=0, upper_bound=65_535)
LAYERS = flags.DEFINE_list("layers", None, "Whose patterns to keep, such as 0,3,11; default: all that fit.")
DETAIL = flags.DEFINE_list("detail", None, "Whose exact queries, keys and values to keep; default: all that fit.")
BUDGET = flags.DEFINE_float("budget", 3.8, "Megabytes of data in the page.", lower_bound=0.01, upper_bound=1000)

MASKS = ("[MASK]", "<mask>")
WRITTEN = 64  # tokens of a target at most that the model writes
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how a vocabulary of characters writes a byte


def main() -> None:
    if (OUTPUT.value is None) != SERVE.value:
        raise ValueError("give --output=PAGE.html to write a page, or --serve to serve one")
    if not TEXT.value and not SOURCE.value:
        raise ValueError('--text is missing: give one to three, such as --text="the mole dug a burrow"')
    if not math.isfinite(BUDGET.value):
        raise ValueError(f"--budget={BUDGET.value} is no number of megabytes: give one such as 3.8")
    choice = explorer.Choice(
        _numbers("layers", LAYERS.value), _numbers("detail", DETAIL.value), int(BUDGET.value * 1e6)
    )
    workdir = loading.required(WORKDIR)
    if SERVE.value:
        return _serve(*_look(workdir, choice))
    with outputs.replacing(OUTPUT.value) as temporary:  # before the model is loaded, so that a mistake is seen at once
        _, data = _look(workdir, choice)
        temporary.write_text(explorer.page(data), encoding="utf-8")
        size = temporary.stat().st_size
    print("\n".join([f"{OUTPUT.value}: {size / 1e6:.2f} MB", *data["limits"]]))


def _look(workdir: Path, choice: explorer.Choice) -> tuple[explorer.Session, dict]:
    """The model, and what there is to see in the texts of the command line."""
    trained = loading.load(workdir, loading.step(STEP.value), DTYPE.value)
    origin = trained.origin if trained.experiment is None else f"{workdir}, {trained.origin}"
    subject = explorer.Subject(trained.model, trained.params, speller(trained.tokenizer), origin, predicts(trained))
    session = explorer.Session(subject, reader(trained), choice)
    return session, session.texts({"texts": texts(trained), "sources": SOURCE.value or None})


def predicts(trained: loading.Trained) -> bool:
    """Whether a model was trained to predict tokens: a pretrained encoder without its head for that was not."""
    config = trained.model.config
    return trained.experiment is not None or config.decoder is not None or config.readout.transform


def _serve(session: explorer.Session, data: dict) -> None:
    limits = {"max_texts": explorer.TEXTS, "max_characters": explorer.CHARACTERS}
    try:
        explorer.serve(data, session.actions, limits=limits, port=PORT.value, ready=_announce)
    except (KeyboardInterrupt, SystemExit) as end:
        # A thread may be at work inside the model: it cannot be stopped, and an interpreter that ends under it aborts.
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT if isinstance(end, KeyboardInterrupt) else end.code)


def texts(trained: loading.Trained) -> list[str]:
    """The texts of the command line, of an encoder-decoder the targets, an empty one for each that it is to write."""
    both = trained.model.config.encoder is not None and trained.model.config.decoder is not None
    if both != bool(SOURCE.value):
        raise ValueError("--source is for an encoder-decoder, which needs one for each text; other models have none")
    if both and TEXT.value and len(TEXT.value) != len(SOURCE.value):
        raise ValueError(f"--text is given {len(TEXT.value)} times and --source {len(SOURCE.value)}: give as many")
    return TEXT.value or [""] * len(SOURCE.value)


def reader(trained: loading.Trained) -> Callable[[str, str | None], Reading]:
    """From texts to what the model reads, as it has seen texts begin.

    A masked token is what a reading looks at first, if there is one.
    """
    both = trained.model.config.encoder is not None and trained.model.config.decoder is not None

    def read(content: str, source: str | None) -> Reading:
        if both:
            if source is None:
                raise ValueError("source is missing: an encoder-decoder reads one")
            return _pair(trained, content, source)
        if source is not None:
            raise ValueError("source is for an encoder-decoder: leave it out")
        ids = trained.ids(content)
        masked = [place for place, token in enumerate(ids) if _name(trained.tokenizer, token) in MASKS]
        return Reading(content, tuple(ids), position=masked[0] if masked else None)

    return read


def _pair(trained: loading.Trained, content: str, source: str) -> Reading:
    """A source and its target, which the model writes if it is empty."""
    tokenizer, read = trained.tokenizer, tuple(trained.ids(source))
    start = tokenizer.opening if trained.start is None else trained.start
    if start is None:
        raise ValueError(f"{trained.origin} names no decoder_start_token_id, so no target can begin: name one")
    if content and tokenizer.kind == "marian":
        raise ValueError("the tokenizer of this model spells the source language alone: leave out the text")
    ids = tokenizer.encode(content).tolist() if content else _written(trained, read, start)
    known = [token for token in ids if token < tokenizer.size]  # a vocabulary may be wider than its tokenizer
    return Reading(content or tokenizer.decode(known), (start, *ids), source, read)


def _written(trained: loading.Trained, source: tuple[int, ...], start: int) -> list[int]:
    """The likeliest target token by token, without what ends it."""
    config = trained.model.config
    # Beside what the target begins with, a learned table has room for so many.
    length = min(WRITTEN, config.length - 1) if config.decoder.position.kind == "learned" else WRITTEN
    options = {"length": length, "stop": trained.stop, "banned": trained.banned}
    ids = decoding.generate(trained.model, trained.params, [start], source=[list(source)], **options)[0].tolist()
    return ids[: min((ids.index(stop) for stop in trained.stop if stop in ids), default=len(ids))]


def speller(tokenizer: text.Tokenizer) -> Callable[[int], Token]:
    """How one id is shown."""
    in_bytes = tokenizer.kind in ("bytes", "characters", "bpe")

    def spell(token: int) -> Token:
        if token >= tokenizer.size:
            return Token(f"<{token}>", special=True)  # a vocabulary may be wider than its tokenizer
        if not tokenizer.shown([token]):
            return Token(_name(tokenizer, token), special=True)
        byte = None if in_bytes else BYTE.fullmatch(_name(tokenizer, token))
        if in_bytes or byte:
            return _spelt(bytes.fromhex(byte[1]) if byte else tokenizer.spellings[token])
        # Alone, some tokenizers would leave out the space before it.
        alone, twice = (tokenizer.decode([token] * count, keep_end=True) for count in (1, 2))
        return Token(twice.removeprefix(alone) or _name(tokenizer, token).replace("\u2581", " "))

    return spell


def _spelt(content: bytes) -> Token:
    try:
        return Token(content.decode("utf-8"))
    except UnicodeDecodeError:
        return Token(content.decode("utf-8", "replace"), hex=content.hex())


def _name(tokenizer: text.Tokenizer, token: int) -> str:
    """How a token is written in its vocabulary."""
    return tokenizer.spellings[token].decode("utf-8", "replace") if token < tokenizer.size else ""


def _numbers(name: str, values: list[str] | None) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not values or not all(value.strip().isdecimal() and value.isascii() for value in values):
        raise ValueError(f"--{name}={','.join(values)} names no layers: give their numbers, such as --{name}=0,3,11")
    return tuple(int(value) for value in values)


def _announce(url: str) -> None:
    print(f"open {url} (Ctrl-C ends it)", flush=True)


if __name__ == "__main__":
    command.run(main)
