from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, ModelConfig, Position, Stack
from transformer.nn import cache as caches

STACK = Stack(3, Attention(4, 2, 6), position=Position("learned"))
DECODER = ModelConfig(11, 8, decoder=STACK, length=10)
BOTH = ModelConfig(11, 8, encoder=STACK, decoder=STACK, length=10)


def test_an_empty_cache_has_room_in_the_compute_dtype():
    cache = caches.empty(ModelConfig(11, 8, decoder=STACK, length=10, dtype="bfloat16"), 2, 7)
    assert cache.key.shape == cache.value.shape == (3, 2, 2, 7, 6)
    assert [array.dtype for array in cache.layer(0)] == [jnp.bfloat16] * 2 and cache.key.dtype.itemsize == 2
    assert cache.capacity == 7
    np.testing.assert_array_equal(cache.length, [0, 0])
    assert cache.cross_key is cache.cross_value is cache.cross_mask is None


def test_with_an_encoder_there_is_room_for_the_source():
    cache = caches.empty(BOTH, 2, 7, 4)
    assert cache.cross_key.shape == cache.cross_value.shape == (3, 2, 2, 4, 6)
    assert cache.cross_mask.shape == (2, 4) and cache.cross_mask.all()


@pytest.mark.parametrize("apart", [False, True])
def test_writing_touches_a_layers_next_slots_alone(apart):
    cache = caches.empty(DECODER, 2, 5).replace(length=jnp.array([1, 3]))
    cache, layer = (cache.apart(), 2) if apart else (cache, jnp.asarray(2))
    key, value = (np.random.default_rng(seed).normal(size=(2, 2, 2, 6)).astype(np.float32) for seed in (0, 1))
    out = cache.write(layer, key, value)
    assert out.capacity == 5
    for index, new in enumerate((key, value)):
        array = np.stack([out.layer(layer)[index] for layer in range(3)])
        expected = np.zeros((3, 2, 5, 2, 6), np.float32)
        expected[2, 0, 1:3], expected[2, 1, 3:5] = new[0], new[1]
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(out.length, [1, 3])


def test_what_does_not_fit_is_dropped_and_overwrites_nothing():
    cache = caches.empty(DECODER, 2, 3).replace(length=jnp.array([2, 3]))
    out = cache.write(jnp.asarray(0), np.ones((2, 2, 2, 6), np.float32), np.ones((2, 2, 2, 6), np.float32))
    np.testing.assert_array_equal(out.key[0, :, 0, :, 0], [[0, 0, 1], [0, 0, 0]])


def test_writing_the_source_fills_a_layer():
    key, value = (np.full((2, 4, 2, 6), fill, np.float32) for fill in (1.0, 2.0))
    out = caches.empty(BOTH, 2, 7, 4).write_source(jnp.asarray(1), key, value)
    np.testing.assert_array_equal(out.cross_key[:, 0, 0, 0, 0], [0, 1, 0])
    np.testing.assert_array_equal(out.source_layer(1)[1], value)
    np.testing.assert_array_equal(out.key, np.zeros_like(out.key))


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (ModelConfig(11, 8, encoder=STACK), (2, 7), "no decoder.*nothing to cache"),
        (DECODER, (2, 11), "length=11 exceeds the model's 10 learned positions"),
        (DECODER, (2, 7, 4), "source_length=4: give it exactly when the model has an encoder"),
        (BOTH, (2, 7), "source_length=None: give it exactly when the model has an encoder"),
    ],
)
def test_a_cache_that_cannot_work_is_refused(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        caches.empty(config, *arguments)
