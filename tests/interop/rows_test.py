"""Patterns against a loop over every index, in both directions."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.interop import rows
from transformer.interop.rows import Row

SIZES = {"V": 7, "D": 6, "H": 4, "G": 2, "K": 3, "F": 5, "E": 6, "T": 8, "N": 3, "1": 1}
PATTERNS = [
    "V D -> V D",
    "V D -> D V",
    "F D -> D F",
    "(H K) D -> D H K",
    "(G K) D -> D G K",
    "D (H K) -> H K D",
    "(H K) D -> H K D",
    "(H K) -> H K",
    "1 V -> V",
    "D -> D",
]


def row(pattern: str, **options) -> Row:
    return Row("theirs", "ours", pattern, **options)


def axes(pattern: str) -> tuple[list[list[str]], list[str]]:
    left, right = pattern.split(" -> ")
    return [part.strip("()").split() for part in re.findall(r"\([^)]*\)|\S+", left)], right.split()


def by_hand(theirs: np.ndarray, pattern: str) -> np.ndarray:
    """Every number put in its place by itself."""
    groups, letters = axes(pattern)
    ours = np.full([SIZES[letter] for letter in letters], np.nan, np.float32)
    for index in itertools.product(*(range(SIZES[letter]) for letter in letters)):
        place = dict(zip(letters, index, strict=True))
        source = []
        for group in groups:
            flat = 0
            for letter in group:
                flat = flat * SIZES[letter] + place.get(letter, 0)
            source.append(flat)
        ours[index] = theirs[tuple(source)]
    return ours


def example(pattern: str) -> np.ndarray:
    shape = [int(np.prod([SIZES[letter] for letter in group])) for group in axes(pattern)[0]]
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_they_say_in_both_directions(pattern):
    theirs = example(pattern)
    expected = by_hand(theirs, pattern)
    (ours,) = row(pattern).read(theirs, expected.shape)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(row(pattern).write([expected]), theirs)
    assert row(pattern).shape({"ours": expected.shape}) == theirs.shape


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_to_a_target_is_where_reading_puts_it(pattern):
    theirs = example(pattern)
    ours = np.zeros_like(by_hand(theirs, pattern))
    row(pattern).target(ours)[...] = theirs
    np.testing.assert_array_equal(ours, by_hand(theirs, pattern))


@pytest.mark.parametrize("pattern", ["(H N K) D -> N D H K", "D (N H K) -> N D H K", "(N H K) -> N H K"])
def test_several_parameters_in_one_tensor_are_taken_apart_and_joined(pattern):
    paths = ("query", "key", "value")
    table = Row("theirs", paths, pattern)
    theirs = example(pattern)
    expected = by_hand(theirs, pattern)
    ours = table.read(theirs, expected.shape[1:])
    assert len(ours) == 3
    np.testing.assert_array_equal(np.stack(ours), expected)
    np.testing.assert_array_equal(table.write(list(expected)), theirs)
    assert table.shape(dict.fromkeys(paths, expected.shape[1:])) == theirs.shape
    assert table.target(ours[0]) is None


def test_the_layer_is_the_first_axis_of_ours():
    table = Row("h.{}.weight", "blocks/kernel", "F D -> D F")
    sizes = {"blocks/kernel": (3, 6, 5)}
    assert list(table.names(sizes)) == [("h.0.weight", (0,)), ("h.1.weight", (1,)), ("h.2.weight", (2,))]
    assert table.shape(sizes) == (5, 6)
    ours = {"blocks/kernel": np.zeros((3, 6, 5))}
    table.views(ours, (1,))[0][...] = 1
    assert ours["blocks/kernel"].sum(axis=(1, 2)).tolist() == [0, 30, 0]
    assert list(row("V D -> V D").names({"ours": (7, 6)})) == [("theirs", ())]


def test_the_expert_is_the_second_axis_of_ours():
    table = Row("h.{}.e.{}.weight", "blocks/kernel", "F D -> D F")
    sizes = {"blocks/kernel": (2, 3, 6, 5)}
    assert [name for name, _ in table.names(sizes)][2:4] == ["h.0.e.2.weight", "h.1.e.0.weight"]
    assert table.shape(sizes) == (5, 6)
    ours = {"blocks/kernel": np.zeros((2, 3, 6, 5))}
    table.views(ours, (1, 2))[0][...] = 1
    assert ours["blocks/kernel"].sum(axis=(2, 3)).tolist() == [[0, 0, 0], [0, 0, 30]]


def test_a_tensor_that_is_written_owns_its_numbers_in_their_order():
    written = row("F D -> D F").write([np.asfortranarray(by_hand(example("F D -> D F"), "F D -> D F"))])
    assert written.flags.c_contiguous


@given(st.integers(0, 150), st.integers(1, 4), st.booleans(), st.booleans())
@settings(deadline=None)
def test_copying_a_few_rows_at_a_time_copies_them_all(length, width, target_turned, source_turned):
    source = np.arange(length * width, dtype=np.float32).reshape(width, length).T
    source = source if source_turned else np.ascontiguousarray(source)
    target = np.full((width, length), -1, np.float32).T if target_turned else np.full((length, width), -1, np.float32)
    rows.copy(target, source)
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize(
    ("pattern", "bias"),
    [("(H K) D -> D H K", "(H K) -> H K"), ("D (H K) -> H K D", "D -> D"), ("F D -> D F", "F -> F")],
)
def test_a_bias_has_the_axes_of_the_outputs(pattern, bias):
    weight, offset = rows.linear("a.b", "c/d", pattern, bias=True)
    assert weight == Row("a.b.weight", "c/d/kernel", pattern)
    assert offset == Row("a.b.bias", "c/d/bias", bias)
    assert rows.linear("a.b", "c/d", pattern, bias=False) == [weight]


def test_a_norm_has_a_scale_and_perhaps_a_bias():
    scale, bias = Row("a.weight", "c/scale", "D -> D"), Row("a.bias", "c/bias", "D -> D")
    assert rows.norm("a", "c", bias=True) == [scale, bias]
    assert rows.norm("a", "c", bias=False) == [scale]
