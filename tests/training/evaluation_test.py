import math

import numpy as np
import pytest

from transformer.training import evaluation


def step(params, batch):
    return {"nats": np.float32(params * batch.sum()), "count": np.float32(len(batch))}


def test_every_token_weighs_the_same_and_is_seen_once():
    random = np.random.default_rng(0)
    batches = [random.uniform(size=size).astype(np.float32) for size in (5, 1, 8, *[3] * 70)]
    tokens = np.concatenate(batches).astype(np.float64)
    result = evaluation.evaluate(step, 2.0, iter(batches), bytes=1000)
    assert result["tokens"] == len(tokens)
    assert result["loss"] == pytest.approx(2 * tokens.mean(), rel=1e-6)
    assert result["perplexity"] == pytest.approx(np.exp(2 * tokens.mean()), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(2 * tokens.sum() / np.log(2) / 1000, rel=1e-6)


def test_sums_do_not_lose_small_batches_beside_large_ones():
    sums = [{"nats": np.float32(2**24), "count": np.float32(2**24)}] + [
        {"nats": np.float32(1), "count": np.float32(1)}
    ] * 9
    result = evaluation.evaluate(lambda _, batch: batch, None, sums)
    assert result["tokens"] == 2**24 + 9


def test_without_bytes_there_are_no_bits_per_byte_and_perplexity_may_overflow():
    result = evaluation.evaluate(lambda _, batch: batch, None, [{"nats": 1e4, "count": 1.0}])
    assert result == {"loss": 1e4, "perplexity": math.inf, "tokens": 1.0}


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="nothing to evaluate: 0 batches"):
        evaluation.evaluate(step, 1.0, [])
    with pytest.raises(ValueError, match="nothing to evaluate: 1 batches"):
        evaluation.evaluate(lambda _, batch: batch, None, [{"nats": 0.0, "count": 0.0}])
    with pytest.raises(ValueError, match="bytes=0"):
        evaluation.evaluate(step, 1.0, [np.ones(1)], bytes=0)
