from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import patterns
from transformer.models.config import Attention

B, H, T = 3, 2, 9
OF_TOKENS = ("duplicate_token", "induction")
DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(0, 4, (B, T))
SEGMENTS = np.sort(DRAW.integers(0, 3, (B, T)))
WEIGHTS = DRAW.uniform(0, 2, (B, T)).astype(np.float32)


def softmax(scores, visible):
    raised = np.where(visible, np.exp(scores), 0)
    return raised / np.maximum(raised.sum(axis=-1, keepdims=True), 1e-30)


def places(name, t, tokens, segments):
    """Where the mass of a query is looked for; None: this score is no mass."""
    own = [s for s in range(len(segments)) if segments[s] == segments[t]]
    earlier = [s for s in own if s < t and tokens[s] == tokens[t]]
    return {
        "sink_mass": [s for s in range(len(segments)) if segments[s] not in segments[:s]],
        "previous_token": [t - 1] if t - 1 in own else [],
        "duplicate_token": earlier,
        "induction": [s + 1 for s in earlier if s + 1 in own],
    }.get(name)


def by_hand(name, pattern, tokens, segments=None, weights=None):
    """A score, query by query in float64, of one pattern `[B, H, T, S]`."""
    batch, heads, length, keys = pattern.shape
    total, count = np.zeros(heads), np.zeros(heads)
    for b, h, t in np.ndindex(batch, heads, length):
        row = pattern[b, h, t].astype(np.float64)
        where = places(name, t, tokens[b], np.zeros(keys) if segments is None else segments[b])
        if row.sum() == 0 or where == []:
            continue
        if name == "entropy":
            value = -sum(p * np.log(p) for p in row if p > 0)
        elif name == "distance":
            value = sum(p * abs(t - s) for s, p in enumerate(row))
        else:
            value = row[where].sum()
        weight = 1.0 if weights is None else float(weights[b, t])
        total[h] += weight * value
        count[h] += weight
    return np.where(count > 0, total / np.maximum(count, 1e-30), np.nan)


def score(name, pattern, tokens, segments=None, weights=None):
    """The score by the function of its name."""
    options = {"weights": weights} | ({} if name in ("entropy", "distance") else {"segments": segments})
    compiled = jax.jit(getattr(patterns, name))
    return compiled(pattern, *((tokens,) if name in OF_TOKENS else ()), **options)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["all alike", "weighted"])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one segment", "segments"])
@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
@pytest.mark.parametrize("name", patterns.SCORES)
def test_every_score_is_what_a_loop_makes_of_the_pattern(name, causal, segments, weights):
    visible = np.tri(T, dtype=bool) if causal else np.ones((T, T), bool)
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    stacked = softmax(np.random.default_rng(1).normal(0, 2, (2, B, H, T, T)), visible).astype(np.float32)
    stacked[:, 0, :, 3] = 0  # a query that may see nothing
    expected = [by_hand(name, pattern, TOKENS, segments, weights) for pattern in stacked]
    found = score(name, stacked, TOKENS, segments, weights)
    assert found.shape == (2, H) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32 sums of B * T * T terms


def test_heads_that_do_one_thing_score_one_at_it():
    tokens = np.tile(np.random.default_rng(0).permutation(T), 2)[None]  # twice the same order: one earlier occurrence
    pattern = np.zeros((1, 4, 2 * T, 2 * T))
    for t in range(2 * T):
        pattern[0, 0, t, 0] = 1
        pattern[0, 1, t, max(t - 1, 0)] = 1
        pattern[0, 2, t, t - T if t >= T else t] = 1
        pattern[0, 3, t, t - T + 1 if t >= T else t] = 1
    found = {name: score(name, jnp.asarray(pattern), tokens) for name in patterns.SCORES}
    for head, name in enumerate(("sink_mass", "previous_token", "duplicate_token", "induction")):
        assert found[name][head] == 1 and all(found[name][other] < 0.2 for other in range(4) if other != head), name
    np.testing.assert_allclose(found["entropy"], 0)
    np.testing.assert_allclose(found["distance"], [(2 * T - 1) / 2, 1 - 1 / (2 * T), T / 2, (T - 1) / 2], rtol=1e-6)


def test_uniform_attention_has_the_entropy_of_the_logarithm_and_sinks_are_as_many_as_asked():
    pattern = jnp.full((1, 1, 4, 8), 1 / 8)
    np.testing.assert_allclose(patterns.entropy(pattern), [np.log(8)], rtol=1e-6)
    np.testing.assert_allclose(patterns.sink_mass(pattern, sinks=3), [3 / 8])
    keys = jnp.array([[5, 5, 5, 6, 6, 6, 6, 7]])
    np.testing.assert_allclose(patterns.sink_mass(pattern, sinks=2, segments=keys), [5 / 8])


def test_a_score_that_concerns_no_query_is_not_a_number():
    pattern, tokens = jnp.ones((1, H, 1, 1)), jnp.zeros((1, 1), int)
    for name in ("previous_token", *OF_TOKENS):
        assert np.isnan(score(name, pattern, tokens)).all(), name
    assert np.isnan(patterns.entropy(pattern, weights=jnp.zeros((1, 1)))).all()
    assert np.isnan(patterns.sink_mass(jnp.zeros((1, H, 2, 2)))).all()


def test_a_pattern_that_is_not_finite_is_not_hidden():
    assert np.isnan(patterns.entropy(jnp.full((1, 1, 2, 2), jnp.nan))).all()


def test_half_precision_is_summed_in_single():
    pattern = softmax(np.random.default_rng(1).normal(size=(B, H, T, T)), np.tri(T, dtype=bool))
    narrow = jnp.asarray(pattern, jnp.bfloat16)
    for name in patterns.SCORES:
        expected = by_hand(name, np.asarray(narrow, np.float32), TOKENS)
        np.testing.assert_allclose(score(name, narrow, TOKENS), expected, rtol=1e-5, err_msg=name)


# A model: whole sequences, padding on the left and on the right, segments, weights.
PADDED = np.array([[True] * 5, [False, False, True, True, True]])
SOURCE_PADDED = np.array([[True] * 4 + [False] * 3, [True] * 7])
PACKED = np.array([[0, 0, 1, 1, 1], [4, 4, 4, 4, 4]])
SOURCE_PACKED = np.array([[0, 0, 0, 1, 1, 1, 1], [4, 4, 4, 4, 5, 5, 5]])
CASES = {
    "decoder": {"segments": PACKED, "weights": WEIGHTS[:2, :5]},
    "encoder": {"mask": PADDED},
    "encoder and decoder": {
        "mask": PADDED,
        "source_mask": SOURCE_PADDED,
        "segments": PACKED,
        "source_segments": SOURCE_PACKED,
        "weights": WEIGHTS[:2, :5],
    },
}


@pytest.mark.parametrize("roles", CASES)
def test_scores_of_a_model_are_those_of_its_captured_patterns(build, roles):
    model, params, tokens, source = build(roles)
    tokens = jnp.asarray(np.array([[1, 2, 1, 2, 2], [3, 3, 3, 5, 3]]))
    source = {name: jnp.asarray(np.array([[1, 2, 1, 2, 2, 1, 2], [3, 3, 0, 3, 5, 3, 5]])) for name in source}
    options = {name: jnp.asarray(value) for name, value in CASES[roles].items()}
    weights = options.pop("weights", None)
    found = patterns.scores(model, params, tokens, weights=weights, **source, **options)
    _, taps = inspection.run(model, params, tokens, capture="**/pattern", **source, **options)
    assert {patterns.SITES[attention] for attention in found} == set(taps.stacked())
    for attention, scores in found.items():
        cross, encodes = attention == "decoder/cross", attention == "encoder" and bool(source)
        assert list(scores) == sorted(patterns.OF_CROSS if cross else patterns.SCORES)
        query = "source_" if encodes else ""
        read = np.asarray(source["source"] if encodes else tokens)
        counted = np.ones(read.shape) if weights is None or encodes else np.asarray(weights)
        counted = counted * np.asarray(options.get(f"{query}mask", np.ones(read.shape)))
        segments = apart(options, "source_" if cross else query)
        for name, score in scores.items():
            captured = np.asarray(taps[patterns.SITES[attention]])
            expected = [by_hand(name, pattern, read, segments, counted) for pattern in captured]
            assert score.shape == (2, 4)
            np.testing.assert_allclose(score, expected, rtol=1e-5, err_msg=f"{attention} {name}")


def apart(options, prefix):
    """Segments, with the padding in one of its own."""
    segments, mask = (options.get(f"{prefix}{name}") for name in ("segments", "mask"))
    if mask is None:
        return None if segments is None else np.asarray(segments)
    return np.where(mask, np.zeros(mask.shape, int) if segments is None else segments, -7)


def test_totals_of_several_batches_add_up(build):
    model, params, *_ = build("decoder", depth=1)
    tokens, names = jnp.asarray([[1, 1, 1, 2], [2, 3, 2, 4], [5, 1, 5, 5], [6, 7, 8, 9]]), ("induction", "entropy")
    parts = [patterns.totals(model, params, tokens[rows], names=names) for rows in (slice(0, 2), slice(2, 4))]
    found = patterns.means(jax.tree.map(jnp.add, *parts))
    expected = patterns.scores(model, params, tokens, names=names)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), found, expected)


def test_only_the_scores_asked_for_and_windows_hide_what_they_hide(build):
    windowed = Attention(heads=4, kv_heads=2, head_width=6, windows=(0, 1))
    model, params, *_ = build("decoder", {"remat": "full", "unroll": 2}, attention=windowed, mlp=None)
    tokens = jnp.asarray([[1, 2, 1, 2, 1, 2]])
    found = patterns.scores(model, params, tokens, names=("duplicate_token", "previous_token"))
    assert {attention: set(names) for attention, names in found.items()} == {
        "decoder": {"duplicate_token", "previous_token"}
    }
    assert (found["decoder"]["duplicate_token"][0] > 0).all() and (found["decoder"]["duplicate_token"][1] == 0).all()
    assert (found["decoder"]["previous_token"][1] == 0).all()
    both, params, tokens, source = build("encoder and decoder", depth=1)
    shapes = jax.eval_shape(lambda: patterns.scores(both, params, tokens, names="induction", **source))
    assert set(shapes) == {"encoder", "decoder"}


def test_more_layers_take_no_more_memory(build):
    tokens, names = jnp.zeros((8, 128), jnp.int32), ("entropy", "induction")

    def room(depth):
        model, params, *_ = build("decoder", depth=depth)
        whole = jax.jit(lambda params, tokens: patterns.scores(model, params, tokens, names=names))
        memory = whole.lower(params, tokens).compile().memory_analysis()
        return memory.output_size_in_bytes + memory.temp_size_in_bytes

    pattern = 8 * 4 * 128 * 128 * 4  # bytes of one layer
    deep = room(12)
    assert deep < 6 * pattern  # scores, weights, and what is summed over keys for each of the two
    assert deep - room(2) < pattern / 100


def test_other_numbers_run_the_same_program(build, caplog):
    model, params, tokens, _ = build("decoder", depth=1)
    patterns.scores(model, params, tokens, names="entropy")
    with jax.log_compiles(), caplog.at_level("WARNING"):
        patterns.scores(model, jax.tree.map(jnp.negative, params), tokens - 1, names=["entropy"])
    assert not [record for record in caplog.records if "totals" in record.message]


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: patterns.entropy(jnp.ones((2, 3, 3))),
            r"pattern has shape \(2, 3, 3\); give it as \[..., B, H, T, S\]",
        ),
        (
            lambda: patterns.distance(jnp.ones((1, 1, 2, 3))),
            r"\(1, 1, 2, 3\); this score needs .* whole self-attention",
        ),
        (lambda: patterns.previous_token(jnp.ones((1, 1, 2, 3))), r"needs \[..., B, H, T, T\]"),
        (
            lambda: patterns.entropy(jnp.ones((1, 1, 2, 3)), weights=jnp.ones((1, 3))),
            r"weights of shape \(1, 3\) do not fit pattern \(1, 1, 2, 3\): give \[1, 2\]",
        ),
        (
            lambda: patterns.induction(jnp.ones((1, 1, 3, 3)), jnp.ones((3,), int)),
            r"tokens of shape \(3,\) do not fit pattern \(1, 1, 3, 3\): give \[1, 3\]",
        ),
        (
            lambda: patterns.sink_mass(jnp.ones((1, 1, 2, 3)), segments=jnp.ones((1, 2), int)),
            r"segments of shape \(1, 2\) .*: give \[1, 3\]",
        ),
        (lambda: patterns.sink_mass(jnp.ones((1, 1, 2, 3)), sinks=0), r"sinks=0 cannot work"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_a_model_cannot_be_asked_is_refused(build):
    model, params, tokens, _ = build("decoder")
    with pytest.raises(ValueError, match=r"names=\('entropie',\) cannot work: choose some of entropy, distance"):
        patterns.scores(model, params, tokens, names="entropie")
    with pytest.raises(ValueError, match="cache: scores are of whole sequences"):
        patterns.scores(model, params, tokens, cache=object())
    with pytest.raises(ValueError, match=r"weights have shape \(5,\); they must be \(2, 5\)"):
        patterns.scores(model, params, tokens, weights=jnp.ones(5))
    both, params, tokens, _ = build("encoder and decoder")
    with pytest.raises(ValueError, match="an encoder-decoder needs source"):
        patterns.scores(both, params, tokens)


def test_entropy_has_a_slope_where_weights_are_zero(build):
    model, params, tokens, _ = build("decoder")
    total = lambda params: patterns.scores(model, params, tokens, names="entropy")["decoder"]["entropy"].sum()  # noqa: E731
    slopes = jax.tree.leaves(jax.grad(total)(params))
    assert all(np.isfinite(slope).all() for slope in slopes) and any(np.abs(slope).max() > 1e-3 for slope in slopes)
