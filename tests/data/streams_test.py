"""Rows of a stream for objectives that draw: from the causal grid, anew at every visit, a function of seed and step."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

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
    found = [original(kind, rows(next(pipeline))[0], tokenizer) for _ in range(count)]
    windows = np.lib.stride_tricks.sliding_window_view(made.train, made.reach)
    places = [int(np.flatnonzero((windows == row).all(axis=1))[0]) for row in found]
    offset = min(places)
    assert sorted(places) == [offset + made.stride * index for index in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_a_function_of_seed_and_step_and_new_at_every_visit(tokenizer, kind):
    made = corpus(tokenizer, kind)
    one, same, other = (data.batches(made, batch_size=4, seed=seed) for seed in (0, 0, 1))
    batch = one.batch_at(5)
    for name, array in batch.items():
        np.testing.assert_array_equal(same.batch_at(5)[name], array)
        shares = [data.batches(made, batch_size=4, seed=0, process_index=i, process_count=2) for i in range(2)]
        np.testing.assert_array_equal(np.concatenate([share.batch_at(5)[name] for share in shares]), array)
    assert any((other.batch_at(5)[name] != array).any() for name, array in batch.items())
    single = dataclasses.replace(
        made, train=made.train[: made.reach]
    )  # a stream of one row, which is visited each time
    drawn = data.batches(single, batch_size=1, seed=0)
    seen = {tuple(array.tobytes() for array in next(drawn).values()) for _ in range(12)}
    assert len(seen) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_always_the_same_and_fills_up_at_weight_zero(tokenizer, kind):
    made = corpus(tokenizer, kind)
    first, again = (list(data.validation_batches(made, batch_size=3)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    real = [row for batch in first for row in rows(batch) if row["weights"].any()]
    assert len(real) == (len(made.validation) - made.reach) // made.stride + 1
    assert len(real) % 3  # so that rows fill up the last batch
    stretches = [original(kind, row, tokenizer) for row in real]
    for index, row in enumerate(stretches):
        np.testing.assert_array_equal(row, made.validation[index * made.stride :][: made.reach])


def test_segments_reach_prefix_and_masked_rows(tokenizer):
    for kind in ("prefix", "masked"):
        batch = data.batches(corpus(tokenizer, kind, segments=True), batch_size=8, seed=0).batch_at(0)
        assert batch["segments"].max() > 0 and (batch["positions"] < 41).all()


def test_masks_spare_the_end_and_follow_the_rate(tokenizer):
    batch = data.batches(corpus(tokenizer, "masked", rate=0.5), batch_size=16, seed=0).batch_at(0)
    chosen = batch["weights"] > 0
    assert not chosen[batch["targets"] == tokenizer.end].any()
    assert (batch["inputs"] == tokenizer.mask).sum() > 0.3 * chosen.size
    assert (chosen.sum(axis=1) >= LENGTH // 2 - 1).all()


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
