"""Rows of a stream for objectives that draw: from the causal grid, anew at every visit, a function of seed and step."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from tests.data.buckets_test import joined, same
from transformer import data, text
from transformer.data.corpus import Corpus

LENGTH, KINDS = 48, ("prefix", "masked", "spans")


@pytest.fixture(scope="module")
def tokenizer():
    names = ["[MASK]", *(f"<extra_id_{index}>" for index in range(8))]
    return text.BPE.train(["some text of nothing " * 40], 290, special=names)


def corpus(tokenizer, kind, tokens=1200, segments=False, **objective):
    """A random stream, with an end here and there."""
    stream = np.random.default_rng(0).integers(0, 251, tokens).astype(np.uint16)
    stream[::41] = tokenizer.end
    return Corpus(stream, stream[:400], tokenizer, LENGTH, segments, {}, {}, data.Objective(kind, **objective))


def original(kind, row, tokenizer):
    """The stretch of the stream that a row was made from."""
    if kind == "masked":
        return row["targets"]
    if kind == "prefix":
        return np.append(row["inputs"], row["targets"][-1])
    spans, sentinels, last = {}, set(tokenizer.sentinels), None
    for token in row["targets"][:-1].tolist():
        if token in sentinels:
            last = spans[token] = []
        else:
            last.append(token)
    return np.array([t for token in row["source"][:-1].tolist() for t in spans.get(token, [token])])


def rows(batch):
    return [{name: array[index] for name, array in batch.items()} for index in range(len(batch["inputs"]))]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_visits_every_stretch_of_its_grid_once(tokenizer, kind):
    made = corpus(tokenizer, kind)
    pipeline = data.batches(made, batch_size=1, seed=0)
    count = len(made.train) // made.stride - 1
    windows = np.lib.stride_tricks.sliding_window_view(made.train, made.reach)
    orders = []
    for _ in range(6):
        found = [original(kind, rows(next(pipeline))[0], tokenizer) for _ in range(count)]
        orders.append([int(np.flatnonzero((windows == row).all(axis=1))[0]) for row in found])
        offset = min(orders[-1])
        assert 0 <= offset < made.stride
        assert sorted(orders[-1]) == [offset + made.stride * index for index in range(count)]
    assert len({min(order) for order in orders}) > 2  # the grid is laid elsewhere
    assert len({tuple(np.argsort(order)) for order in orders}) > 2  # and visited in another order


@pytest.mark.parametrize("kind", ["prefix", "masked"])
def test_rows_are_those_of_the_causal_corpus(tokenizer, kind):
    made, plain = (corpus(tokenizer, name, segments=True) for name in (kind, "causal"))
    for step in range(9):
        one, other = (data.batches(each, batch_size=4, seed=5).batch_at(step) for each in (made, plain))
        np.testing.assert_array_equal(one["targets" if kind == "masked" else "inputs"], other["inputs"])
        for name in ("segments", "positions"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_a_function_of_seed_and_step_and_new_at_every_visit(tokenizer, kind):
    made = corpus(tokenizer, kind)
    one, again, other = (data.batches(made, batch_size=4, seed=seed) for seed in (0, 0, 1))
    batch = one.batch_at(5)
    same(again.batch_at(5), batch)
    assert any((other.batch_at(5)[name] != array).any() for name, array in batch.items())
    single = dataclasses.replace(made, train=made.train[: made.reach])  # of one row, which is visited each time
    drawn = data.batches(single, batch_size=1, seed=0)
    seen = {tuple(array.tobytes() for array in next(drawn).values()) for _ in range(12)}
    assert len(seen) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_resuming_and_sharing_change_nothing(tokenizer, kind, count):
    made = corpus(tokenizer, kind)
    whole = data.batches(made, batch_size=4, seed=3)
    batches = [next(whole) for _ in range(12)]  # 48 rows of epochs of fewer
    shares = [{"batch_size": 4, "process_index": index, "process_count": count} for index in range(count)]
    late = [data.batches(made, seed=3, start=4, **share) for share in shares]
    for batch in batches[4:]:
        same(joined([next(one) for one in late]), batch)
    parts = [data.validation_batches(made, **share) for share in shares]
    for batch, *own in zip(data.validation_batches(made, batch_size=4), *parts, strict=True):
        same(joined(own), batch)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_always_the_same_and_fills_up_at_weight_zero(tokenizer, kind):
    made = corpus(tokenizer, kind)
    first, again = (list(data.validation_batches(made, batch_size=3)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        same(one, two)
    real = [row for batch in first for row in rows(batch) if row["weights"].any()]
    assert len(real) == (len(made.validation) - made.reach) // made.stride + 1
    assert len(real) % 3  # so that rows fill up the last batch
    stretches = [original(kind, row, tokenizer) for row in real]
    for index, row in enumerate(stretches):
        np.testing.assert_array_equal(row, made.validation[index * made.stride :][: made.reach])
    larger = list(data.validation_batches(made, batch_size=3 * len(first) + 7))  # more rows than there are
    assert len(larger) == 1
    weighted = np.concatenate([batch["weights"][batch["weights"].any(axis=1)] for batch in first])
    np.testing.assert_array_equal(larger[0]["weights"][: len(real)], weighted)
    assert not larger[0]["weights"][len(real) :].any()


def test_segments_restart_at_every_document_and_no_prefix_counts(tokenizer):
    for kind in ("prefix", "masked"):
        batch = data.batches(corpus(tokenizer, kind, segments=True), batch_size=8, seed=0).batch_at(0)
        shown = batch["targets"] if kind == "masked" else batch["inputs"]
        for row, segments, positions in zip(shown, batch["segments"], batch["positions"], strict=True):
            number, place = 0, -1  # by a plain loop
            for index, token in enumerate(row.tolist()):
                number, place = (number + 1, 0) if token == tokenizer.end else (number, place + 1)
                assert (segments[index], positions[index]) == (number, place)
        assert batch["segments"].max() > 1
    prefixes = data.batches(corpus(tokenizer, "prefix", segments=True), batch_size=8, seed=0).batch_at(0)
    assert prefixes["prefix"][prefixes["positions"] == 0].all()  # a document's first token is in its own prefix


def test_without_segments_there_are_none(tokenizer):
    for kind in KINDS:
        names = set(data.batches(corpus(tokenizer, kind), batch_size=2, seed=0).batch_at(0))
        assert not {"segments", "positions", "mask", "source_mask"} & names


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_one_row_is_enough(tokenizer, kind):
    made = corpus(tokenizer, kind)
    made = dataclasses.replace(made, train=made.train[: made.reach], validation=made.validation[: made.reach])
    batch = data.batches(made, batch_size=3, seed=0).batch_at(2)
    assert batch["weights"].any(axis=1).all()
    for row in rows(batch):
        np.testing.assert_array_equal(original(kind, row, tokenizer), made.train)
    (last,) = data.validation_batches(made, batch_size=2)
    assert last["weights"].any(axis=1).tolist() == [True, False]


def test_masks_spare_the_end_and_follow_the_rate(tokenizer):
    batch = data.batches(corpus(tokenizer, "masked", rate=0.5), batch_size=16, seed=0).batch_at(0)
    chosen = batch["weights"] > 0
    assert not chosen[batch["targets"] == tokenizer.end].any()
    assert (batch["inputs"] == tokenizer.mask).sum() > 0.3 * chosen.size
    assert (chosen.sum(axis=1) >= LENGTH // 2 - 1).all()


def test_no_other_special_token_takes_the_place_of_one_that_is_hidden(tokenizer):
    batch = data.batches(corpus(tokenizer, "masked", rate=0.5), batch_size=200, seed=0).batch_at(0)
    replaced = batch["inputs"][(batch["inputs"] != batch["targets"]) & (batch["inputs"] != tokenizer.mask)]
    assert len(replaced) > 300  # of which a tenth would be special if all ids were drawn alike
    assert not np.isin(replaced, tokenizer.special).any()


def test_whole_words_are_masked_together(tokenizer):
    made = corpus(tokenizer, "masked", whole_words=True, rate=0.3)
    word = np.frombuffer(b" abc def", np.uint8)
    made = dataclasses.replace(made, train=np.tile([tokenizer.encode(chr(b))[0] for b in word], 40).astype(np.uint16))
    batch = data.batches(made, batch_size=16, seed=0).batch_at(0)
    spaces = tokenizer.encode(" ")[0]
    for targets, weights in zip(batch["targets"], batch["weights"], strict=True):
        inner = targets[1:-1] != spaces
        starts = np.flatnonzero(targets == spaces)
        for begin, end in itertools.pairwise(starts):
            assert len(set(weights[begin + 1 : end])) == 1
        assert inner.any()
