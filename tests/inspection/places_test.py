import numpy as np
import pytest

from transformer.inspection import places

TOKENS = np.array([[3, 1, 3, 3, 1, 2], [0, 0, 0, 1, 0, 0]])
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1], [2, 0, 0, 0, 2, 2]])  # the second row's are not in one piece
PLACES = {
    "first": lambda tokens, segment, t, s: sum(segment[r] == segment[s] for r in range(s)) < 2,
    "previous": lambda tokens, segment, t, s: s == t - 1,
    "duplicates": lambda tokens, segment, t, s: s < t and tokens[s] == tokens[t],
    "successors": lambda tokens, segment, t, s: (
        0 < s <= t and tokens[s - 1] == tokens[t] and segment[s - 1] == segment[t]
    ),
}


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one segment", "segments"])
@pytest.mark.parametrize("name", PLACES)
def test_places_are_those_that_a_loop_finds(name, segments):
    arguments = {"first": (6, segments, 2), "previous": (6, segments)}.get(name, (TOKENS, segments))
    found = getattr(places, name)(*arguments)
    worth, counts = np.broadcast_to(found.worth, (2, 6, 6)), np.broadcast_to(found.counts, (2, 6))
    labels = np.zeros_like(TOKENS) if segments is None else segments
    for b, t, s in np.ndindex(2, 6, 6):
        within = name == "first" or labels[b, s] == labels[b, t]  # the first keys are the same for every query
        assert worth[b, t, s] == (within and PLACES[name](TOKENS[b], labels[b], t, s)), (b, t, s)
    np.testing.assert_array_equal(counts, worth.any(axis=-1))


def test_distances_are_worth_what_they_are():
    worth, counts = places.distances(3)
    np.testing.assert_array_equal(worth[0], [[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    assert counts.all()
