"""Measure a trained model: a run on its whole validation split, or any model on any text.

    python -m experiments.evaluate --workdir=runs/stdlib [--step=latest|best|NUMBER] [--json]
    python -m experiments.evaluate --workdir=FOLDER --text=FILE [--length=1024] [--stride=512]

--workdir also takes a folder in the format of Hugging Face, or the name of a model on its hub, and then needs a text. A
text is read in windows of `--length` tokens that begin `--stride` apart; each token counts once, in the window that
shows it the most of what came before. The first one is predicted too where the tokenizer has an opening token.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import command, generated, loading
from transformer import data, training

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
DTYPE = loading.define_dtype()
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
TEXT = flags.DEFINE_string("text", None, "A file of text to measure on, in the place of the validation split.")
LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens in a window of --text; default: the model's longest sequence, at most 1024.", lower_bound=1
)
STRIDE = flags.DEFINE_integer("stride", None, "Tokens from window to window; default: half the length.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Rows evaluated at a time; changes nothing but speed.", lower_bound=1, upper_bound=65_536
)
JSON = flags.DEFINE_boolean("json", False, "Print JSON.")

LONGEST = 1024  # of a window that nobody asked for
ROWS, LOGITS = 32, 2**26  # at a time where nobody asked for a number of rows: at most so many rows, so many logits


def main() -> None:
    source = loading.required(WORKDIR)
    if TEXT.value is None and (LENGTH.value or STRIDE.value):
        raise ValueError("--length and --stride are of the windows of --text: give one, or leave them out")
    trained = loading.load(source, loading.step(STEP.value), DTYPE.value)
    config = trained.model.config
    if config.decoder is None or config.encoder is not None:
        raise ValueError(f"{source} is no decoder alone, so the next token of a text has no probability")
    measured = _on_text(trained) if TEXT.value is not None else _on_validation(trained, source)
    if JSON.value:
        print(json.dumps({"step": trained.step, **measured}))
        return
    windows = f", in windows of {measured['length']} every {measured['stride']}" if "stride" in measured else ""
    print(
        f"{trained.origin}: {measured['bits_per_byte']:.4f} bits per byte, loss {measured['loss']:.4f} nats per "
        f"token, perplexity {measured['perplexity']:.2f}, over {measured['tokens']:,.0f} tokens{windows}"
    )


def _on_validation(trained: loading.Trained, source: Path) -> dict[str, float]:
    if trained.experiment is None:
        raise ValueError(f"{source} is a pretrained model without a validation split: give a file with --text=FILE")
    generated.refuse(trained.experiment)
    corpus = data.load(source / "data")
    batches = data.validation_batches(corpus, batch_size=_rows(trained, corpus.length, ROWS))
    return _measure(trained, batches, corpus.validation_bytes)


def _on_text(trained: loading.Trained) -> dict[str, float]:
    content, config, tokenizer = _read(TEXT.value), trained.model.config, trained.tokenizer
    length = min(config.length, LONGEST) if LENGTH.value is None else LENGTH.value
    if config.decoder.position.kind == "learned" and length > config.length:
        raise ValueError(f"--length={length} exceeds the model's {config.length} learned positions")
    if not content:
        raise ValueError(f"--text={TEXT.value} is empty: give a file with text")
    stream = np.asarray(trained.document(content), np.int32)
    length = max(1, min(length, len(stream) - 1))
    stride = min(STRIDE.value or max(1, length // 2), length)
    unpredicted = 0 if tokenizer.opening is not None else len(tokenizer.spell(stream[:1]))
    windows = 1 + -(-(len(stream) - 1 - length) // stride)
    batches = data.sliding_batches(stream, length=length, stride=stride, batch_size=_rows(trained, length, windows))
    measured = _measure(trained, batches, len(content.encode()) - unpredicted)
    return {**measured, "length": length, "stride": stride}


def _rows(trained: loading.Trained, length: int, most: int) -> int:
    """Rows at a time: what was asked for, or what fits, and not more of them than there are."""
    if BATCH_SIZE.value is not None:
        return min(BATCH_SIZE.value, most) if TEXT.value is not None else BATCH_SIZE.value
    return max(1, min(ROWS, most, LOGITS // (length * trained.model.config.vocab)))


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")  # reading as text would rewrite line ends, and so the bytes
    except UnicodeDecodeError as error:
        raise ValueError(f"--text={path} is not UTF-8 (byte {error.start}): convert it") from None
    except OSError as error:
        raise ValueError(f"--text={path} cannot be read: {error.strerror}") from None


def _measure(trained: loading.Trained, batches, size: int) -> dict[str, float]:
    evaluation = jax.jit(partial(training.evaluation_step, loss_fn=training.next_token(trained.model)))
    return training.evaluate(evaluation, trained.params, batches, size)


if __name__ == "__main__":
    command.run(main)
