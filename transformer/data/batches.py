"""Batches as a function of (seed, step), for every kind of corpus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from transformer.data import buckets, packed, streams
from transformer.data.bitext import Bitext
from transformer.data.corpus import Corpus
from transformer.data.iteration import Batches
from transformer.data.objectives import Example


def batches(
    corpus: Corpus | Bitext,
    *,
    batch_size: int,
    batch_tokens: int = 0,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Training batches from step `start` on, without end.

    Args:
      corpus: what `prepare` returned.
      batch_size: B, rows of the global batch; with `batch_tokens`, what the rows are a multiple of.
      batch_tokens: pairs that are not packed: places of either side in a batch; 0: `batch_size` rows.
      seed: of the order of rows, of offsets and of what objectives draw, in [0, 2**32).
      start: the step of the first batch; resuming at a step equals never having stopped.
      process_index, process_count: which slice of every global batch this process holds.

    Raises:
      ValueError: if an argument is out of range or `process_count` does not divide `batch_size`.
    """
    _check_tokens(corpus, batch_tokens)
    shares = (seed, start, process_index, process_count)
    if _in_buckets(corpus):
        sizes = (corpus.length, batch_size, batch_tokens)
        return buckets.BucketBatches(corpus.train, corpus.tokenizer, *sizes, *shares)
    if isinstance(corpus, Corpus) and not corpus.packs:
        return streams.StreamBatches(corpus, batch_size, *shares)
    return packed.PackedBatches(_examples(corpus, "train"), batch_size, *shares)


def validation_batches(
    corpus: Corpus | Bitext,
    *,
    batch_size: int,
    batch_tokens: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Example]:
    """The whole validation side once, always the same: nothing is shuffled, and objectives draw from a fixed seed.

    What fills up a last batch has weight 0. Of a causal corpus every token but the first is a target with weight 1
    exactly once, so that over all processes the weights sum to `len(corpus.validation) - 1`.

    Args and raises: as in `batches`.
    """
    _check_tokens(corpus, batch_tokens)
    shares = (process_index, process_count)
    if _in_buckets(corpus):
        sizes = (corpus.length, batch_size, batch_tokens)
        return buckets.validation(corpus.validation, corpus.tokenizer, *sizes, *shares)
    if isinstance(corpus, Corpus) and not corpus.packs:
        return streams.validation(corpus, batch_size, *shares)
    return packed.validation(_examples(corpus, "validation"), batch_size, *shares)


def pipeline_speed(batches: Batches, *, seconds: float = 1.0) -> float:
    """Targets per second that batches alone deliver to one consumer, measured for about `seconds`; steps stay."""
    batches.batch_at(batches.step)  # the first touch of the file is not the pipeline's speed
    begin, tokens, step = time.perf_counter(), 0.0, batches.step
    while (elapsed := time.perf_counter() - begin) < seconds:
        step += 1
        tokens += batches.batch_at(step)["targets"].size
    return tokens / elapsed


def _in_buckets(corpus: Corpus | Bitext) -> bool:
    return isinstance(corpus, Bitext) and not corpus.segments


def _examples(corpus: Corpus | Bitext, side: str) -> packed.Examples:
    if isinstance(corpus, Bitext):
        return packed.of_pairs(getattr(corpus, side), corpus.tokenizer, corpus.length)
    return packed.of_documents(getattr(corpus, side), corpus)


def _check_tokens(corpus: Corpus | Bitext, batch_tokens: int) -> None:
    if batch_tokens < 0:
        raise ValueError(f"batch_tokens={batch_tokens}: use 0 for batch_size rows, or how many places a batch has")
    if batch_tokens and not _in_buckets(corpus):
        raise ValueError(f"batch_tokens={batch_tokens} is for pairs that are not packed: use batch_size rows")
