"""Every family against numbers that the publisher's library computed, on file in `golden.json`.

`oracle_test.py` compares more, and writes the file, where that library is there.
"""

import numpy as np
import pytest

from tests.interop import digests, folders
from tests.interop.cases import CASES
from transformer import interop


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """`loaded(name)`: the model of a case, and its parameters."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = interop.load(folders.write(tmp_path_factory.mktemp(name), name))[:2]
        return made[name]

    return make


@pytest.mark.parametrize("name", CASES)
def test_every_state_pattern_and_logit_is_theirs(name, loaded):
    case = CASES[name]
    seen = digests.ours(case, *loaded(name))
    digests.close(digests.digest(case, seen), digests.golden(name)["seen"])


# Variants of a family differ in what the forward pass above sees.
GREEDY = [
    pytest.param(name, marks=pytest.mark.slow if "-" in name else ())
    for name, case in CASES.items()
    if not case.encodes
]


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_decoding_with_a_cache_gives_their_tokens(name, loaded):
    expected = digests.golden(name)["greedy"]
    np.testing.assert_array_equal(digests.continuation(CASES[name], *loaded(name), digests.LENGTH), expected)
