"""Batches of pairs by length: each pair once an epoch, a function of seed and step, and nothing but padding beside."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from transformer import data, text
from transformer.data.bitext import Bitext, Both, Texts
from transformer.data.buckets import buckets, ladder

TOKENIZER = text.Bytes()
END = TOKENIZER.end


def texts(lengths, first):
    """Texts whose first id is their number from `first` on; lengths are at least 1."""
    rows = [np.r_[number, np.full(length - 1, 7)] for number, length in enumerate(lengths, first)]
    return Texts(np.concatenate(rows).astype(np.uint16), np.cumsum(lengths))


def bitext(count=60, longest=20, segments=False, seed=0, shortest=1, tokenizer=TOKENIZER):
    """Sources are numbered from 0 and targets from 1000."""
    random = np.random.default_rng(seed)
    sides = (texts(random.integers(shortest, longest, count), first) for first in (0, 1000))
    both = Both(*sides)
    return Bitext(both, both, tokenizer, longest, segments, data.Objective("pairs"), {}, {})


def numbers(batch):
    """The pairs in a batch that count: the source of each has the target of the same number."""
    real = batch["weights"].any(axis=1)
    np.testing.assert_array_equal(batch["source"][real, 0] + 1000, batch["targets"][real, 0])
    return batch["source"][real, 0].tolist()


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


SIZES = [(4, 0), (4, 64), (2, 1000), (100, 0)]


@pytest.mark.parametrize(("batch_size", "batch_tokens"), SIZES)
def test_an_epoch_has_every_pair_once_in_an_order_of_its_own(batch_size, batch_tokens):
    pipeline = data.batches(bitext(), batch_size=batch_size, batch_tokens=batch_tokens, seed=3)
    epochs = [[number for _ in range(pipeline.epoch) for number in numbers(next(pipeline))] for _ in range(3)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
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
    lengths = [batch["source"].shape[1] for batch in data.validation_batches(bitext(), **sizes)]
    assert lengths == sorted(lengths)  # shortest first


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
            assert not batch["source"][row, len(source) + 1 :].any()
            assert not batch["source_mask"][row, len(source) + 1 :].any()
            assert batch["source"].shape == batch["source_mask"].shape == batch["targets"].shape
            assert not batch["weights"][row, len(target) + 1 :].any()


def test_batches_are_counted_in_tokens():
    pipeline = data.batches(bitext(400), batch_size=4, batch_tokens=128, seed=0)
    shapes = Counter(next(pipeline)["source"].shape for _ in range(pipeline.epoch))
    assert len(shapes) > 2
    for rows, length in shapes:
        assert rows % 4 == 0 and rows * length <= 128 < (rows + 4) * length


def test_lengths_come_mixed_and_in_another_order_every_epoch():
    pipeline = data.batches(bitext(400), batch_size=4, batch_tokens=128, seed=0)
    epochs = [[next(pipeline)["source"].shape[1] for _ in range(pipeline.epoch)] for _ in range(2)]
    assert epochs[0] not in (sorted(epochs[0]), sorted(epochs[0])[::-1], epochs[1])
    assert sorted(epochs[0]) == sorted(epochs[1])


def test_batch_size_rows_may_have_more_places_than_asked_for():
    pipeline = data.batches(bitext(200, longest=40), batch_size=4, batch_tokens=100, seed=0)
    shapes = {pipeline.batch_at(step)["source"].shape for step in range(pipeline.epoch)}
    assert all(rows == 4 or rows * length <= 100 for rows, length in shapes)
    assert any(rows * length > 100 for rows, length in shapes) and any(rows > 4 for rows, _ in shapes)


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
    for count in (1, 2, 4):
        shares = [data.batches(bitext(), **sizes, start=2, process_index=i, process_count=count) for i in range(count)]
        for batch in expected[2:]:  # over the end of an epoch
            same(joined([next(share) for share in shares]), batch)
    same(whole.batch_at(0), expected[0])
    assert whole.step == len(expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_validation_batches(count):
    sizes = {"batch_size": 4, "batch_tokens": 64}
    shares = [data.validation_batches(bitext(), **sizes, process_index=i, process_count=count) for i in range(count)]
    for batch, *parts in zip(data.validation_batches(bitext(), **sizes), *shares, strict=True):
        same(joined(parts), batch)


def test_lengths_of_buckets_rise_by_at_most_a_quarter_and_hold_the_longest():
    borders = ladder(300)
    assert borders[-2] < 300 <= borders[-1]
    assert all(
        after - before <= max(4, before / 4) and before % 4 == 0 for before, after in itertools.pairwise(borders)
    )


def test_a_bucket_with_fewer_pairs_than_a_batch_joins_the_next():
    lengths = np.array([3, 3, 8, 8, 8, 8, 12, 15, 15, 16])
    found = buckets(lengths, 1000, batch_size=4, batch_tokens=0)
    # By hand: two up to 4 wait, four up to 8 come with them; one up to 12 waits, three up to 16 come with it.
    assert [(sorted(bucket.members.tolist()), bucket.length) for bucket in found] == [
        ([0, 1, 2, 3, 4, 5], 8),
        ([6, 7, 8, 9], 16),
    ]
    assert [(bucket.rows, bucket.batches) for bucket in found] == [(4, 2), (4, 1)]


@pytest.mark.parametrize("batch_tokens", [0, 4096])
def test_one_pair_is_a_corpus(batch_tokens):
    (batch,) = data.validation_batches(bitext(1), batch_size=4, batch_tokens=batch_tokens)
    assert numbers(batch) == [0] and len(batch["inputs"]) % 4 == 0
    pipeline = data.batches(bitext(1), batch_size=4, batch_tokens=batch_tokens, seed=0)
    assert [numbers(next(pipeline)) for _ in range(3)] == [[0]] * 3


def test_pairs_of_one_length_make_one_bucket_and_a_batch_may_be_larger_than_all_of_them():
    corpus = bitext(30, longest=8, shortest=7)
    assert set(corpus.train.lengths.ravel().tolist()) == {8}
    pipeline = data.batches(corpus, batch_size=4, seed=0)
    batches = [next(pipeline) for _ in range(pipeline.epoch)]
    assert {batch["source"].shape for batch in batches} == {(4, 8)} and pipeline.epoch == 8
    assert pipeline.fill == 30 / 32  # no place is empty but those of the two rows that fill up
    whole = data.batches(corpus, batch_size=64, seed=0)
    assert whole.epoch == 1 and sorted(numbers(next(whole))) == list(range(30))


def test_a_decoder_begins_with_padding_where_there_is_some():
    padded = text.BPE.train(["some text of nothing " * 40], 290, special=["<pad>"])
    for tokenizer, start in ((padded, padded.pad), (TOKENIZER, END)):
        for batch in data.validation_batches(bitext(tokenizer=tokenizer), batch_size=4):
            assert (batch["inputs"][:, 0] == start).all()
            ends = batch["source_mask"].sum(axis=1) - 1
            assert (batch["source"][np.arange(4), ends] == tokenizer.end).all()


def test_tokens_are_of_pairs_that_are_not_packed():
    with pytest.raises(ValueError, match="batch_tokens=64 is for pairs that are not packed"):
        data.batches(bitext(segments=True), batch_size=4, batch_tokens=64, seed=0)
    with pytest.raises(ValueError, match="batch_tokens=64 is for pairs that are not packed"):
        data.validation_batches(bitext(segments=True), batch_size=4, batch_tokens=64)
    with pytest.raises(ValueError, match="batch_tokens=-64: use 0 for batch_size rows"):
        data.batches(bitext(), batch_size=4, batch_tokens=-64, seed=0)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"batch_size": 3, "process_count": 2}])
def test_refuses_sizes_that_cannot_be_shared(sizes):
    message = r"batch_size=\d must be a positive multiple of process_count="
    with pytest.raises(ValueError, match=message):
        data.batches(bitext(), seed=0, **sizes)
    with pytest.raises(ValueError, match=message):
        next(data.validation_batches(bitext(), **sizes))


def test_no_bucket_is_longer_than_the_corpus_says():
    corpus = bitext(300, longest=30)  # texts of up to 29 ids and an end; the border above would be 32
    assert corpus.train.lengths.max() == 30
    pipeline = data.batches(corpus, batch_size=4, seed=0)
    batches = [*(next(pipeline) for _ in range(pipeline.epoch)), *data.validation_batches(corpus, batch_size=4)]
    assert max(batch["source"].shape[1] for batch in batches) == 30
