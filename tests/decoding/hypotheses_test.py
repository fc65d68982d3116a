"""The compiled search re-orders its own keys and values alone, and ranks as greedy choice does."""

import jax
import jax.numpy as jnp
import numpy as np

from transformer.decoding import hypotheses, loop
from transformer.models.config import Attention, ModelConfig, Stack
from transformer.models.transformer import Transformer

NONE = np.zeros(0, np.int32)


def bytes_of(*arrays):
    return sum(array.size * array.dtype.itemsize for array in arrays)


def test_the_loop_holds_one_cache_and_leaves_the_source_where_it_is():
    layers = Stack(depth=4, attention=Attention(heads=2))
    model = Transformer(ModelConfig(31, 16, layers, layers))
    tokens, source = np.ones((2, 4), np.int32), np.ones((2, 1024), np.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, source=source))["params"]
    options = hypotheses.Search(np.array([1]), np.int32(0), NONE, np.array([5, 5]), np.float32(0), None)
    prompt = loop.Prompt(tokens, np.array([4, 2], np.int32), source, source.astype(bool))
    begin = lambda params: hypotheses.begin(model, params, prompt, options, beams=4, capacity=1024)  # noqa: E731
    state, prepared = jax.eval_shape(begin, params), jax.eval_shape(lambda params: loop.prepare(model, params), params)
    memory = hypotheses.advance.lower(model, prepared, options, state).compile().memory_analysis()
    own = bytes_of(state.cache.key, state.cache.value)
    of_source = bytes_of(state.cache.cross_key, state.cache.cross_value)
    assert memory.alias_size_in_bytes >= own + of_source
    # One layer in its new order, of four; the source laid out once for the products of all steps.
    assert memory.temp_size_in_bytes < own / 2 + of_source


def test_one_beam_sees_differences_that_sums_round_away():
    logits = jnp.asarray([[[1.0, 1.0 + 2e-7, 0.0]]])
    options = hypotheses.Search(NONE, 0, NONE, np.ones(1, int), 0.0, None)
    ranked = hypotheses._ranked(options, logits, jnp.asarray([[-300.0]]))
    assert int(ranked.tokens[0, 0]) == int(jnp.argmax(logits)) == 1
    assert logits[0, 0, 0] - 300 == logits[0, 0, 1] - 300


def test_beams_go_on_however_many_stop_tokens_are_likelier():
    logits = jnp.broadcast_to(-jnp.arange(9.0), (1, 2, 9))
    options = hypotheses.Search(np.arange(3), 0, NONE, np.ones(1, int), 0.0, None)
    ranked = hypotheses._ranked(options, logits, jnp.asarray([[0.0, -100.0]]))
    assert ranked.tokens[0, :5].tolist() == [0, 1, 2, 3, 4]
    assert ranked.beams[0, :5].tolist() == [0] * 5
