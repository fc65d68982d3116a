"""Losses against float64 NumPy; this file also runs itself as a program that has four devices."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import losses

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 5, 8, 23
SETTINGS = {
    "plain": {},
    "smoothing": {"smoothing": 0.1},
    "z_loss": {"z_loss": 0.05},
    "all": {"scale": 0.7, "softcap": 3.0, "smoothing": 0.2, "z_loss": 0.01},
}
DIFFERENTIATED = ("hidden", "kernel", "bias", "weights")

# Programs this small take longer to compile than to run.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def example(dtype=jnp.float32, shape=(BATCH, LENGTH)):
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(*shape, WIDTH)), dtype)
    kernel = jnp.asarray(random.normal(size=(WIDTH, VOCABULARY)), dtype)
    bias = jnp.asarray(random.normal(size=VOCABULARY), dtype)
    targets = jnp.asarray(random.integers(0, VOCABULARY, shape))
    weights = jnp.asarray(random.choice([0.0, 0.5, 1.0], shape), jnp.float32)
    return hidden, kernel, bias, targets, weights


def by_loops(logits, targets, weights, smoothing=0.0, z_loss=0.0):
    """Sum, count, nats and hits with the smoothed distribution itself, position by position in float64."""
    total, count, nats, hits = 0.0, 0.0, 0.0, 0.0
    logits = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])
    for row, target, weight in zip(logits, np.ravel(targets), np.ravel(weights), strict=True):
        normaliser = math.log(sum(math.exp(x - row.max()) for x in row)) + row.max()
        aim = np.full(len(row), smoothing / len(row))
        aim[target] += 1 - smoothing
        total += weight * (-(aim * (row - normaliser)).sum() + z_loss * normaliser**2)
        count += weight
        nats += weight * (normaliser - row[target])
        hits += weight * (row.argmax() == target)
    return total, count, nats, hits


def whole_logits(hidden, kernel, bias, scale=1.0, softcap=None):
    logits = scale * np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    return logits if softcap is None else softcap * np.tanh(logits / softcap)


def by_formula(hidden, kernel, bias, targets, weights, *, smoothing=0.0, z_loss=0.0, scale=1.0, softcap=None):
    """The sums, and the sum's gradients by hidden, kernel, bias and weights, written out in float64."""
    logits = whole_logits(hidden, kernel, bias, scale, softcap)
    sums = by_loops(logits, targets, weights, smoothing, z_loss)
    normaliser = np.log(np.exp(logits).sum(-1, keepdims=True))
    aim = (1 - smoothing) * np.eye(VOCABULARY)[np.asarray(targets)] + smoothing / VOCABULARY
    by_weights = (aim * (normaliser - logits)).sum(-1) + z_loss * normaliser[..., 0] ** 2
    slope = (1 + 2 * z_loss * normaliser) * np.exp(logits - normaliser) - aim
    slope *= np.asarray(weights, np.float64)[..., None]
    if softcap is not None:
        slope *= 1 - (logits / softcap) ** 2
    flat, slope = np.asarray(hidden, np.float64).reshape(-1, WIDTH), slope.reshape(-1, VOCABULARY)
    by_hidden = scale * slope @ np.asarray(kernel, np.float64).T
    gradients = by_hidden.reshape(hidden.shape), scale * flat.T @ slope, slope.sum(0), by_weights
    return sums, dict(zip(DIFFERENTIATED, gradients, strict=True))


def chunked(targets, **setting):
    """`((loss, gradients), loss)` of a dictionary of what is differentiated: in training and in evaluation."""

    def function(arrays):
        arrays = dict(arrays)
        loss = losses.chunked_cross_entropy(arrays.pop("hidden"), arrays.pop("kernel"), targets, **arrays, **setting)
        return loss.sum, loss

    def both(arrays):
        (_, loss), gradients = jax.value_and_grad(function, has_aux=True)(arrays)
        return (loss, gradients), function(arrays)[1]

    return both


# Plain


@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.05), (0.3, 0.01)])
def test_cross_entropy_is_the_formula(smoothing, z_loss):
    hidden, kernel, bias, targets, weights = example()
    logits = jnp.asarray(whole_logits(hidden, kernel, bias), jnp.float32)
    targets = np.where(np.arange(LENGTH) < 2, np.argmax(logits, axis=-1), targets)  # so that some are the likeliest
    loss = compiled(functools.partial(losses.cross_entropy, smoothing=smoothing, z_loss=z_loss))
    actual = loss(logits, targets, weights)
    np.testing.assert_allclose(actual, by_loops(logits, targets, weights, smoothing, z_loss), rtol=1e-5)
    assert 0 < actual.hits < actual.count
    assert all(part.dtype == jnp.float32 and part.shape == () for part in actual)


def test_without_weights_every_position_counts_once():
    hidden, kernel, bias, targets, _ = example()
    logits = jnp.asarray(whole_logits(hidden, kernel, bias), jnp.float32)
    actual = compiled(losses.cross_entropy)(logits, targets)
    np.testing.assert_allclose(actual, by_loops(logits, targets, np.ones(targets.shape)), rtol=1e-5)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    actual = compiled(losses.cross_entropy)(jnp.full((3, 50), 7.0), jnp.asarray([0, 20, 49]))
    np.testing.assert_allclose(actual.nats / actual.count, math.log(50), rtol=1e-6)


def test_nats_are_free_of_smoothing_and_z_loss():
    hidden, kernel, bias, targets, weights = example()
    logits = jnp.asarray(whole_logits(hidden, kernel, bias), jnp.float32)

    @compiled
    def both(logits):
        trained = losses.cross_entropy(logits, targets, weights, smoothing=0.2, z_loss=0.1)
        return losses.cross_entropy(logits, targets, weights), trained

    plain, trained = both(logits)
    assert plain.sum == plain.nats == trained.nats
    assert trained.sum > plain.sum * 1.01


@pytest.mark.parametrize("name", ["plain", "smoothing", "z_loss"])
def test_the_gradients_by_logits_and_weights_are_the_formula(name):
    hidden, _, _, targets, weights = example()
    identity = jnp.eye(VOCABULARY)[:WIDTH]  # makes logits of what is hidden
    padded = jnp.pad(hidden, ((0, 0), (0, 0), (0, VOCABULARY - WIDTH)))
    _, expected = by_formula(hidden, identity, np.zeros(VOCABULARY), targets, weights, **SETTINGS[name])
    loss = functools.partial(losses.cross_entropy, targets=targets, **SETTINGS[name])
    gradient = jax.grad(lambda logits, weights: loss(logits, weights=weights).sum, argnums=(0, 1))
    by_logits, by_weights = compiled(gradient)(padded, weights)
    np.testing.assert_allclose(by_logits[..., :WIDTH], expected["hidden"], atol=1e-6)
    np.testing.assert_allclose(by_logits.sum((0, 1)), expected["bias"], atol=1e-5)
    np.testing.assert_allclose(by_weights, expected["weights"], rtol=1e-5)


def test_smoothing_is_least_at_the_smoothed_distribution():
    smoothing, target = 0.2, 3
    aim = np.full(10, smoothing / 10)
    aim[target] += 1 - smoothing
    slope = compiled(jax.grad(lambda x: losses.cross_entropy(x, jnp.asarray(target), smoothing=smoothing).sum))
    np.testing.assert_allclose(slope(jnp.log(jnp.asarray(aim))), 0.0, atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1000)), jnp.bfloat16)
    targets = jnp.asarray([1, 2, 3, 999])
    actual = compiled(losses.cross_entropy)(logits, targets)
    np.testing.assert_allclose(actual, by_loops(logits, targets, np.ones(4)), rtol=1e-5)


def test_huge_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-3e4, -3e4, -3e4]])
    actual = compiled(losses.cross_entropy)(logits, jnp.asarray([1, 2]))
    np.testing.assert_allclose(actual.sum, 2e4 + math.log(3), rtol=1e-6)


# Chunked


@pytest.mark.parametrize("name, chunk", [("plain", 5), ("all", 1), ("all", 4), ("all", 100)])  # of 10 positions
def test_chunks_of_any_size_have_the_values_and_gradients_of_the_formula(name, chunk):
    hidden, kernel, bias, targets, weights = example()
    targets = np.where(np.arange(LENGTH) < 2, whole_logits(hidden, kernel, bias).argmax(-1), targets)
    arrays = dict(zip(DIFFERENTIATED, (hidden, kernel, bias, weights), strict=True))
    (actual, gradients), evaluated = compiled(chunked(targets, chunk=chunk, **SETTINGS[name]))(arrays)
    expected, wanted = by_formula(hidden, kernel, bias, targets, weights, **SETTINGS[name])
    assert expected[3] > 0
    np.testing.assert_allclose([actual, evaluated], [expected, expected], rtol=1e-5)
    for array, gradient in gradients.items():
        assert np.abs(wanted[array]).max() > 0.1
        np.testing.assert_allclose(gradient, wanted[array], atol=2e-5)  # sums of 23 float32 products near 1
    for switched_off in SETTINGS[name]:
        others = {option: value for option, value in SETTINGS[name].items() if option != switched_off}
        assert abs(by_formula(hidden, kernel, bias, targets, weights, **others)[0][0] - expected[0]) > 0.1


def test_gradients_are_multiplied_by_what_the_sum_is_multiplied_by_and_count_is_the_weights():
    hidden, kernel, _, targets, weights = example()

    def mean(kernel, weights):
        loss = losses.chunked_cross_entropy(hidden, kernel, targets, weights, chunk=4)
        return loss.sum / loss.count + loss.nats + loss.hits  # values only, so without a gradient

    by_kernel, by_weights = compiled(jax.grad(mean, argnums=(0, 1)))(kernel, weights)
    (total, count, *_), wanted = by_formula(hidden, kernel, np.zeros(VOCABULARY), targets, weights)
    np.testing.assert_allclose(by_kernel, wanted["kernel"] / count, atol=1e-6)
    np.testing.assert_allclose(by_weights, wanted["weights"] / count - total / count**2, atol=1e-5)


def test_without_bias_or_weights():
    hidden, kernel, bias, targets, weights = example()
    (actual, gradients), _ = compiled(chunked(targets, chunk=7))({"hidden": hidden, "kernel": kernel})
    expected, wanted = by_formula(hidden, kernel, np.zeros_like(bias), targets, np.ones_like(weights))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients["kernel"], wanted["kernel"], atol=2e-5)
    assert actual.count == BATCH * LENGTH


def test_bfloat16_in_gives_bfloat16_gradients_near_the_exact_ones():
    hidden, kernel, bias, targets, weights = example(jnp.bfloat16)
    arrays = dict(zip(DIFFERENTIATED, (hidden, kernel, bias, weights), strict=True))
    (actual, gradients), _ = jax.jit(chunked(targets, chunk=5, softcap=3.0))(arrays)
    expected, wanted = by_formula(hidden, kernel, bias, targets, weights, softcap=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)  # bfloat16 products added in float32 are exact
    for name in ("hidden", "kernel", "bias"):
        assert gradients[name].dtype == jnp.bfloat16
        # Two roundings to 8 bits, of the logits' gradients and of the result.
        bound = 2**-7 * np.abs(wanted[name]).max()
        np.testing.assert_allclose(gradients[name].astype(jnp.float32), wanted[name], atol=bound)


def test_gradients_of_many_bfloat16_chunks_are_added_up_in_float32():
    positions = 1000  # added up in bfloat16, whose spacing is 2 there, sums would stop growing at 256
    hidden, targets = jnp.ones((positions, 1), jnp.bfloat16), jnp.zeros(positions, jnp.int32)
    arrays = {"hidden": hidden, "kernel": jnp.zeros((1, 2), jnp.bfloat16), "bias": jnp.zeros(2, jnp.bfloat16)}
    (_, gradients), _ = compiled(chunked(targets, chunk=1))(arrays)
    np.testing.assert_array_equal(gradients["kernel"].astype(jnp.float32), [[-500.0, 500.0]])
    np.testing.assert_array_equal(gradients["bias"].astype(jnp.float32), [-500.0, 500.0])


def test_mixed_dtypes_multiply_in_float32():
    hidden, kernel, bias, targets, weights = example()
    hidden = hidden.astype(jnp.bfloat16)
    actual = compiled(functools.partial(losses.chunked_cross_entropy, chunk=5))(
        hidden, kernel, targets, weights, bias=bias
    )
    np.testing.assert_allclose(actual, by_formula(hidden, kernel, bias, targets, weights)[0], rtol=1e-5)


def test_tokens_ruled_out_by_the_bias_have_no_probability():
    hidden, kernel, bias, targets, weights = example()
    targets = np.where(weights == 0, 0, np.maximum(targets, 10))  # what does not count may be ruled out
    ruled = np.where(np.arange(VOCABULARY) >= 10, bias, -np.inf)
    arrays = {"hidden": hidden, "kernel": kernel, "weights": weights, "bias": ruled}
    (actual, gradients), _ = compiled(chunked(targets, chunk=5))(arrays)
    logits = whole_logits(hidden, kernel, bias)[..., 10:]
    np.testing.assert_allclose(actual, by_loops(logits, np.maximum(targets - 10, 0), weights), rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert (gradients["kernel"][:, :10] == 0).all() and (gradients["kernel"][:, 10:] != 0).any()


def test_the_logits_of_all_positions_and_tokens_never_exist_at_once():
    positions, width, vocabulary = 96, 4, 1000
    hidden, kernel = jnp.ones((positions, width)), jnp.ones((width, vocabulary))
    targets = jnp.zeros(positions, jnp.int32)

    def program(chunk):
        def loss(hidden, kernel):
            if not chunk:
                return losses.cross_entropy(hidden @ kernel, targets, smoothing=0.1, z_loss=0.1).sum
            return losses.chunked_cross_entropy(hidden, kernel, targets, chunk=chunk, smoothing=0.1, z_loss=0.1).sum

        done = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(hidden, kernel).compile()
        return done.memory_analysis().temp_size_in_bytes / (4 * positions * vocabulary), done.as_text()

    scratch, text = program(chunk=0)
    assert scratch >= 1 and f"f32[{positions},{vocabulary}]" in text
    for chunk, bodies in ((16, 1), (20, 2)):  # the second does not divide 96: the last 16 are a program of their own
        scratch, text = program(chunk)
        assert scratch < 0.8 and f"[{positions},{vocabulary}]" not in text
        assert text.count(" dot(") == 3 * bodies  # no logits are formed again
        assert f"s32[{chunk},{vocabulary}]" not in text  # nor is the likeliest token sought where nobody asks


def program():
    """Positions sharded over four devices: the same numbers, and only sums travel between devices."""
    assert jax.device_count() == 4
    drawn = example(shape=(8, 6))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put(drawn, (rows, everywhere, everywhere, rows, rows))
    arrays = dict(zip(DIFFERENTIATED, (*placed[:3], placed[4]), strict=True))
    expected, wanted = by_formula(*drawn, **SETTINGS["all"])
    for chunk in (16, 20):  # of 48 positions
        step = compiled(lambda arrays, targets, c=chunk: chunked(targets, chunk=c, **SETTINGS["all"])(arrays))
        step = step.lower(arrays, placed[3]).compile()
        (actual, gradients), evaluated = step(arrays, placed[3])
        np.testing.assert_allclose([actual, evaluated], [expected, expected], rtol=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, wanted[name], atol=5e-5)  # sums of 48 float32 products near 1
        if chunk == 16:
            text = step.as_text()
            assert "all-reduce" in text
            assert not any(moved in text for moved in ("all-gather", "all-to-all", "collective-permute"))


def test_positions_sharded_over_four_devices_stay_there(environment):
    done = subprocess.run([sys.executable, __file__], env=environment(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What both do with targets and arguments


def plain_loss(hidden, targets, weights=None, **setting):
    _, kernel, bias, _, _ = example()
    return losses.cross_entropy(hidden @ kernel + bias, targets, weights, **setting)


def chunked_loss(hidden, targets, weights=None, **setting):
    _, kernel, bias, _, _ = example()
    return losses.chunked_cross_entropy(hidden, kernel, targets, weights, bias=bias, chunk=5, **setting)


BOTH = pytest.mark.parametrize("loss", [plain_loss, chunked_loss])


@BOTH
def test_positions_of_no_weight_may_have_any_target(loss):
    hidden, _, _, targets, _ = example()
    weights = jnp.ones((BATCH, LENGTH)).at[0, 2].set(0.0)

    @compiled
    @functools.partial(jax.value_and_grad, argnums=(0, 2), has_aux=True)
    def run(hidden, targets, weights):
        out = loss(hidden, targets, weights, smoothing=0.1, z_loss=0.1)
        return out.sum, out

    expected = run(hidden, targets, weights)
    for outside in (-100, VOCABULARY):
        actual = run(hidden, targets.at[0, 2].set(outside), weights)
        jax.tree.map(np.testing.assert_array_equal, actual[0], expected[0])
        (by_hidden, by_weights), (wanted, _) = actual[1], expected[1]
        np.testing.assert_array_equal(by_hidden, wanted)
        assert (by_hidden[0, 2] == 0).all() and by_weights[0, 2] == 0
        assert np.isfinite(by_hidden).all() and np.isfinite(by_weights).all()


@BOTH
def test_sums_of_impossible_targets_of_none_and_of_parts(loss):
    hidden, _, _, targets, weights = example()
    run = compiled(loss)
    for outside in (-1, VOCABULARY):
        counted = jnp.ones((BATCH, LENGTH))
        impossible = run(hidden, targets.at[1, 1].set(outside), counted)
        assert np.isnan(impossible.sum) and np.isnan(impossible.nats) and impossible.count == BATCH * LENGTH
    np.testing.assert_array_equal(run(hidden, targets, jnp.zeros((BATCH, LENGTH))), [0, 0, 0, 0])
    rows = [weights * (jnp.arange(BATCH)[:, None] == row) for row in range(BATCH)]
    parts = [run(hidden, targets, row) for row in rows]
    np.testing.assert_allclose(np.sum(parts, axis=0), run(hidden, targets, weights), rtol=1e-5)


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
def test_arguments_that_cannot_work_are_refused(loss, changed, named):
    hidden, _, _, targets, _ = example()
    with pytest.raises(ValueError, match=named):
        loss(hidden, **({"targets": targets} | changed))


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


if __name__ == "__main__":
    program()
