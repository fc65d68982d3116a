"""Every family against numbers that the publisher's library computed, on file in `golden.json`.

`oracle_test.py` compares more, and writes the file, where that library is there.
"""

import json

import jax
import numpy as np
import pytest

from tests.interop import cases, digests
from tests.interop.cases import CASES
from transformer import interop
from transformer.interop.families import FAMILIES
from transformer.interop.fields import Fields
from transformer.interop.load import shapes


@pytest.fixture(autouse=True)
def quick_to_compile():
    """Compiling is what takes time here; unoptimised programs round no worse."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """`loaded(name)`: the model of a case, and its parameters."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            cases.write(folder, CASES[name], tensors(CASES[name]))
            made[name] = interop.load(folder)[:2]
        return made[name]

    return make


class Heads:
    """Which of the tensors that tell a model's heads a case has."""

    def __init__(self, case):
        self.case = case

    def __contains__(self, name):
        if "pooler" in name:
            return self.case.architecture.endswith(("Model", "ForPreTraining"))
        if name == "lm_head.weight":
            return not self.case.fields.get("tie_word_embeddings", True)
        return "For" in self.case.architecture

    def same(self, one, other):
        return False


def tensors(case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a case's tensors, as the family's table has them."""
    family = FAMILIES[case.family]
    config = family.read(Fields(case.fields, "case"), Heads(case))
    sizes = shapes(config)
    return {name: row.shape(sizes) for row in family.rows(config, case.fields) for name, _ in row.names(sizes)}


@pytest.mark.parametrize("name", CASES)
def test_every_state_pattern_and_logit_is_theirs(name, loaded):
    case = CASES[name]
    seen = digests.ours(case, *loaded(name))
    digests.close(digests.digest(case, seen), digests.golden(name)["seen"])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.encodes])
def test_greedy_decoding_with_a_cache_gives_their_tokens(name, loaded):
    expected = digests.golden(name)["greedy"]
    np.testing.assert_array_equal(digests.continuation(CASES[name], *loaded(name), digests.LENGTH), expected)
