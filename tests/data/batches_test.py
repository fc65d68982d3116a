"""Batches are a function of (seed, step), cover each epoch once, and weigh each validation token once."""

from __future__ import annotations

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from transformer import data, text
from transformer.data import Corpus, batches, pipeline_speed, validation_batches

LENGTH = 4


def _corpus(train=61, validation=11, *, length=LENGTH, segments=False):
    """Streams that count from 0, so that a token says where it stands; the end token, 256, every 10 tokens."""

    def stream(tokens):
        ids = np.arange(tokens, dtype=np.uint32) + 1000
        return np.where(np.arange(tokens) % 10 == 0, 256, ids) if segments else ids

    return Corpus(stream(train), stream(validation), text.Bytes(), length, segments, counts={}, recipe={})


def _same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype


# Other programs may hold the machine's cores, so no example has a deadline.
unhurried = hypothesis.settings(deadline=None, max_examples=30)

sizes = {
    "tokens": strategies.integers(LENGTH + 1, 80),
    "batch_size": strategies.integers(1, 6),
    "seed": strategies.integers(0, 2**32 - 1),
}


@unhurried
@hypothesis.given(**sizes)
def test_every_row_is_a_stretch_of_the_stream(tokens, batch_size, seed):
    batch = batches(_corpus(tokens), batch_size=batch_size, seed=seed).batch_at(7)
    first = batch["inputs"][:, :1].astype(int)
    np.testing.assert_array_equal(batch["inputs"], first + np.arange(LENGTH))
    np.testing.assert_array_equal(batch["targets"], first + np.arange(1, LENGTH + 1))
    assert batch["weights"].shape == (batch_size, LENGTH)
    assert batch["weights"].all()
    assert batch["targets"].max() < 1000 + tokens


@unhurried
@hypothesis.given(**sizes)
def test_an_epoch_visits_every_row_of_its_grid_once(tokens, batch_size, seed):
    epochs, rows = 3, max(1, tokens // LENGTH - 1)
    endless = batches(_corpus(tokens), batch_size=batch_size, seed=seed)
    needed = -(-epochs * rows // batch_size)
    starts = np.concatenate([batch["inputs"][:, 0] for batch in itertools.islice(endless, needed)]) - 1000
    for epoch in range(epochs):
        visited = np.sort(starts[epoch * rows : (epoch + 1) * rows])
        np.testing.assert_array_equal(visited, visited[0] + LENGTH * np.arange(rows))
        assert 0 <= visited[0] < LENGTH
        assert tokens - (visited[-1] + LENGTH) <= 2 * LENGTH


def test_epochs_differ_in_order_and_in_offset():
    rows = 14
    endless = batches(_corpus(), batch_size=rows, seed=0)
    starts = [next(endless)["inputs"][:, 0] - 1000 for _ in range(20)]
    assert {int(epoch.min()) for epoch in starts} == set(range(LENGTH))
    assert len({tuple(epoch // LENGTH) for epoch in starts}) == 20


def test_resuming_at_a_step_equals_going_on():
    whole = batches(_corpus(), batch_size=5, seed=3)
    expected = list(itertools.islice(whole, 12))
    assert whole.step == 12
    resumed = batches(_corpus(), batch_size=5, seed=3, start=7)
    for batch in expected[7:]:
        _same(next(resumed), batch)
    for step, batch in enumerate(expected):
        _same(resumed.batch_at(step), batch)
    assert resumed.step == 12


def test_a_seed_decides():
    firsts = [batches(_corpus(400), batch_size=8, seed=seed).batch_at(0)["inputs"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(firsts[0], firsts[1])
    assert (firsts[0] != firsts[2]).any()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("segments", [False, True])
def test_the_slices_of_all_processes_are_the_global_batch(count, segments):
    corpus = _corpus(validation=50, segments=segments)
    whole = batches(corpus, batch_size=6, seed=1).batch_at(4)
    parts = [
        batches(corpus, batch_size=6, seed=1, process_index=index, process_count=count).batch_at(4)
        for index in range(count)
    ]
    _same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
    everything = list(validation_batches(corpus, batch_size=6))
    sliced = [
        list(validation_batches(corpus, batch_size=6, process_index=index, process_count=count))
        for index in range(count)
    ]
    for batch, parts in zip(everything, zip(*sliced, strict=True), strict=True):
        _same({name: np.concatenate([part[name] for part in parts]) for name in batch}, batch)


@unhurried
@hypothesis.given(tokens=strategies.integers(2, 60), batch_size=strategies.integers(1, 5))
def test_validation_weighs_every_token_once(tokens, batch_size):
    corpus = _corpus(validation=tokens)
    found = list(validation_batches(corpus, batch_size=batch_size))
    assert len(found) == -(-(tokens - 1) // (batch_size * LENGTH))
    assert all(array.shape == (batch_size, LENGTH) for batch in found for array in batch.values())
    inputs, targets, weights = (
        np.concatenate([batch[name].ravel() for batch in found]) for name in ("inputs", "targets", "weights")
    )
    assert set(weights) <= {0, 1}
    np.testing.assert_array_equal(targets[weights == 1], np.arange(1, tokens) + 1000)
    np.testing.assert_array_equal(inputs[weights == 1], np.arange(tokens - 1) + 1000)


def test_segments_and_positions_come_with_the_batch():
    corpus = _corpus(validation=26, segments=True)
    for batch in (batches(corpus, batch_size=3, seed=0).batch_at(0), next(validation_batches(corpus, batch_size=3))):
        starts = batch["inputs"] == 256
        assert starts.any()
        np.testing.assert_array_equal(batch["segments"], starts.cumsum(1))
        assert not batch["positions"][starts].any()


def test_streams_are_not_written_to():
    corpus = _corpus()
    corpus.train.setflags(write=False)
    batch = batches(corpus, batch_size=2, seed=0).batch_at(0)
    batch["inputs"][:] = 0
    assert (batch["targets"] != 0).all()


def test_speed_counts_tokens():
    pipeline = batches(_corpus(2000), batch_size=8, seed=0, start=3)
    assert pipeline_speed(pipeline, seconds=0.05) > 1000
    assert pipeline.step == 3


@pytest.mark.parametrize(
    "make", [lambda **kw: batches(_corpus(), seed=0, **kw), lambda **kw: next(validation_batches(_corpus(), **kw))]
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be a positive multiple of process_count=1"),
        ({"batch_size": 3, "process_count": 2}, "batch_size=3 must be a positive multiple of process_count=2"),
        ({"batch_size": 2, "process_index": 2, "process_count": 2}, "process_index=2 must lie in"),
        ({"batch_size": 2, "process_count": 0}, "process_index=0 must lie in"),
    ],
)
def test_refuses_impossible_slices(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_refuses_negative_steps_and_seeds():
    with pytest.raises(ValueError, match="start=-1"):
        batches(_corpus(), batch_size=1, seed=0, start=-1)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"seed={seed}"):
            batches(_corpus(), batch_size=1, seed=seed)


@pytest.mark.parametrize(
    ("tokens", "length", "stride", "batch_size"),
    [
        (10, 4, 2, 3),
        (5, 4, 2, 3),
        (4, 8, 3, 2),
        (9, 4, 4, 2),
        (10, 4, 3, 1),
        (2, 4, 1, 1),
        (50, 7, 1, 4),
        (50, 7, 7, 4),
    ],
)
def test_sliding_windows_show_each_token_the_most_of_what_came_before(tokens, length, stride, batch_size):
    stream = np.arange(100, 100 + tokens)
    context = {}
    for batch in data.sliding_batches(stream, length=length, stride=stride, batch_size=batch_size):
        assert batch["inputs"].shape == (batch_size, length)
        for inputs, targets, weights in zip(*(batch[name] for name in ("inputs", "targets", "weights")), strict=True):
            for place in np.flatnonzero(weights):
                assert targets[place] not in context, "counted twice"
                np.testing.assert_array_equal(inputs[: place + 1], np.arange(inputs[0], targets[place]))
                context[targets[place]] = place + 1
    # By hand: token n is predicted from all before it, or from at least length - stride + 1 of them.
    assert sorted(context) == list(range(101, 100 + tokens))
    for token, seen in context.items():
        assert seen == token - 100 if token - 100 <= length else seen >= length - stride + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stride": 0}, "stride=0 must lie between 1 and length=4"),
        ({"stride": 5}, "stride=5 must lie between 1 and length=4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"stream": np.arange(1)}, "the text has 1 tokens"),
    ],
)
def test_sliding_windows_refuse_what_cannot_be(arguments, said):
    with pytest.raises(ValueError, match=said):
        next(data.sliding_batches(**{"stream": np.arange(9), "length": 4, "stride": 2, "batch_size": 1} | arguments))
