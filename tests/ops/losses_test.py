from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import losses

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 5, 8, 23
SETTINGS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "smoothing": {"smoothing": 0.1},
    "z_loss": {"z_loss": 0.05},
    "all": {"scale": 0.7, "softcap": 3.0, "smoothing": 0.2, "z_loss": 0.01},
}


def example(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(BATCH, LENGTH, WIDTH)), dtype)
    kernel = jnp.asarray(rng.normal(size=(WIDTH, VOCABULARY)), dtype)
    bias = jnp.asarray(rng.normal(size=VOCABULARY), dtype)
    targets = jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, LENGTH)))
    weights = jnp.asarray(rng.choice([0.0, 0.5, 1.0], (BATCH, LENGTH)), jnp.float32)
    return hidden, kernel, bias, targets, weights


def by_loops(logits, targets, weights, smoothing=0.0, z_loss=0.0):
    """Cross-entropy with the smoothed distribution itself, position by position in float64."""
    total, count, nats = 0.0, 0.0, 0.0
    logits = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])
    for row, target, weight in zip(logits, np.ravel(targets), np.ravel(weights), strict=True):
        normaliser = math.log(sum(math.exp(x - row.max()) for x in row)) + row.max()
        aim = np.full(len(row), smoothing / len(row))
        aim[target] += 1 - smoothing
        total += weight * (-(aim * (row - normaliser)).sum() + z_loss * normaliser**2)
        count += weight
        nats += weight * (normaliser - row[target])
    return total, count, nats


def whole_logits(hidden, kernel, bias, scale=1.0, softcap=None):
    hidden, kernel, bias = (x.astype(jnp.float32) for x in (hidden, kernel, bias))
    logits = scale * hidden @ kernel + bias
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def whole(hidden, kernel, bias, targets, weights, *, smoothing=0.0, z_loss=0.0, **readout):
    """The loss from all logits at once, with nothing taken from the module under test."""
    logits = whole_logits(hidden, kernel, bias, **readout)
    log_probabilities = jax.nn.log_softmax(logits)
    aim = (1 - smoothing) * jax.nn.one_hot(targets, VOCABULARY) + smoothing / VOCABULARY
    squared = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return jnp.sum(weights * (-jnp.sum(aim * log_probabilities, axis=-1) + z_loss * squared))


def shapes_within(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "shape", ())
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes_within(inner)


# Plain


@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.05), (0.3, 0.01)])
def test_cross_entropy_is_the_formula(smoothing, z_loss):
    hidden, kernel, bias, targets, weights = example()
    logits = whole_logits(hidden, kernel, bias)
    actual = losses.cross_entropy(logits, targets, weights, smoothing=smoothing, z_loss=z_loss)
    np.testing.assert_allclose(actual, by_loops(logits, targets, weights, smoothing, z_loss), rtol=1e-5)
    assert all(part.dtype == jnp.float32 and part.shape == () for part in actual)


def test_without_weights_every_position_counts_once():
    hidden, kernel, bias, targets, _ = example()
    logits = whole_logits(hidden, kernel, bias)
    actual = losses.cross_entropy(logits, targets)
    np.testing.assert_allclose(actual, by_loops(logits, targets, np.ones(targets.shape)), rtol=1e-5)
    assert actual.count == BATCH * LENGTH


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    actual = losses.cross_entropy(jnp.full((3, 50), 7.0), jnp.asarray([0, 20, 49]))
    np.testing.assert_allclose(actual.nats / actual.count, math.log(50), rtol=1e-6)


def test_nats_are_free_of_smoothing_and_z_loss():
    hidden, kernel, bias, targets, weights = example()
    logits = whole_logits(hidden, kernel, bias)
    plain = losses.cross_entropy(logits, targets, weights)
    trained = losses.cross_entropy(logits, targets, weights, smoothing=0.2, z_loss=0.1)
    assert plain.sum == plain.nats == trained.nats
    assert trained.sum > plain.sum * 1.01


def test_the_gradient_is_softmax_minus_target():
    hidden, kernel, bias, targets, weights = example()
    logits = whole_logits(hidden, kernel, bias)
    actual = jax.grad(lambda x: losses.cross_entropy(x, targets, weights).sum)(logits)
    exponentials = np.exp(np.asarray(logits, np.float64))
    expected = exponentials / exponentials.sum(-1, keepdims=True) - np.eye(VOCABULARY)[np.asarray(targets)]
    np.testing.assert_allclose(actual, expected * np.asarray(weights)[..., None], atol=1e-6)


def test_smoothing_is_least_at_the_smoothed_distribution():
    smoothing, target = 0.2, 3
    aim = np.full(10, smoothing / 10)
    aim[target] += 1 - smoothing
    slope = jax.grad(lambda x: losses.cross_entropy(x, jnp.asarray(target), smoothing=smoothing).sum)
    np.testing.assert_allclose(slope(jnp.log(jnp.asarray(aim))), 0.0, atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1000)), jnp.bfloat16)
    targets = jnp.asarray([1, 2, 3, 999])
    actual = losses.cross_entropy(logits, targets)
    np.testing.assert_allclose(actual, by_loops(logits, targets, np.ones(4)), rtol=1e-5)


def test_huge_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-3e4, -3e4, -3e4]])
    actual = losses.cross_entropy(logits, jnp.asarray([1, 2]))
    np.testing.assert_allclose(actual.sum, 2e4 + math.log(3), rtol=1e-6)


# Chunked


@pytest.mark.parametrize("chunk", [1, 5, 22, 23, 100])
def test_chunks_of_any_size_have_the_value_and_gradients_of_the_whole(chunk):
    check_against_whole(SETTINGS["all"], chunk)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_the_value_and_gradients_of_the_whole(name):
    check_against_whole(SETTINGS[name], chunk=8)
    if name != "plain":
        hidden, kernel, bias, targets, weights = example()
        switched_off = losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=bias, chunk=8).sum
        assert abs(switched_off - whole(*example(), **SETTINGS[name])) > 0.1


def check_against_whole(setting, chunk):
    hidden, kernel, bias, targets, weights = example()

    def chunked(hidden, kernel, bias):
        return losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=bias, chunk=chunk, **setting).sum

    def reference(hidden, kernel, bias):
        return whole(hidden, kernel, bias, targets, weights, **setting)

    value, gradients = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1, 2)))(hidden, kernel, bias)
    expected, expected_gradients = jax.value_and_grad(reference, argnums=(0, 1, 2))(hidden, kernel, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert jnp.abs(wanted).max() > 0.1
        np.testing.assert_allclose(gradient, wanted, atol=2e-5)  # sums of 23 float32 products near 1


def test_every_sum_of_chunks_matches_the_loops():
    hidden, kernel, bias, targets, weights = example()
    setting = {"smoothing": 0.1, "z_loss": 0.05}
    actual = losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=bias, chunk=7, **setting)
    logits = whole_logits(hidden, kernel, bias)
    np.testing.assert_allclose(actual, by_loops(logits, targets, weights, **setting), rtol=1e-5)


def test_gradients_flow_through_nats_too():
    hidden, kernel, _, targets, weights = example()
    actual = jax.grad(lambda k: losses.chunked_cross_entropy(hidden, k, targets, weights, chunk=7, z_loss=1.0).nats)(
        kernel
    )
    expected = jax.grad(lambda k: whole(hidden, k, jnp.zeros(VOCABULARY), targets, weights))(kernel)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_without_bias_or_weights():
    hidden, kernel, bias, targets, weights = example()
    actual = losses.chunked_cross_entropy(hidden, kernel, targets, chunk=7)
    expected = whole(hidden, kernel, jnp.zeros_like(bias), targets, jnp.ones_like(weights))
    np.testing.assert_allclose(actual.sum, expected, rtol=1e-5)
    assert actual.count == BATCH * LENGTH


def test_bfloat16_in_gives_bfloat16_gradients_near_the_exact_ones():
    hidden, kernel, bias, targets, weights = example(jnp.bfloat16)

    def chunked(hidden, kernel, bias):
        return losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=bias, chunk=5, softcap=3.0).sum

    value, gradients = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1, 2)))(hidden, kernel, bias)
    exact = [x.astype(jnp.float32) for x in (hidden, kernel, bias)]
    expected, wanted = jax.value_and_grad(lambda h, k, b: whole(h, k, b, targets, weights, softcap=3.0), (0, 1, 2))(
        *exact
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # bfloat16 products added in float32 are exact
    for gradient, reference in zip(gradients, wanted, strict=True):
        assert gradient.dtype == jnp.bfloat16
        # Two roundings to 8 bits, of the logits' gradients and of the result.
        np.testing.assert_allclose(
            gradient.astype(jnp.float32), reference, atol=2**-7 * float(jnp.abs(reference).max())
        )


def test_mixed_dtypes_multiply_in_float32():
    hidden, kernel, bias, targets, weights = example()
    hidden = hidden.astype(jnp.bfloat16)
    actual = losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=bias, chunk=5).sum
    np.testing.assert_allclose(actual, whole(hidden, kernel, bias, targets, weights), rtol=1e-5)


def test_tokens_ruled_out_by_the_bias_have_no_probability():
    hidden, kernel, bias, targets, weights = example()
    allowed = jnp.arange(VOCABULARY) >= 10  # with chunks of 5 the first two are ruled out whole
    targets = jnp.maximum(targets, 10)

    def loss(kernel):
        ruled = jnp.where(allowed, bias, -jnp.inf)
        return losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=ruled, chunk=5).sum

    value, gradient = jax.value_and_grad(loss)(kernel)
    logits = whole_logits(hidden, kernel, bias)[..., 10:]
    np.testing.assert_allclose(value, by_loops(logits, targets - 10, weights)[0], rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert (gradient[:, :10] == 0).all() and (gradient[:, 10:] != 0).any()


def test_the_logits_of_all_positions_and_tokens_never_exist_at_once():
    positions, width, vocabulary, chunk = 96, 4, 1000, 64
    hidden, kernel = jnp.ones((positions, width)), jnp.ones((width, vocabulary))
    targets = jnp.zeros(positions, jnp.int32)

    def chunked(hidden, kernel):
        return losses.chunked_cross_entropy(hidden, kernel, targets, chunk=chunk, smoothing=0.1, z_loss=0.1).sum

    def plain(hidden, kernel):
        return losses.cross_entropy(hidden @ kernel, targets, smoothing=0.1, z_loss=0.1).sum

    largest, scratch = {}, {}
    for function in (chunked, plain):
        step = jax.value_and_grad(function, argnums=(0, 1))
        largest[function] = max(math.prod(shape) for shape in shapes_within(jax.make_jaxpr(step)(hidden, kernel).jaxpr))
        scratch[function] = jax.jit(step).lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes
    logits = positions * vocabulary
    assert largest[plain] == logits and scratch[plain] >= 4 * logits
    assert largest[chunked] == positions * chunk
    assert scratch[chunked] < 4 * logits / 2


# What both do with targets and arguments


def run_plain(targets, weights=None, **setting):
    hidden, kernel, bias, _, _ = example()
    return lambda hidden: losses.cross_entropy(whole_logits(hidden, kernel, bias), targets, weights, **setting), hidden


def run_chunked(targets, weights=None, **setting):
    hidden, kernel, bias, _, _ = example()
    return (
        lambda hidden: losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=bias, chunk=6, **setting),
        hidden,
    )


BOTH = pytest.mark.parametrize("run", [run_plain, run_chunked])


@BOTH
@pytest.mark.parametrize("outside", [-100, VOCABULARY])
def test_positions_of_no_weight_may_have_any_target(run, outside):
    targets, weights = example()[3], jnp.ones((BATCH, LENGTH)).at[0, 2].set(0.0)
    setting = {"smoothing": 0.1, "z_loss": 0.1}
    function, hidden = run(targets.at[0, 2].set(outside), weights, **setting)
    reference, _ = run(targets, weights, **setting)
    np.testing.assert_array_equal(function(hidden), reference(hidden))
    gradient = jax.grad(lambda x: function(x).sum)(hidden)
    np.testing.assert_array_equal(gradient, jax.grad(lambda x: reference(x).sum)(hidden))
    assert (gradient[0, 2] == 0).all() and np.isfinite(gradient).all()


@BOTH
@pytest.mark.parametrize("outside", [-1, VOCABULARY])
def test_an_impossible_target_that_counts_is_nan(run, outside):
    function, hidden = run(example()[3].at[1, 1].set(outside))
    loss = jax.jit(function)(hidden)
    assert np.isnan(loss.sum) and np.isnan(loss.nats) and loss.count == BATCH * LENGTH


@BOTH
def test_no_weight_at_all_is_zero_not_nan(run):
    function, hidden = run(example()[3], jnp.zeros((BATCH, LENGTH)))
    np.testing.assert_array_equal(function(hidden), [0, 0, 0])


@BOTH
def test_losses_add_up_over_parts_of_a_batch(run):
    targets, weights = example()[3:]
    whole_loss = run(targets, weights)[0](example()[0])
    rows = [weights * (jnp.arange(BATCH)[:, None] == row) for row in range(BATCH)]
    parts = [run(targets, row)[0](example()[0]) for row in rows]
    np.testing.assert_allclose(jax.tree.map(lambda *x: sum(x), *parts), whole_loss, rtol=1e-5)


@BOTH
@pytest.mark.parametrize(
    "changed, named",
    [
        ({"targets": jnp.zeros((BATCH, LENGTH + 1), jnp.int32)}, "targets has shape"),
        ({"targets": jnp.zeros((BATCH, LENGTH))}, "targets has dtype float32"),
        ({"weights": jnp.zeros(LENGTH)}, "weights has shape"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"smoothing": -0.1}, "smoothing=-0.1"),
        ({"z_loss": -1.0}, "z_loss=-1.0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(run, changed, named):
    function, hidden = run(**({"targets": example()[3]} | changed))
    with pytest.raises(ValueError, match=named):
        function(hidden)


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"kernel": jnp.zeros((WIDTH + 1, VOCABULARY))}, "kernel has shape"),
        ({"kernel": jnp.zeros(WIDTH)}, "kernel has shape"),
        ({"bias": jnp.zeros(WIDTH)}, "bias has shape"),
        ({"softcap": 0.0}, "softcap=0.0"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_readouts_that_cannot_work_are_refused(changed, named):
    hidden, kernel, bias, targets, _ = example()
    arguments = {"hidden": hidden, "kernel": kernel, "targets": targets, "bias": bias, "chunk": 4} | changed
    with pytest.raises(ValueError, match=named):
        losses.chunked_cross_entropy(**arguments)
