"""Prefix language models: what sees what; and that cross-attention sees all of a source and none of its padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, Init, ModelConfig, Position, Stack
from transformer.models.transformer import Transformer
from transformer.nn import cache as caches
from transformer.nn.tap import Patch, Tap

VOCAB, LENGTH = 13, 6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (1, LENGTH))
PREFIX = np.array([[True, True, True, False, False, False]])
INIT = Init(scale=0.3, embedding=1.0, output=1.0)


def build(lively, windows=(), kind="rotary", encoder=None):
    stack = Stack(2, Attention(2, windows=windows), mlp=None, position=Position(kind))
    config = ModelConfig(VOCAB, 8, encoder=encoder and stack, decoder=stack, length=16, init=INIT)
    model = Transformer(config)
    return model, lively(model, TOKENS, **({"source": TOKENS} if encoder else {}))


def influence(model, params, quick, role="decoder", **arguments):
    """`[T, S]` booleans: whether a logit at t has a gradient with respect to its embedding at s."""
    reader = np.random.default_rng(1).normal(size=VOCAB)

    def read(nudge):
        tap = Tap((), [Patch(f"{role}/embedding", nudge, mode="add")])
        return model.apply({"params": params}, TOKENS, tap=tap, **arguments)[0] @ reader

    jacobian = quick(jax.jacrev(read))(jnp.zeros((1, LENGTH, 8)))  # [T, 1, S, D]
    return np.any(jacobian != 0, axis=(1, 3))


@pytest.mark.parametrize(("windows", "kind"), [((0, 2), "rotary"), ((), "alibi"), ((), "relative")])
def test_a_prefix_is_seen_from_everywhere_and_the_rest_from_later_on(windows, kind, lively, quick):
    model, params = build(lively, windows, kind)
    behind, reach = np.arange(LENGTH)[:, None] - np.arange(LENGTH), np.eye(LENGTH, dtype=int)
    for width in windows or (0, 0):
        near = behind < (width or LENGTH)
        reach = ((near & ((behind >= 0) | PREFIX)).astype(int) @ reach > 0).astype(int)
    np.testing.assert_array_equal(influence(model, params, quick, prefix=PREFIX), reach > 0)
    assert reach[0, 2] and not reach[0, 3]  # the first token sees the end of the prefix and nothing behind it


def test_a_prefix_is_that_of_its_own_document(lively, quick):
    model, params = build(lively)
    segments = np.array([[1, 1, 1, 2, 2, 2]])
    prefix = np.array([[True, True, False, True, True, False]])
    seen = influence(model, params, quick, prefix=prefix, segments=segments)
    np.testing.assert_array_equal(seen, np.kron(np.eye(2), [[1, 1, 0], [1, 1, 0], [1, 1, 1]]) > 0)


def test_without_a_prefix_a_model_is_causal(lively, quick):
    model, params = build(lively)
    seen = influence(model, params, quick, prefix=np.zeros_like(PREFIX))
    np.testing.assert_array_equal(seen, np.tri(LENGTH) > 0)


def test_a_prefix_may_be_read_into_a_cache_and_followed_token_by_token(lively, quick):
    model, params = build(lively)
    whole = model.apply({"params": params}, TOKENS, prefix=PREFIX)
    cache = caches.empty(model.config, 1, 8)
    logits, cache = model.apply({"params": params}, TOKENS[:, :3], cache=cache, prefix=PREFIX[:, :3])
    pieces = [logits]
    step = quick(lambda token, cache: model.apply({"params": params}, token, cache=cache))
    for place in range(3, LENGTH):
        logits, cache = step(TOKENS[:, place : place + 1], cache)
        pieces.append(logits)
    # Logits are of order 1, and float32 rounds each of a few dozen sums in a row to 6e-8 of its size.
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=2e-4, atol=2e-4)


def test_cross_attention_sees_all_of_the_source_and_no_padding(lively, quick):
    model, params = build(lively, encoder=True)
    mask = np.array([[True, True, True, True, False, False]])
    seen = influence(model, params, quick, "encoder", source=TOKENS, source_mask=mask)
    np.testing.assert_array_equal(seen, np.broadcast_to(mask, (LENGTH, LENGTH)))


def test_a_prefix_that_fits_nothing_is_refused(lively):
    model, params = build(lively)
    with pytest.raises(ValueError, match="prefix of tokens has shape"):
        model.apply({"params": params}, TOKENS, prefix=PREFIX[:, :3])
    encoder = Transformer(ModelConfig(VOCAB, 8, encoder=Stack(1, Attention(2)), length=16))
    with pytest.raises(ValueError, match="an encoder alone sees everything"):
        encoder.init(jax.random.key(0), TOKENS, prefix=PREFIX)
