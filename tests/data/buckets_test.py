"""Batches of pairs by length: each pair once an epoch, a function of seed and step, and nothing but padding beside."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from transformer import data, text
from transformer.data.bitext import Bitext, Both, Texts
from transformer.data.buckets import ladder

TOKENIZER = text.Bytes()
END = TOKENIZER.end


def texts(lengths, first):
    """Texts whose first id is their number from `first` on; lengths are at least 1."""
    rows = [np.r_[number, np.full(length - 1, 7)] for number, length in enumerate(lengths, first)]
    return Texts(np.concatenate(rows).astype(np.uint16), np.cumsum(lengths))


def bitext(count=60, longest=20, segments=False, seed=0):
    """Sources are numbered from 0 and targets from 100."""
    random = np.random.default_rng(seed)
    both = Both(texts(random.integers(1, longest, count), 0), texts(random.integers(1, longest, count), 100))
    return Bitext(both, both, TOKENIZER, longest, segments, data.Objective("pairs"), {}, {})


def numbers(batch):
    """The pairs in a batch that count, and what is wrong with the others, if anything."""
    real = batch["weights"].any(axis=1)
    assert (batch["inputs"][real, 0] == END).all()
    np.testing.assert_array_equal(batch["source"][real, 0] + 100, batch["targets"][real, 0])
    return batch["source"][real, 0].tolist()


SIZES = [(4, 0), (4, 64), (2, 1000), (100, 0)]


@pytest.mark.parametrize(("batch_size", "batch_tokens"), SIZES)
def test_an_epoch_has_every_pair_once_in_an_order_of_its_own(batch_size, batch_tokens):
    pipeline = data.batches(bitext(), batch_size=batch_size, batch_tokens=batch_tokens, seed=3)
    epochs = [[number for _ in range(pipeline.epoch) for number in numbers(next(pipeline))] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    assert epochs[0] != epochs[1]
    again = data.batches(bitext(), batch_size=batch_size, batch_tokens=batch_tokens, seed=3)
    assert [number for _ in range(again.epoch) for number in numbers(next(again))] == epochs[0]
    other = data.batches(bitext(), batch_size=batch_size, batch_tokens=batch_tokens, seed=4)
    assert [number for _ in range(other.epoch) for number in numbers(next(other))] != epochs[0]


@pytest.mark.parametrize(("batch_size", "batch_tokens"), SIZES)
def test_validation_has_every_pair_once_and_is_always_the_same(batch_size, batch_tokens):
    sizes = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    found = [number for batch in data.validation_batches(bitext(), **sizes) for number in numbers(batch)]
    assert Counter(found) == Counter(range(60))
    assert found == [number for batch in data.validation_batches(bitext(), **sizes) for number in numbers(batch)]


def test_a_row_is_a_pair_and_padding_that_is_neither_seen_nor_counted():
    corpus = bitext()
    for batch in data.validation_batches(corpus, batch_size=4, batch_tokens=64):
        for row in range(len(batch["inputs"])):
            source, target = (side[int(batch["source"][row, 0])] for side in (corpus.train.source, corpus.train.target))
            counts = int(batch["weights"][row].sum())
            assert batch["source"][row, batch["source_mask"][row]].tolist() == [*source, END]
            assert counts in (0, len(target) + 1)  # all of it, or a row that fills up
            assert batch["targets"][row, : len(target) + 1].tolist() == [*target, END]
            assert batch["inputs"][row, : len(target) + 1].tolist() == [END, *target]
            assert not batch["targets"][row, len(target) + 1 :].any()
            assert not batch["weights"][row, len(target) + 1 :].any()


def test_batches_are_counted_in_tokens():
    pipeline = data.batches(bitext(400), batch_size=4, batch_tokens=128, seed=0)
    shapes = Counter(next(pipeline)["source"].shape for _ in range(pipeline.epoch))
    assert len(shapes) > 2
    for rows, length in shapes:
        assert rows % 4 == 0 and rows * length <= 128 < (rows + 4) * length


def test_fill_is_the_share_of_places_with_tokens():
    pipeline = data.batches(bitext(), batch_size=4, batch_tokens=64, seed=0)
    batches = [next(pipeline) for _ in range(pipeline.epoch)]
    real = [batch["weights"].any(axis=1)[:, None] for batch in batches]
    filled = sum((b["source_mask"] & r).sum() + b["weights"].sum() for b, r in zip(batches, real, strict=True))
    assert pipeline.fill == pytest.approx(filled / sum(2 * b["source"].size for b in batches))


def test_resuming_and_sharing_change_nothing():
    sizes = {"batch_size": 4, "batch_tokens": 64, "seed": 1}
    whole = data.batches(bitext(), **sizes)
    expected = [next(whole) for _ in range(whole.epoch + 3)]
    late = data.batches(bitext(), **sizes, start=whole.epoch + 2)
    shares = [data.batches(bitext(), **sizes, process_index=index, process_count=2) for index in range(2)]
    for name, array in expected[-1].items():
        np.testing.assert_array_equal(next(iter([late.batch_at(whole.epoch + 2)]))[name], array)
        parts = [share.batch_at(whole.epoch + 2)[name] for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), array)


def test_lengths_of_buckets_rise_by_at_most_a_quarter_and_hold_the_longest():
    borders = ladder(300)
    assert borders[-2] < 300 <= borders[-1]
    assert all(
        after - before <= max(4, before / 4) and before % 4 == 0 for before, after in itertools.pairwise(borders)
    )


def test_one_pair_is_a_corpus():
    (batch,) = data.validation_batches(bitext(1), batch_size=4)
    assert numbers(batch) == [0] and len(batch["inputs"]) == 4


def test_tokens_are_of_pairs_that_are_not_packed():
    with pytest.raises(ValueError, match="batch_tokens=64 is for pairs that are not packed"):
        data.batches(bitext(segments=True), batch_size=4, batch_tokens=64, seed=0)
