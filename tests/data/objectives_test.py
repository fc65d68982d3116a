"""Rows of ids to examples, against worked examples and a loop over tokens."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from transformer.data import causal

END = 9


def test_a_worked_example():
    example = causal(np.array([4, 9, 5, 6, 9, 7], np.uint16), end=END, segments=True)
    expected = {
        "inputs": [4, 9, 5, 6, 9],
        "targets": [9, 5, 6, 9, 7],
        "weights": [1, 1, 1, 1, 1],
        "segments": [0, 1, 1, 1, 2],
        "positions": [0, 0, 1, 2, 0],
    }
    assert {name: array.tolist() for name, array in example.items()} == expected
    kinds = {name: array.dtype.name for name, array in example.items()}
    assert kinds.pop("weights") == "float32"
    assert set(kinds.values()) == {"int32"}


def test_without_segments_there_are_three_arrays():
    assert set(causal(np.arange(4), end=END)) == {"inputs", "targets", "weights"}


rows = strategies.integers(1, 12).flatmap(
    lambda length: strategies.lists(
        strategies.lists(strategies.integers(0, END), min_size=length + 1, max_size=length + 1), min_size=1, max_size=4
    )
)


@hypothesis.settings(deadline=None)
@hypothesis.given(rows)
def test_a_row_can_be_rebuilt_and_its_documents_told_apart(drawn):
    row = np.array(drawn)
    example = causal(row, end=END, segments=True)
    np.testing.assert_array_equal(np.concatenate([example["inputs"], example["targets"][:, -1:]], axis=1), row)
    for tokens, segments, positions in zip(row, example["segments"], example["positions"], strict=True):
        segment, position = 0, -1
        for index, token in enumerate(tokens[:-1]):
            starts = token == END
            segment, position = segment + starts, 0 if starts else position + 1
            assert (segments[index], positions[index]) == (segment, position)


def test_every_real_token_is_predicted_from_its_own_document():
    example = causal(np.array([9, 1, 2, 9, 3, 9, 4]), end=END, segments=True)
    owner = {1: 1, 2: 1, 3: 2, 4: 3}
    predicted = {
        int(target): int(segment)
        for target, segment, weight in zip(example["targets"], example["segments"], example["weights"], strict=True)
        if target != END and weight == 1
    }
    assert predicted == owner


def test_refuses_a_row_without_a_target():
    with pytest.raises(ValueError, match=r"row has shape \(2, 1\).*at least two tokens"):
        causal(np.zeros((2, 1), np.int32))


def test_refuses_segments_without_an_end():
    with pytest.raises(ValueError, match="segments=True needs end"):
        causal(np.arange(4), segments=True)
