"""Measure a trained model: a run on its whole validation split, or any model on any text or any pairs.

    python -m experiments.evaluate --workdir=runs/stdlib [--step=latest|best|NUMBER] [--json]
    python -m experiments.evaluate --workdir=FOLDER --text=FILE [--length=1024] [--stride=512]
    python -m experiments.evaluate --workdir=FOLDER --pairs=test.en,test.de [--beams=5] [--average=10] [--tokenize=none]

--workdir also takes a folder in the format of Hugging Face, or the name of a model on its hub, and then needs a text. A
text is read in windows of `--length` tokens that begin `--stride` apart; each token counts once, in the window that
shows it the most of what came before. The first one is predicted too where the tokenizer has an opening token.

Beside the loss, a run that learnt to fill in masks is compared with counts of its training text, and one that learnt
from pairs is searched for outputs: of tasks such as `task:reverse` the share that is right is told, of translations
BLEU and chrF by sacrebleu, with their signatures. `--pairs` is written like a recipe's `data.path`.
"""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import baselines, command, devices, generated, loading, measures, scores, translation
from transformer import data, training
from transformer.training import distributed, meshes

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
DTYPE = loading.define_dtype()
MESH = devices.define_mesh()
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
TEXT = flags.DEFINE_string("text", None, "A file of text to measure on, in the place of the validation split.")
LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens in a window of --text; default: the model's longest sequence, at most 1024.", lower_bound=1
)
STRIDE = flags.DEFINE_integer("stride", None, "Tokens from window to window; default: half the length.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Rows evaluated at a time; changes nothing but speed.", lower_bound=1, upper_bound=65_536
)
PAIRS = flags.DEFINE_string("pairs", None, "Pairs to measure on, in the place of the validation split.")
TRUNCATE = flags.DEFINE_boolean(
    "truncate", False, "Cut sources of --pairs that are too long, in the place of an error."
)
TOKENIZE = flags.DEFINE_enum("tokenize", "13a", scores.TOKENIZE, "How BLEU cuts text; of text in tokens: none.")
AVERAGE = loading.define_average()
SEARCH = translation.define_flags(beams=4)
JSON = flags.DEFINE_boolean("json", False, "Print JSON.")

GENERATED = 1000  # pairs of a task
LONGEST = 1024  # of a window that nobody asked for
ROWS, LOGITS = 32, 2**26  # at a time where nobody asked for a number of rows: at most so many rows, so many logits


def main() -> None:
    source = loading.required(WORKDIR)
    if TEXT.value is None and (LENGTH.value or STRIDE.value):
        raise ValueError("--length and --stride are of the windows of --text: give one, or leave them out")
    if TEXT.value is not None and PAIRS.value is not None:
        raise ValueError("--text and --pairs exclude each other: give one of them")
    if TRUNCATE.value and PAIRS.value is None:
        raise ValueError("--truncate cuts sources of --pairs: give some, or leave it out")
    distributed.initialize()
    trained = loading.load(source, loading.step(STEP.value), DTYPE.value, AVERAGE.value)
    trained = devices.spread(trained, MESH.value)
    config, crosses = trained.model.config, None not in (trained.model.config.encoder, trained.model.config.decoder)
    if TEXT.value is not None and (config.decoder is None or crosses):
        raise ValueError(f"{source} is no decoder alone, so the next token of a text has no probability")
    if PAIRS.value is not None and not crosses:
        raise ValueError(f"{source} is no encoder with a decoder, so it writes no target for a source")
    _check_search(trained)
    if TEXT.value is not None:
        measured = _on_text(trained)
    elif PAIRS.value is not None:
        measured = _on_pairs(trained, PAIRS.value)
    else:
        measured = _on_validation(trained, source)
    if jax.process_index():
        return  # all processes measured the same
    if JSON.value:
        if measured.get("perplexity") == math.inf:
            measured["perplexity"] = None  # JSON has no infinity
        print(json.dumps({"step": trained.step, **measured}, allow_nan=False))
    else:
        print(_spoken(trained, measured))


def _check_search(trained: loading.Trained) -> None:
    """Raises ValueError, before anything is measured, if flags say how to search for targets and none are searched for,
    or if they cannot be searched for like that or scored."""
    given = [f"--{flag.name}" for flag in (*SEARCH.values(), TOKENIZE) if flag.present]
    path = _path(trained)
    if path is None:
        if given:
            raise ValueError(f"{' and '.join(given)} say how targets are searched for and measured: give --pairs too")
        return
    translation.check(trained, _search())
    if not translation.is_task(path):
        scores.sacrebleu()


def _path(trained: loading.Trained) -> str | None:
    """Of the pairs whose targets are searched for, if there are any."""
    if PAIRS.value is not None:
        return PAIRS.value
    if TEXT.value is not None or trained.experiment is None or trained.experiment.data.objective.kind != "pairs":
        return None
    return trained.experiment.data.pairs.validation or trained.experiment.data.path


def _search() -> translation.Search:
    chosen = {name: flag.value for name, flag in SEARCH.items()}
    return translation.Search(batch_size=BATCH_SIZE.value or ROWS, **chosen)


def _spoken(trained: loading.Trained, measured: dict) -> str:
    lines = []
    if "loss" in measured:
        windows = f", in windows of {measured['length']} every {measured['stride']}" if "stride" in measured else ""
        lines.append(f"{measures.spoken(measured)}, over {measured['tokens']:,.0f} tokens{windows}")
    lines += [
        f"{name} baseline: {measures.spoken(measured[name])}" for name in ("unigram", "bigram") if name in measured
    ]
    if "exact" in measured or "bleu" in measured:
        lines.append(translation.spoken(measured))
    return f"{trained.origin}: " + "\n".join(lines)


def _on_validation(trained: loading.Trained, source: Path) -> dict:
    if trained.experiment is None:
        raise ValueError(
            f"{source} is a pretrained model without a validation split: give a file with --text=FILE, or pairs with "
            "--pairs=SOURCE,TARGET"
        )
    generated.refuse(trained.experiment)
    corpus, kind = data.load(source / "data"), trained.experiment.data.objective.kind
    rows = _rows(trained, corpus.length)
    size = corpus.validation_bytes if kind == "causal" else None
    batches = list(data.validation_batches(corpus, batch_size=rows)) if kind == "masked" else None
    measured = _measure(trained, batches or data.validation_batches(corpus, batch_size=rows), size)
    if kind == "masked":
        measured |= baselines.measure(corpus.train, corpus.tokenizer.size, batches)
    if kind == "pairs":
        sources, references = translation.held_out(trained, corpus)
        measured |= _decoded(trained, sources, references, translation.reservations(trained, corpus))
    return measured


def _on_pairs(trained: loading.Trained, path: str) -> dict:
    config = data.Data(objective=data.Objective("pairs")) if trained.experiment is None else trained.experiment.data
    found = list(itertools.islice(data.pairs(config, path), GENERATED if translation.is_task(path) else None))
    if not found:
        raise ValueError(f"--pairs={path} holds no pairs: give some")
    sources = translation.sources_of(trained, ((pair.name, pair.source) for pair in found), TRUNCATE.value)
    seen = trained.experiment is not None and config.resolved(path) == config.resolved(config.path)
    note = "the run was trained on these pairs; without --pairs those are measured that it held out"
    return _decoded(trained, sources, [pair.target for pair in found], note if seen else "")


def _decoded(trained: loading.Trained, sources: list[list[int]], references: list[str], note: str) -> dict:
    outputs = translation.translate(trained, sources, _search())
    measured = translation.measure(outputs, references, _path(trained), TOKENIZE.value)
    return {**measured, "note": note} if note else measured


def _on_text(trained: loading.Trained) -> dict[str, float]:
    content, config, tokenizer = _read(TEXT.value), trained.model.config, trained.tokenizer
    length = min(config.length, LONGEST) if LENGTH.value is None else LENGTH.value
    if config.decoder.position.kind == "learned" and length > config.length:
        raise ValueError(f"--length={length} exceeds the model's {config.length} learned positions")
    if not content:
        raise ValueError(f"--text={TEXT.value} is empty: give a file with text")
    stream = np.asarray(trained.document(content), np.int32)
    if STRIDE.value is not None and STRIDE.value > length:
        raise ValueError(
            f"--stride={STRIDE.value} exceeds the windows' length={length}, so tokens between them would be left out: "
            "lower it, or raise --length"
        )
    length = max(1, min(length, len(stream) - 1))
    stride = min(STRIDE.value or max(1, length // 2), length)
    unpredicted = 0 if tokenizer.opening is not None else len(tokenizer.spell(stream[:1]))
    windows = 1 + -(-(len(stream) - 1 - length) // stride)
    batches = data.sliding_batches(stream, length=length, stride=stride, batch_size=_rows(trained, length, windows))
    measured = _measure(trained, batches, len(content.encode()) - unpredicted)
    return {**measured, "length": length, "stride": stride}


def _rows(trained: loading.Trained, length: int, most: int | None = None) -> int:
    """Rows at a time: what was asked for, or what fits each device, and not more of them than there are.

    Raises ValueError if devices cannot share what was asked for.
    """
    devices = meshes.rows(meshes.parse(MESH.value, jax.device_count())) if MESH.value else 1
    rows = BATCH_SIZE.value or devices * max(1, min(ROWS, LOGITS // (length * trained.model.config.vocab)))
    if rows % devices:
        raise ValueError(
            f"--batch_size={rows} rows cannot be shared among {devices} devices of --mesh={MESH.value}: "
            f"the nearest above is {-(-rows // devices) * devices}"
        )
    return rows if most is None else min(rows, -(-most // devices) * devices)


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")  # reading as text would rewrite line ends, and so the bytes
    except UnicodeDecodeError as error:
        raise ValueError(f"--text={path} is not UTF-8 (byte {error.start}): convert it") from None
    except OSError as error:
        raise ValueError(f"--text={path} cannot be read: {error.strerror}") from None


def _measure(trained: loading.Trained, batches, size: int | None) -> dict[str, float]:
    # Of the next token alone nobody quotes the share that is right.
    accuracy = trained.experiment is not None and trained.experiment.data.objective.kind != "causal"
    loss_fn = training.prediction(trained.model, accuracy=accuracy)
    evaluation = jax.jit(partial(training.evaluation_step, loss_fn=loss_fn))
    measured = training.evaluate(evaluation, trained.params, batches, size)
    if not math.isfinite(measured["loss"]):
        raise ValueError(
            f"{trained.origin} has a loss of {measured['loss']}: choose parameters that work, or another --dtype"
        )
    return measured


if __name__ == "__main__":
    command.run(main)
