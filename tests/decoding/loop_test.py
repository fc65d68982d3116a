"""The compiled loop updates its cache in place, and casting parameters beforehand changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Greedy, beam_search, generate, loop, prepare
from transformer.models import Experts, Mlp
from transformer.models.config import Attention, ModelConfig, Readout, Stack
from transformer.models.transformer import Transformer
from transformer.nn import cache as caches

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


KINDS = {
    "plain": {"mlp": Mlp(width=24)},
    "grouped, gated, no biases": {"attention": Attention(heads=4, kv_heads=2, bias=False), "mlp": Mlp(20, gated=True)},
    "experts": {"mlp": Mlp(width=24, experts=Experts(count=4, active=2))},
    "cross-attention": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_parameters_compute_the_same(kind):
    decoder = Stack(**{"depth": 3, "attention": Attention(heads=2), **KINDS[kind]})
    source = TOKENS if kind == "cross-attention" else None
    config = ModelConfig(31, 16, encoder=None if source is None else decoder, decoder=decoder)
    model, length = Transformer(config), TOKENS.shape[1]
    params = jax.jit(model.init)(jax.random.key(0), TOKENS, source=source)["params"]
    prepared = loop.prepare(model, params)
    blocks = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(prepared["decoder"]["blocks"][0])]
    assert blocks.count("turned") >= 4 and ("kernel" in blocks) == (kind == "experts")  # whose matrices stay

    @jax.jit
    def logits(params):
        cache = caches.empty(config, len(TOKENS), length, None if source is None else length)
        variables = {"params": loop.joined(params)}
        return loop.unrolled(model).apply(variables, TOKENS, source=source, cache=cache)[0]

    np.testing.assert_allclose(logits(prepared), logits(params), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_cast_beforehand_give_the_same_logits(tied):
    model, params = build(dtype="bfloat16", readout=Readout(tied=tied))
    cast = loop._cast("bfloat16", params)
    assert cast["decoder"]["blocks"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert cast["decoder"]["blocks"]["mlp_norm"]["scale"].dtype == jnp.float32
    logits = jax.jit(lambda params: model.apply({"params": params}, TOKENS))
    np.testing.assert_array_equal(logits(cast), logits(params))


@pytest.mark.parametrize("kind", ["plain", pytest.param("experts", marks=pytest.mark.slow), "cross-attention"])
def test_parameters_prepared_once_write_the_same(kind):
    decoder = Stack(**{"depth": 2, "attention": Attention(heads=2), **KINDS[kind]})
    crosses = kind == "cross-attention"
    model = Transformer(ModelConfig(31, 16, encoder=decoder if crosses else None, decoder=decoder))
    source = {"source": TOKENS} if crosses else {}
    params = jax.jit(model.init)(jax.random.key(0), TOKENS, **source)["params"]
    prepared = prepare(model, params)
    jax.tree.map(np.testing.assert_array_equal, prepare(model, prepared), prepared)
    ways = [generate]
    if kind == "plain":
        ways.append(lambda *given, **more: beam_search(*given, beams=2, **more).tokens)
    for write in ways:
        expected, found = (write(model, these, TOKENS, length=5, **source) for these in (params, prepared))
        np.testing.assert_array_equal(found, expected)


def test_the_caches_layers_are_apart_where_layers_are_no_loop(monkeypatch):
    prompt = loop.Prompt(TOKENS, np.array([6, 3], np.int32))
    choice = loop.Choice(jax.random.key(0), np.zeros(0, np.int32), np.int32(0), np.zeros(0, np.int32))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for depth, apart in ((24, True), (2, False)):
        monkeypatch.setattr(loop, "UNROLLED_DEPTH", depth)
        loop.begin.clear_cache()
        model, params = build()
        state = jax.eval_shape(lambda: loop.begin(model, Greedy(), params, prompt, choice, capacity=16))  # noqa: B023
        assert isinstance(state.cache.key, tuple) == apart and state.cache.capacity == 16
    loop.begin.clear_cache()
