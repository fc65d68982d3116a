from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import positions

LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_length": 8192, "low": 1.0, "high": 4.0}
YARN = {"kind": "yarn", "factor": 4.0, "original_length": 4096, "low": 1.0, "high": 32.0}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pairs(width, base=10_000.0):
    return [base ** (-2 * i / width) for i in range(width // 2)]


# Sinusoids


def test_sinusoid_is_the_papers_formula():
    width, places = 6, [0, 1, 7, 511]
    expected = np.zeros((len(places), width))
    for row, position in enumerate(places):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            expected[row, 2 * i], expected[row, 2 * i + 1] = math.sin(angle), math.cos(angle)
    actual = positions.sinusoid(jnp.asarray(places), width)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-4)  # float32 rounds an angle of 511 to 3e-5


def test_sinusoid_follows_base_and_batched_positions():
    batched = jnp.asarray([[0, 1, 2], [5, 6, 7]])
    actual = positions.sinusoid(batched, 4, base=100.0)
    assert actual.shape == (2, 3, 4)
    np.testing.assert_allclose(actual[1, 0, 2:], [math.sin(5 / 10), math.cos(5 / 10)], atol=1e-6)


def test_halves_are_all_sines_and_then_all_cosines():
    width, places = 10, jnp.arange(40).reshape(2, 20)
    alternating, halves = (positions.sinusoid(places, width, 500.0, halves=halves) for halves in (False, True))
    order = [*range(0, width, 2), *range(1, width, 2)]
    np.testing.assert_array_equal(halves, np.asarray(alternating)[..., order])
    np.testing.assert_allclose(halves[0, :, 1], np.sin(np.arange(20) / 500 ** (2 / width)), atol=1e-5)
    np.testing.assert_allclose(halves[0, :, 6], np.cos(np.arange(20) / 500 ** (2 / width)), atol=1e-5)


@pytest.mark.parametrize("width", [0, 5, -2])
def test_odd_widths_are_refused(width):
    with pytest.raises(ValueError, match=f"width={width}"):
        positions.sinusoid(jnp.arange(3), width)
    with pytest.raises(ValueError, match=f"width={width}"):
        positions.rotary_frequencies(width)


# Rotary frequencies


def expected_frequencies(width, base, kind, factor, original_length, low, high, length):
    """One pair at a time in float64, by the case distinctions of the publications."""
    if kind == "ntk":
        return pairs(width, base * factor ** (width / (width - 2)))
    if kind == "dynamic":
        stretch = factor * length / original_length - (factor - 1) if length > original_length else 1
        return pairs(width, base * stretch ** (width / (width - 2)))
    out = []
    for index, frequency in enumerate(pairs(width, base)):
        if kind == "linear":
            frequency /= factor
        elif kind == "llama3":
            wavelength = 2 * math.pi / frequency
            if wavelength > original_length / low:
                frequency /= factor
            elif wavelength >= original_length / high:
                smooth = (original_length / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        elif kind == "yarn":
            start = math.floor(width / 2 * math.log(original_length / (high * 2 * math.pi), base))
            stop = math.ceil(width / 2 * math.log(original_length / (low * 2 * math.pi), base))
            start, stop = max(start, 0), min(stop, width - 1)
            ramp = 0.0 if index <= start else 1.0 if index >= stop else (index - start) / (stop - start)
            frequency = (1 - ramp) * frequency + ramp * frequency / factor
        out.append(frequency)
    return out


@pytest.mark.parametrize("kind", positions.SCALINGS)
@pytest.mark.parametrize(
    "width, base, original_length",
    [(64, 10_000.0, 1024), (128, 500_000.0, 1024), (64, 10_000.0, 131_072)],  # in the last every pair turns
)
def test_frequencies_are_the_published_ones(kind, width, base, original_length):
    settings = {"kind": kind, "factor": 8.0, "original_length": original_length, "low": 1.0, "high": 4.0}
    actual, magnitude = positions.rotary_frequencies(width, base=base, length=3 * original_length, **settings)
    expected = expected_frequencies(width, base, length=3 * original_length, **settings)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert magnitude == pytest.approx(0.1 * math.log(8) + 1 if kind == "yarn" else 1.0)
    plain, _ = positions.rotary_frequencies(width, base=base)
    assert (kind == "none") == np.allclose(actual, plain, rtol=1e-3)


@pytest.mark.parametrize("kind", positions.SCALINGS)
def test_a_factor_of_one_changes_nothing(kind):
    settings = {"kind": kind, "factor": 1.0, "original_length": 64, "low": 1.0, "high": 4.0}
    actual, magnitude = positions.rotary_frequencies(16, **settings)
    np.testing.assert_allclose(actual, pairs(16), rtol=1e-6)
    assert magnitude == 1.0


def test_ntk_leaves_the_fastest_pair_and_interpolates_the_slowest():
    plain, _ = positions.rotary_frequencies(32)
    ntk, _ = positions.rotary_frequencies(32, kind="ntk", factor=4.0)
    assert ntk[0] == plain[0]
    np.testing.assert_allclose(ntk[-1], plain[-1] / 4, rtol=1e-5)


def test_dynamic_is_plain_within_the_original_length_and_takes_a_traced_length():
    def frequencies(length):
        return positions.rotary_frequencies(16, kind="dynamic", factor=2.0, original_length=32, length=length)[0]

    for length in (None, 1, 32):
        np.testing.assert_allclose(frequencies(length), pairs(16), rtol=1e-6)
    # At 96 positions the stretch is 2 * 96 / 32 - 1 = 5.
    np.testing.assert_allclose(frequencies(96), pairs(16, 10_000 * 5 ** (16 / 14)), rtol=1e-6)
    traced = jax.jit(frequencies)
    for length in (7, 32, 33, 96):
        np.testing.assert_allclose(traced(length), frequencies(length), rtol=1e-5)


def test_llama3_and_yarn_keep_fast_pairs_and_interpolate_slow_ones():
    for settings, base in ((LLAMA3, 500_000.0), (YARN, 10_000.0)):
        plain, _ = positions.rotary_frequencies(128, base=base)
        ratio = np.asarray(positions.rotary_frequencies(128, base=base, **settings)[0] / plain)
        assert ratio[0] == 1.0
        np.testing.assert_allclose(ratio[-1], 1 / settings["factor"], rtol=1e-6)
        assert (np.diff(ratio) <= 1e-6).all()
        assert ((ratio < 0.99) & (ratio > 1.01 / settings["factor"])).sum() > 3


@pytest.mark.parametrize("magnitude", [1.0, 0.5, 1.3])
def test_yarn_takes_its_magnitude_as_it_is_given(magnitude):
    plain, _ = positions.rotary_frequencies(64, **YARN)
    frequencies, found = positions.rotary_frequencies(64, magnitude=magnitude, **YARN)
    assert found == magnitude
    np.testing.assert_array_equal(frequencies, plain)


def test_yarn_with_a_ramp_of_no_width_is_a_step():
    # All pairs of so short a text turn less than `low` times: start and stop both land on pair 0.
    settings = {"kind": "yarn", "factor": 2.0, "original_length": 4, "low": 1.0, "high": 2.0}
    actual, _ = positions.rotary_frequencies(8, **settings)
    np.testing.assert_allclose(actual, [1.0, *(f / 2 for f in pairs(8)[1:])], rtol=1e-6)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"kind": "cubic"}, "kind='cubic'"),
        ({"kind": "linear", "factor": 0.5}, "factor=0.5"),
        ({"kind": "dynamic", "factor": 2.0}, "original_length=None"),
        (YARN | {"original_length": 0}, "original_length=0"),
        (LLAMA3 | {"low": None}, "low=None"),
        (LLAMA3 | {"low": 4.0}, "low=4.0"),
        (YARN | {"low": 0.0}, "low=0.0"),
        (YARN | {"magnitude": 0.0}, "magnitude=0.0"),
        (YARN | {"magnitude": -1.0}, "magnitude=-1.0"),
        (YARN | {"magnitude": math.nan}, "magnitude=nan"),
        (LLAMA3 | {"magnitude": 1.2}, "magnitude=1.2, kind='llama3'.*only yarn.*None"),
        ({"magnitude": 1.2}, "magnitude=1.2, kind='none'"),
    ],
)
def test_scalings_refuse_what_cannot_work(settings, named):
    with pytest.raises(ValueError, match=named):
        positions.rotary_frequencies(8, **settings)


@pytest.mark.parametrize("kind", ["ntk", "dynamic"])
def test_rescaling_a_single_pair_is_refused(kind):
    with pytest.raises(ValueError, match="width=2"):
        positions.rotary_frequencies(2, kind=kind, factor=2.0, original_length=8)


# Turning


def test_rotate_turns_pairs_as_complex_numbers():
    x, places = random(2, 5, 3, 8), np.asarray([0, 1, 2, 30, 4])
    frequencies, _ = positions.rotary_frequencies(8)
    angles = places[:, None] * np.asarray(pairs(8))  # [T, 4]
    turned = (x[..., :4] + 1j * x[..., 4:].astype(np.float64)) * np.exp(1j * angles)[:, None, :]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    actual = positions.rotate(jnp.asarray(x), jnp.asarray(places), frequencies)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_rotated_products_depend_on_distance_alone():
    query, key = random(1, 1, 1, 16), random(1, 1, 1, 16, seed=1)
    frequencies, _ = positions.rotary_frequencies(16)

    def product(at_query, at_key):
        turned = [positions.rotate(x, jnp.asarray([at]), frequencies) for x, at in ((query, at_query), (key, at_key))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-2


def test_rotate_keeps_lengths_and_position_zero():
    x = jnp.asarray(random(2, 6, 3, 8))
    frequencies, _ = positions.rotary_frequencies(8)
    turned = positions.rotate(x, jnp.arange(6), frequencies)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_features_beyond_the_frequencies_pass_unchanged():
    x = jnp.asarray(random(2, 4, 3, 12))
    frequencies, _ = positions.rotary_frequencies(8)
    turned = positions.rotate(x, jnp.arange(4), frequencies, 1.5)
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])
    np.testing.assert_array_equal(turned[..., :8], positions.rotate(x[..., :8], jnp.arange(4), frequencies, 1.5))


def test_magnitude_multiplies():
    x = jnp.asarray(random(1, 4, 2, 8))
    frequencies, _ = positions.rotary_frequencies(8)
    once, more = (positions.rotate(x, jnp.arange(4), frequencies, m) for m in (1.0, 1.25))
    np.testing.assert_allclose(more, 1.25 * once, atol=1e-6)


def test_each_row_may_have_its_own_positions():
    x, places = jnp.asarray(random(2, 3, 2, 4)), jnp.asarray([[0, 1, 2], [7, 8, 9]])
    frequencies, _ = positions.rotary_frequencies(4)
    together = positions.rotate(x, places, frequencies)
    for row in range(2):
        np.testing.assert_array_equal(together[row], positions.rotate(x[row : row + 1], places[row], frequencies)[0])


def test_bfloat16_is_turned_in_float32():
    x, places = jnp.asarray(random(1, 3, 2, 8), jnp.bfloat16), jnp.asarray([1001, 1002, 1003])
    frequencies, _ = positions.rotary_frequencies(8)
    turned = positions.rotate(x, places, frequencies)
    assert turned.dtype == jnp.bfloat16
    # bfloat16 holds no 1001: angles kept in it would be wrong by whole radians.
    exact = positions.rotate(x.astype(jnp.float32), places, frequencies)
    np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "shape, places, width, named",
    [
        ((2, 3, 8), (3,), 8, "x has shape"),
        ((2, 3, 1, 8), (4,), 8, "positions has shape"),
        ((2, 3, 1, 8), (3, 3), 8, "positions has shape"),
        ((2, 3, 1, 8), (3,), 10, "frequencies has shape"),
    ],
)
def test_rotate_refuses_shapes_that_do_not_fit(shape, places, width, named):
    with pytest.raises(ValueError, match=named):
        positions.rotate(jnp.zeros(shape), jnp.zeros(places), positions.rotary_frequencies(width)[0])


# Relative buckets


def expected_bucket(relative, bidirectional, buckets, distance):
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if relative > 0 else 0
        relative = abs(relative)
    else:
        relative = max(0, -relative)
    exact = buckets // 2
    if relative < exact:
        return first + relative
    share = math.log(relative / exact) / math.log(distance / exact)
    # The nudge puts powers on the edge on its upper side, where float64's logarithms may leave them just below.
    return first + min(buckets - 1, exact + math.floor(share * (buckets - exact) + 1e-9))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, distance", [(32, 128), (8, 20), (4, 5), (6, 9), (64, 1000)])
def test_buckets_are_those_of_t5(bidirectional, buckets, distance):
    distances = np.arange(-distance - 300, distance + 300)
    actual = positions.relative_buckets(
        jnp.asarray(distances), bidirectional=bidirectional, buckets=buckets, distance=distance
    )
    expected = [expected_bucket(int(d), bidirectional, buckets, distance) for d in distances]
    assert actual.dtype == jnp.int32
    np.testing.assert_array_equal(actual, expected)
    assert set(np.asarray(actual)) == set(range(buckets)) - ({buckets // 2} if bidirectional else set())


def test_buckets_keep_the_shape_and_run_under_jit():
    distances = jnp.arange(4)[None, :] - jnp.arange(6)[:, None]
    run = jax.jit(lambda d: positions.relative_buckets(d, bidirectional=True, buckets=8, distance=16))
    assert run(distances).shape == (6, 4)
    np.testing.assert_array_equal(np.diagonal(run(distances)), 0)


@pytest.mark.parametrize(
    "bidirectional, buckets, distance, named",
    [(True, 2, 8, "buckets=2"), (True, 5, 8, "buckets=5"), (False, 1, 8, "buckets=1"), (False, 8, 4, "distance=4")],
)
def test_buckets_refuse_what_cannot_work(bidirectional, buckets, distance, named):
    with pytest.raises(ValueError, match=named):
        positions.relative_buckets(jnp.arange(3), bidirectional=bidirectional, buckets=buckets, distance=distance)


# Linear biases


def test_slopes_of_eight_heads_are_halves():
    np.testing.assert_array_equal(positions.alibi_slopes(8), [2.0**-h for h in range(1, 9)])  # the paper's example


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12, 16, 20, 25])
def test_slopes_are_those_of_the_released_rule(heads):
    def slopes(count):
        if math.log2(count).is_integer():
            return [(2 ** (-8 / count)) ** (h + 1) for h in range(count)]
        power = 2 ** math.floor(math.log2(count))
        return slopes(power) + slopes(2 * power)[0::2][: count - power]

    actual = positions.alibi_slopes(heads)
    assert actual.shape == (heads,) and actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, slopes(heads), rtol=1e-6)


def test_no_heads_are_refused():
    with pytest.raises(ValueError, match="heads=0"):
        positions.alibi_slopes(0)
