"""Methods draw what their formulas say, from logits that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Greedy, MinP, Temperature, TopK, TopP

PROBABILITIES = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
DRAWS = 20_000


def frequencies(method, logits):
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, len(logits)))
    return np.bincount(method(rows, jax.random.key(1)), minlength=len(logits)) / DRAWS


def kept(indices, temperature=1.0):
    weights = np.zeros(5)
    weights[indices] = PROBABILITIES[indices] ** (1 / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Greedy(), kept([1])),
        (Temperature(), PROBABILITIES),
        (Temperature(0.5), kept([0, 1, 2, 3, 4], 0.5)),
        (TopK(2), kept([1, 2])),
        (TopK(3, temperature=2.0), kept([1, 2, 3], 2.0)),
        (TopP(0.6), kept([1, 2])),
        (TopP(0.7), kept([1, 2, 3])),
        (MinP(0.45), kept([1, 2, 3])),
        # At temperature 2 the fourth token would pass a threshold taken afterwards: sqrt(0.1 / 0.4) = 0.5.
        (MinP(0.45, temperature=2.0), kept([1, 2, 3], 2.0)),
        # At temperature 0.5 the two likeliest hold 0.76 of the probability, at temperature 1 only 0.65.
        (TopP(0.7, temperature=0.5), kept([1, 2], 0.5)),
    ],
    ids=str,
)
def test_draws_with_the_probabilities_of_the_formula(method, expected):
    filtered = np.asarray(method.filter(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))), np.float64)
    # Logits of five tokens in float32, two roundings each.
    np.testing.assert_allclose(np.exp(filtered) / np.exp(filtered).sum(), expected, rtol=1e-6)
    found = frequencies(method, np.log(PROBABILITIES))
    deviation = np.sqrt(expected * (1 - expected) / DRAWS)
    assert np.all(found[expected == 0] == 0)
    np.testing.assert_array_less(np.abs(found - expected), 4.5 * deviation + 1e-9)


def test_greedy_keeps_one_of_equals_in_each_row():
    filtered = Greedy().filter(jnp.array([[1.0, 3.0, 3.0], [2.0, -1.0, 0.0]]))
    np.testing.assert_array_equal(filtered, [[-np.inf, 3.0, -np.inf], [2.0, -np.inf, -np.inf]])


@pytest.mark.parametrize("method", [Greedy(), Temperature(0.7), TopK(2), TopP(0.5), MinP(0.5)], ids=str)
def test_equal_methods_are_one_key_of_a_dictionary(method):
    again = type(method)(**vars(method))
    assert method == again
    assert len({method, again}) == 1
    assert method.random == (method != Greedy())


def test_a_whole_number_may_be_numpys():
    np.testing.assert_array_equal(
        TopK(np.int64(2)).filter(jnp.array([1.0, 3.0, 2.0])), TopK(2).filter(jnp.array([1.0, 3.0, 2.0]))
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Temperature(0.0), "temperature=0.0.*Greedy"),
        (lambda: Temperature(float("nan")), "temperature=nan"),
        (lambda: TopK(0), "k=0"),
        (lambda: TopK(2.5), "k=2.5"),
        (lambda: TopK(True), "k=True"),
        (lambda: TopK(3, temperature=-1.0), "temperature=-1.0"),
        (lambda: TopP(0.0), "p=0.0"),
        (lambda: TopP(1.5), "p=1.5"),
        (lambda: TopP(0.5, temperature=float("inf")), "temperature=inf"),
        (lambda: MinP(-0.1), "p=-0.1"),
        (lambda: MinP(0.1, temperature=0.0), "temperature=0.0"),
    ],
)
def test_refuses_parameters_that_cannot_work(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
