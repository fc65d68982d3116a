"""Both pieces update the cache in place and copy no parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from transformer.decoding import Greedy, loop, rows
from transformer.models.config import Attention, ModelConfig, Stack
from transformer.models.transformer import Transformer


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_rows_are_written_in_place_and_parameters_not_copied():
    model = Transformer(ModelConfig(31, 64, decoder=Stack(depth=2, attention=Attention(heads=2))))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.eval_shape(lambda params: loop.prepare(model, params), shapes)
    state = jax.eval_shape(lambda: rows.idle(model.config, 8, 48, 16))
    banned, key = np.zeros(0, np.int32), jax.eval_shape(lambda: jax.random.key(0))
    prompt = loop.Prompt(np.zeros((1, 8), np.int32), np.ones(1, np.int32))
    admission = rows.Admission(prompt, key, np.zeros(31, bool), np.int32(3))
    cache, blocks = bytes_of((state.cache.key, state.cache.value)), bytes_of(params["decoder"]["blocks"])
    for lowered in (
        rows.admit.lower(model, Greedy(), params, banned, admission, state, 0),
        rows.advance.lower(model, Greedy(), params, banned, state),
    ):
        memory = lowered.compile().memory_analysis()
        assert memory.alias_size_in_bytes >= cache
        # One of two layers' keys and values is laid out anew for its products; another cache would be twice that.
        assert memory.temp_size_in_bytes < 0.6 * min(cache, blocks)
