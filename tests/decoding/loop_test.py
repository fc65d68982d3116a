"""The compiled loop updates its cache in place, and casting parameters beforehand changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Greedy, loop
from transformer.models.config import Attention, ModelConfig, Readout, Stack
from transformer.models.transformer import Transformer

TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)


def build(windows=(), width=16, **fields):
    decoder = Stack(depth=4, attention=Attention(heads=2, windows=windows))
    model = Transformer(ModelConfig(31, width, decoder=decoder, **fields))
    return model, jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]


def compiled(model, params, capacity):
    """The compiled loop's memory, and a state that it would take."""
    choice = loop.Choice(jax.random.key(0), np.zeros(0, np.int32), np.int32(0), np.zeros(0, np.int32))
    prompt = loop.Prompt(TOKENS, np.array([6, 3], np.int32))
    state = jax.eval_shape(lambda: loop.begin(model, Greedy(), params, prompt, choice, capacity=capacity))
    params = jax.eval_shape(lambda: loop.prepare(model, params))
    return loop.advance.lower(model, Greedy(), params, choice, state, 3).compile().memory_analysis(), state


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_the_loop_holds_one_cache():
    memory, state = compiled(*build(), capacity=4096)
    size = bytes_of((state.cache.key, state.cache.value))
    assert memory.alias_size_in_bytes >= size
    # One layer's keys and values are laid out anew for its products; a second cache would be four times that.
    assert memory.temp_size_in_bytes < size / 2


@pytest.mark.parametrize("depth", [24, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("windows", [(), pytest.param((4, 0), marks=pytest.mark.slow)])
def test_the_loop_does_not_copy_all_parameters(monkeypatch, windows, depth):
    monkeypatch.setattr(loop, "UNROLLED_DEPTH", depth)
    loop.prepare.clear_cache(), loop.advance.clear_cache()
    model, params = build(windows, width=128)
    memory, _ = compiled(model, params, capacity=8)
    # The loop over layers copies a period of them out of the stack.
    period = max(1, len(windows)) if depth < 4 else 0
    assert memory.temp_size_in_bytes < (period + 0.5) / 4 * bytes_of(params["decoder"]["blocks"])


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_cast_beforehand_give_the_same_logits(tied):
    model, params = build(dtype="bfloat16", readout=Readout(tied=tied))
    cast = loop._cast("bfloat16", params)
    assert cast["decoder"]["blocks"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert cast["decoder"]["blocks"]["mlp_norm"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(model.apply({"params": cast}, TOKENS), model.apply({"params": params}, TOKENS))
