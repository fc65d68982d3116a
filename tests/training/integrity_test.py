import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.training import integrity


def arrays():
    return {
        "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "c": np.ones((), jnp.bfloat16),
        "d": np.zeros(0, np.int32),
    }


def test_a_description_is_json_and_fits_itself():
    described = json.loads(json.dumps(integrity.describe(arrays())))
    assert described["a/b"]["shape"] == [2, 3] and described["c"]["dtype"] == "bfloat16"
    integrity.check_contents(described, arrays())
    integrity.check_structure(described, arrays(), "it")
    integrity.check_structure(described, jax.eval_shape(lambda: arrays()), "it")


def test_order_in_memory_does_not_count_but_every_bit_does():
    described = integrity.describe(arrays())
    integrity.check_contents(described, arrays() | {"a/b": np.asfortranarray(arrays()["a/b"])})
    for bit in range(32):
        flipped = arrays()
        flipped["a/b"].view(np.uint32)[1, 2] ^= np.uint32(1 << bit)
        with pytest.raises(integrity.Damaged, match="a/b is not what was saved"):
            integrity.check_contents(described, flipped)
    with pytest.raises(integrity.Damaged, match=r"arrays are missing: \['d'\]"):
        integrity.check_contents(described, {name: x for name, x in arrays().items() if name != "d"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": np.ones((), np.float32)}, r"c is bfloat16\[\] in the checkpoint, expected float32\[\]"),
        ({"a/b": np.zeros((3, 2), np.float32)}, r"a/b is float32\[2, 3\] in the checkpoint, expected float32\[3, 2\]"),
        ({"e": np.ones(1)}, "e is expected but not in the checkpoint"),
    ],
)
def test_another_structure_names_the_parameter(change, message):
    with pytest.raises(integrity.Mismatch, match=message):
        integrity.check_structure(integrity.describe(arrays()), arrays() | change, "checkpoint 3")
    with pytest.raises(
        integrity.Mismatch, match=r"^checkpoint 3 does not fit: a/b is in the checkpoint but not expected"
    ):
        integrity.check_structure(integrity.describe(arrays()), {}, "checkpoint 3")


def test_the_hash_of_json_ignores_order_only():
    assert integrity.hash_json({"a": 1, "b": [2]}) == integrity.hash_json({"b": [2], "a": 1})
    assert integrity.hash_json({"a": 1}) != integrity.hash_json({"a": 2})
