from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Init, Mlp, ModelConfig, Norm, Readout, Stack
from transformer.nn.embedding import Embedding, Unembedding

TOKENS = np.array([[1, 0, 10], [3, 3, 7]])


def config(**fields):
    return ModelConfig(11, 8, decoder=Stack(1, mlp=Mlp(activation="relu"), norm=Norm("layer", bias=True)), **fields)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_token_is_its_row():
    table = normal(11, 8)
    out = Embedding(config()).apply({"params": {"table": table}}, TOKENS)
    np.testing.assert_array_equal(out, table[TOKENS])


def test_tokens_are_scaled_and_types_added():
    table, types = normal(11, 8), normal(3, 8, seed=1)
    module, params = Embedding(config(embedding_scale=True, token_types=3)), {"table": table, "types": types}
    kinds = np.array([[0, 1, 2], [2, 2, 0]])
    np.testing.assert_allclose(
        module.apply({"params": params}, TOKENS, kinds), table[TOKENS] * 8**0.5 + types[kinds], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        module.apply({"params": params}, TOKENS), table[TOKENS] * 8**0.5 + types[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("wrong", [-1, -11, 11, 1000])
def test_an_id_outside_the_vocabulary_is_undefined_and_no_other_token(wrong):
    tokens = np.array([[1, wrong, 2]])
    out = Embedding(config()).apply({"params": {"table": normal(11, 8)}}, tokens)
    np.testing.assert_array_equal(np.isnan(out).all(-1), [[False, True, False]])
    types = Embedding(config(token_types=2)).apply(
        {"params": {"table": normal(11, 8), "types": normal(2, 8)}}, np.array([[1, 1, 2]]), np.array([[0, wrong, 1]])
    )
    np.testing.assert_array_equal(np.isnan(types).all(-1), [[False, True, False]])


def test_types_need_a_table():
    with pytest.raises(ValueError, match="token_types were given, but the model has none"):
        Embedding(config()).apply({"params": {"table": normal(11, 8)}}, TOKENS, TOKENS)


def test_tables_start_with_their_own_deviation():
    module = Embedding(ModelConfig(2000, 16, decoder=Stack(1), token_types=500, init=Init(scale=5.0, embedding=0.1)))
    params = module.init(jax.random.key(0), TOKENS)["params"]
    for table in params.values():  # 8,000 draws or more: known to a hundredth
        assert np.std(table) == pytest.approx(0.1, rel=0.05)
    assert not np.array_equal(params["table"][:500], params["types"])


@pytest.mark.parametrize("readout", [Readout(bias=True, softcap=2.0, scale=True), Readout(tied=False, transform=True)])
def test_reading_out_is_its_formula(readout):
    settings = config(readout=readout)
    module, x, table = Unembedding(settings, settings.decoder), normal(2, 3, 8), normal(11, 8, seed=1)
    both = lambda self, x, table: self(self.features(x), table)  # noqa: E731
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, table, method=both))["params"]
    params = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=len(leaf.shape)), shapes)
    out = module.apply({"params": params}, x, table, method=both)

    x = x.astype(np.float64)
    if readout.transform:
        x = np.maximum(x @ params["transform"]["kernel"] + params["transform"]["bias"], 0)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
    x = x / 8**0.5 if readout.scale else x
    logits = x @ (table.T if readout.tied else params["kernel"]) + (params["bias"] if readout.bias else 0)
    logits = logits if readout.softcap is None else readout.softcap * np.tanh(logits / readout.softcap)
    np.testing.assert_allclose(out, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_are_float32_whatever_the_compute_dtype(dtype):
    settings = config(readout=Readout(), dtype=dtype)
    module, table = Unembedding(settings, settings.decoder), normal(11, 8)
    assert module.apply({}, jnp.ones((1, 2, 8), dtype), table).dtype == jnp.float32
    assert Embedding(settings).apply({"params": {"table": table}}, TOKENS).dtype == jnp.dtype(dtype)
