from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest

from transformer.inspection.explorer import packing


@pytest.mark.parametrize("dtype, kind", [("u8", np.uint8), ("u16", np.uint16), ("i32", np.int32), ("f32", np.float32)])
@pytest.mark.parametrize("shape", [(3, 5), (0,), (), (40, 40)])
def test_bytes_are_little_endian_and_deflated_where_that_is_shorter(dtype, kind, shape):
    array = (np.arange(np.prod(shape, dtype=int)) % 7).reshape(shape).astype(kind)
    packed = json.loads(json.dumps(packing.pack(array, dtype)))
    data = base64.b64decode(packed["b"], validate=True)
    expected = array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert packed["d"] == dtype and packed["s"] == list(shape)
    assert (zlib.decompress(data) if packed.get("z") else data) == expected
    assert len(data) <= len(expected) and packed.get("z", False) == (len(data) < len(expected))
    assert shape != (40, 40) or packed["z"]
    np.testing.assert_array_equal(packing.unpack(packed), array)


def test_what_is_random_is_left_as_it_is_and_undefined_numbers_survive():
    random = np.random.default_rng(0).integers(0, 256, 1000)
    assert "z" not in packing.pack(random, "u8")
    assert np.isnan(packing.unpack(packing.pack(np.array([1.5, np.nan]), "f32"))).tolist() == [False, True]


def test_bits_fill_bytes_from_the_lowest():
    booleans = np.zeros((2, 9), bool)
    booleans[0, [0, 3]], booleans[1, 8] = True, True
    assert packing.unpack(packing.pack_bits(booleans)).tolist() == [[0b1001, 0], [0, 1]]


def test_a_size_is_that_of_the_json():
    value = {"a": packing.pack(np.arange(10), "i32"), "ö": ["\u2028"]}
    assert packing.size(value) == len(json.dumps(value))
