"""Packed rows: every example whole, once an epoch, apart from its neighbours on both sides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.data import buckets_test
from transformer import data, text
from transformer.data.corpus import Corpus
from transformer.data.packed import of_documents

LENGTH = 48


@pytest.fixture(scope="module")
def tokenizer():
    names = [f"<extra_id_{index}>" for index in range(8)]
    return text.BPE.train(["some text of nothing " * 40], 290, special=names)


def corpus(tokenizer, documents):
    """Documents of the ids of letters, for span corruption."""
    stream = np.concatenate([np.r_[tokenizer.end, ids] for ids in documents]).astype(np.uint16)
    objective = data.Objective("spans")
    return Corpus(stream, stream, tokenizer, LENGTH, True, {}, {}, objective)


def documents(seed=0, count=30, longest=80):
    random = np.random.default_rng(seed)
    return [random.integers(60, 90, length) for length in random.integers(2, longest, count)]


def sides(row):
    """By segment, what a packed row holds of its examples: source, inputs and targets."""
    assert set(row["segments"]) - {0} == set(row["source_segments"]) - {0}
    found = []
    for number in range(1, row["segments"].max() + 1):
        here, there = row["segments"] == number, row["source_segments"] == number
        assert row["positions"][here].tolist() == list(range(here.sum()))
        assert row["source_positions"][there].tolist() == list(range(there.sum()))
        if row["weights"][here].any():
            assert row["weights"][here].all()
            found.append(
                tuple(tuple(row[n][w].tolist()) for n, w in (("source", there), ("inputs", here), ("targets", here)))
            )
    assert not row["weights"][row["segments"] == 0].any()
    return found


def rows(batch):
    return [{name: array[index] for name, array in batch.items()} for index in range(len(batch["inputs"]))]


def restored(source, targets, tokenizer):
    """The document that a corrupted one came from."""
    spans, sentinels = {}, set(tokenizer.sentinels)
    for token in targets[:-1]:
        if token in sentinels:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    return tuple(t for token in source[:-1] for t in (spans[token] if token in sentinels else [token]))


def test_pairs_are_packed_whole_and_once():
    bitext = buckets_test.bitext(segments=True)
    found = [
        example
        for batch in data.validation_batches(bitext, batch_size=4)
        for row in rows(batch)
        for example in sides(row)
    ]
    expected = [
        ((*s, buckets_test.END), (buckets_test.END, *t), (*t, buckets_test.END))
        for s, t in ((bitext.train.source[i], bitext.train.target[i]) for i in range(len(bitext.train)))
    ]
    assert Counter(found) == Counter(expected)
    assert any(
        row["segments"].max() > 1 for batch in data.validation_batches(bitext, batch_size=4) for row in rows(batch)
    )


def test_documents_are_packed_whole_and_can_be_restored(tokenizer):
    whole = documents()
    pipeline = data.batches(corpus(tokenizer, whole), batch_size=4, seed=0)
    found = Counter()
    batch_rows = [
        row for batch in data.validation_batches(corpus(tokenizer, whole), batch_size=4) for row in rows(batch)
    ]
    for row in batch_rows:
        assert row["source"].shape == (LENGTH,)
        found.update(restored(source, targets, tokenizer) for source, _, targets in sides(row))
    most = corpus(tokenizer, whole).stride
    chunks = [tuple(ids[i : i + most].tolist()) for ids in whole for i in range(0, len(ids), most)]
    assert found == Counter(chunk for chunk in chunks if len(chunk) > 1)
    assert 0.5 < pipeline.fill <= 1


def test_spans_are_drawn_anew_and_yet_a_function_of_seed_and_step(tokenizer):
    made = corpus(tokenizer, documents())
    first, again, other = (data.batches(made, batch_size=2, seed=seed) for seed in (0, 0, 1))
    count = len({row["source"].tobytes() for _ in range(30) for row in rows(next(first))})
    assert count > 40  # of 60 visits to fewer rows, most of them corrupted in another way each time
    np.testing.assert_array_equal(first.batch_at(9)["source"], again.batch_at(9)["source"])
    assert (first.batch_at(9)["source"] != other.batch_at(9)["source"]).any()
    shares = [data.batches(made, batch_size=2, seed=0, process_index=i, process_count=2).batch_at(9) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([s["targets"] for s in shares]), first.batch_at(9)["targets"])


def test_fill_is_the_share_of_places_with_tokens():
    bitext = buckets_test.bitext(segments=True)
    pipeline = data.batches(bitext, batch_size=1, seed=0)
    seen = {}
    for _ in range(200):  # the order of rows is random, but each comes once an epoch
        batch = next(pipeline)
        seen[batch["source"].tobytes()] = [(batch[name] > 0).mean() for name in ("segments", "source_segments")]
    assert pipeline.fill == pytest.approx(np.mean(list(seen.values())))


def test_documents_too_short_to_corrupt_are_left_out_and_refused_if_there_is_nothing_else(tokenizer):
    made = corpus(tokenizer, [[65], [66, 67, 68], [], [69]])
    assert of_documents(made.train, made).lengths.tolist() == [[3, 4]]
    with pytest.raises(ValueError, match="no document of two tokens"):
        data.batches(corpus(tokenizer, [[65], []]), batch_size=1, seed=0)
