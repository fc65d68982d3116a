"""Routing against loops over tokens, and its losses against closed forms and float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import routing

T, N = 6, 4
LOGITS = np.random.default_rng(0).normal(0, 2, (T, N)).astype(np.float32)


def softmax(x):
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("active", [1, 2, N])
def test_a_token_uses_the_experts_of_the_highest_logits(active):
    order = np.argsort(-LOGITS, axis=-1)[:, :active]
    every = np.take_along_axis(softmax(LOGITS.astype(np.float64)), order, axis=-1)
    for normalize, expected in ((False, every), (True, every / every.sum(axis=-1, keepdims=True))):
        found = routing.choose(LOGITS, active, normalize)
        np.testing.assert_array_equal(found.experts, order)
        np.testing.assert_allclose(found.weights, expected, rtol=1e-5)
    assert (every.sum(axis=-1) < 0.999).any() == (active < N)


def test_of_equal_experts_the_first_are_used_and_large_logits_overflow_nothing():
    found = routing.choose(jnp.asarray([[1e4, 1e4, 1e4], [-1e4, 0, 1e4]]), 2, False)
    np.testing.assert_array_equal(found.experts, [[0, 1], [2, 1]])
    np.testing.assert_allclose(found.weights, [[1 / 3, 1 / 3], [1, 0]], rtol=1e-6)


def moved(x, plan, active):
    """Rows by hand: what each holds, and who gets it back."""
    rows = [x[number // active] if number < len(plan.places) else 0 * x[0] for number in np.asarray(plan.rows)]
    back = [rows[place] if place < len(rows) else 0 * x[0] for place in np.asarray(plan.places)]
    return np.stack(rows), np.stack(back).reshape(len(x), active, -1)


@pytest.mark.parametrize("active", [1, 3])
def test_without_bounds_every_assignment_has_a_row_expert_by_expert(active):
    experts = routing.choose(LOGITS, active, True).experts
    plan, sizes = routing.dropless(experts, N)
    flat = np.asarray(experts).reshape(-1)
    np.testing.assert_array_equal(sizes, [np.sum(flat == expert) for expert in range(N)])
    np.testing.assert_array_equal(plan.rows, [n for expert in range(N) for n in np.flatnonzero(flat == expert)])
    np.testing.assert_array_equal(np.asarray(plan.rows)[plan.places], np.arange(T * active))


@pytest.mark.parametrize("real", [None, (0, 1, 1, 1, 0, 1)])
@pytest.mark.parametrize(("active", "capacity"), [(1, 1), (2, 2), (3, 3)])
def test_with_bounds_assignments_come_in_order_until_an_expert_is_full(active, capacity, real):
    experts = np.asarray(routing.choose(LOGITS, active, True).experts)
    plan = routing.limited(jnp.asarray(experts), N, capacity, None if real is None else jnp.asarray(real, bool))
    rows, places, used = np.full(N * capacity, T * active), np.full(T * active, N * capacity), np.zeros(N, int)
    for number, expert in enumerate(experts.reshape(-1)):
        if (real is None or real[number // active]) and used[expert] < capacity:
            places[number] = expert * capacity + used[expert]
            rows[places[number]] = number
            used[expert] += 1
    np.testing.assert_array_equal(plan.rows, rows)
    np.testing.assert_array_equal(plan.places, places)
    assert (places == N * capacity).any() and (rows < T * active).any()


@pytest.mark.parametrize("capacity", [None, 2])
def test_tokens_go_to_their_rows_and_back_and_gradients_the_other_way(capacity):
    active, draw = 2, np.random.default_rng(1)
    experts = routing.choose(LOGITS, active, True).experts
    plan = routing.dropless(experts, N)[0] if capacity is None else routing.limited(experts, N, capacity)
    x = jnp.asarray(draw.normal(size=(T, 3)), jnp.float32)
    rows, back = moved(np.asarray(x), plan, active)
    there, gradient_of_x = jax.vjp(lambda x: routing.dispatch(x, plan, active), x)
    again, gradient_of_rows = jax.vjp(lambda rows: routing.collect(rows, plan, active), there)
    np.testing.assert_array_equal(there, rows)
    np.testing.assert_array_equal(again, back)
    # Both are linear, so a transpose is what gives the same products: (A x, y) = (x, A' y).
    for given, found, pull in ((x, there, gradient_of_x), (there, again, gradient_of_rows)):
        y = jnp.asarray(draw.normal(size=found.shape), jnp.float32)
        np.testing.assert_allclose(np.sum(found * y), np.sum(given * pull(y)[0]), rtol=1e-5)


def balance_by_hand(logits, active, tokens):
    probabilities, used = softmax(logits), np.zeros(logits.shape[-1])
    for row, weight in zip(logits, tokens, strict=True):
        used[np.argsort(-row)[:active]] += weight / active
    return logits.shape[-1] * np.sum(used * (tokens @ probabilities)) / tokens.sum() ** 2


@pytest.mark.parametrize("active", [1, 2])
def test_balance_is_its_formula_in_value_and_gradient(active):
    tokens = np.asarray([1, 0, 1, 0.5, 1, 1])
    value, slope = jax.value_and_grad(lambda x: routing.balance(x, active, tokens))(jnp.asarray(LOGITS))
    exact = LOGITS.astype(np.float64)
    np.testing.assert_allclose(value, balance_by_hand(exact, active, tokens), rtol=1e-5)
    way = np.random.default_rng(2).normal(size=exact.shape)
    ends = [balance_by_hand(exact + step * way, active, tokens) for step in (1e-6, -1e-6)]
    np.testing.assert_allclose(np.sum(slope * way), (ends[0] - ends[1]) / 2e-6, rtol=1e-4)
    np.testing.assert_array_equal(slope[1], 0)  # a token that does not count


def test_balance_is_one_where_experts_are_used_alike_and_the_number_of_idle_ones_shows():
    turns = 30.0 * np.eye(N)[np.arange(8) % N]
    assert routing.balance(turns, 1, np.ones(8)) == pytest.approx(1)
    assert routing.balance(np.tile([50.0, 50, 0, 0], (8, 1)), 2, np.ones(8)) == pytest.approx(N / 2)
    assert routing.balance(np.tile([50.0, 0, 0, 0], (8, 1)), 1, np.ones(8)) == pytest.approx(N)
    assert routing.balance(turns, 1, np.zeros(8)) == 0


def test_router_z_is_the_mean_of_squared_normalisers():
    tokens = np.asarray([1, 0, 1, 0.5, 1, 1])
    expected = tokens @ np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=-1)) ** 2 / tokens.sum()
    np.testing.assert_allclose(routing.router_z(LOGITS, tokens), expected, rtol=1e-5)
    assert routing.router_z(LOGITS, 0 * tokens) == 0


@pytest.mark.parametrize("real", [None, (0, 1, 1, 1, 1, 1)])
def test_what_is_dropped_is_the_share_without_a_row(real):
    tokens, active, capacity = np.asarray([0, 1, 1, 1, 0, 1.0]), 2, 2
    real = None if real is None else jnp.asarray(real, bool)
    plan = routing.limited(routing.choose(LOGITS, active, True).experts, N, capacity, real)
    late = (np.asarray(plan.places) == N * capacity).reshape(T, active).mean(axis=-1)
    found = routing.dropped(jnp.tile(LOGITS, (3, 2, 1, 1)), active, capacity, jnp.asarray(tokens), real)
    np.testing.assert_allclose(found, np.full((3, 2), tokens @ late / tokens.sum()), rtol=1e-6)
    assert 0 < found[0, 0] < 1
