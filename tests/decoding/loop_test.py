"""The compiled loop updates its cache in place, and casting parameters beforehand changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Greedy, loop
from transformer.models.config import Attention, ModelConfig, Readout, Stack
from transformer.models.transformer import Transformer

TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)


def build(**fields):
    model = Transformer(ModelConfig(31, 16, decoder=Stack(depth=4, attention=Attention(heads=2)), **fields))
    return model, model.init(jax.random.key(0), TOKENS)["params"]


def test_the_loop_holds_one_cache():
    model, params = build()
    choice = loop.Choice(jax.random.key(0), np.zeros(0, np.int32), np.int32(0))
    prompt = loop.Prompt(TOKENS, np.array([6, 3], np.int32))
    state = loop.begin(model, Greedy(), params, prompt, choice, capacity=4096)
    size = state.cache.key.nbytes + state.cache.value.nbytes
    memory = loop.advance.lower(model, Greedy(), params, choice, state, 3).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    # One layer's keys and values are laid out anew for its products; a second cache would be four times that.
    assert memory.temp_size_in_bytes < size / 2


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_cast_beforehand_give_the_same_logits(tied):
    model, params = build(dtype="bfloat16", readout=Readout(tied=tied))
    cast = loop._cast("bfloat16", params)
    assert cast["decoder"]["blocks"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert cast["decoder"]["blocks"]["mlp_norm"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(model.apply({"params": cast}, TOKENS), model.apply({"params": params}, TOKENS))
