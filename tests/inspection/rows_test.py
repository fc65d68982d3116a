from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import rows
from transformer.models.config import Attention, Position
from transformer.ops import attention

PADDED = jnp.asarray([[True] * 5, [False, False, True, True, True]])
SOURCE_PADDED = jnp.asarray([[True] * 4 + [False] * 3, [True] * 7])
PACKED = jnp.asarray([[0, 0, 1, 1, 1], [4, 4, 4, 4, 4]])
SOURCE_PACKED = jnp.asarray([[0, 0, 0, 1, 1, 1, 1], [4, 4, 4, 4, 5, 5, 5]])
MOVED = jnp.asarray([[0, 1, 0, 1, 2], [3, 4, 5, 6, 7]])
CASES = {
    "learned": (
        "decoder",
        {
            "position": Position(kind="learned"),
            "attention": Attention(heads=4, kv_heads=1, head_width=6, windows=(0, 3), softcap=2.0, scale=0.7),
        },
        {"mask": PADDED},
    ),
    "rotary": (
        "decoder",
        {"attention": Attention(heads=4, kv_heads=2, head_width=6, query_key_norm=True)},
        {"segments": PACKED, "positions": MOVED},
    ),
    "relative": (
        "encoder and decoder",
        {"position": Position(kind="relative", buckets=4, distance=5)},
        {"mask": PADDED, "source_mask": SOURCE_PADDED, "segments": PACKED, "source_segments": SOURCE_PACKED},
    ),
    "alibi": (
        "encoder and decoder",
        {"position": Position(kind="alibi")},
        {"positions": MOVED, "source_positions": jnp.asarray([[0, 2, 4, 6, 8, 10, 12]] * 2)},
    ),
    "none": ("encoder", {"position": Position(kind="none")}, {"mask": PADDED & jnp.asarray([[True], [False]])}),
}


@pytest.mark.parametrize("kind", CASES)
def test_rows_and_cells_are_those_of_the_captured_pattern(build, kind):
    roles, stack, options = CASES[kind]
    model, params, tokens, source = build(roles, **stack)
    capture = [f"**/{name}" for name in ("query", "key", "scores", "pattern")]
    _, taps = inspection.run(model, params, tokens, capture=capture, **source, **options)
    sites = [site for site in taps if site.endswith("pattern")]
    assert len(sites) == (6 if source else 2)
    for site in sites:
        captured = {name: np.asarray(taps[site.replace("pattern", name)]) for name in ("query", "key", "scores")}
        query, key, pattern = captured["query"], captured["key"], np.asarray(taps[site])
        how = rows.scoring(model, params, site, **options)
        length, keys = pattern.shape[2:]
        # float32 throughout: the same products in another order.
        close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6, err_msg=site)
        close(rows.rows(query, key, how, [3, 0, -1]), pattern[:, :, [3, 0, length - 1]])
        total = rows.log_sum_exp(query, key, how, chunk=3)
        visible = np.where(pattern > 0, captured["scores"].astype(np.float64), -np.inf)
        with np.errstate(divide="ignore"):
            close(total, np.log(np.exp(visible).sum(axis=-1)))
        t, s = (index.ravel() for index in np.indices((length, keys)))
        close(rows.cells(query, key, total, how, t, s - keys), pattern[:, :, t, s])


@pytest.fixture(scope="module")
def long(build):
    """A window of a long text, where ALiBi tells positions apart: query, key and how they score."""
    model, params, *_ = build(
        "decoder", position=Position(kind="alibi"), attention=Attention(heads=2, head_width=4, windows=(6000, 0))
    )
    draw = np.random.default_rng(0)
    query, key = (draw.normal(0, 2, (1, LONG, 2, 4)).astype(np.float32) for _ in range(2))
    return query, key, rows.scoring(model, params, "decoder/0/pattern")


LONG = 8192


def test_rows_of_a_long_text_are_right(long):
    query, key, how = long
    positions = [0, 4000, -1]
    found = rows.rows(query, key, how, positions)
    total = rows.log_sum_exp(query, key, how)
    for row, position in enumerate(positions):
        distance = position % LONG - np.arange(LONG)
        scores = np.einsum("hk,shk->hs", query[0, position].astype(np.float64), key[0]) / 2
        scores = scores - np.array([[2.0**-4], [2.0**-8]]) * np.abs(distance)
        raised = np.where((distance >= 0) & (distance < 6000), np.exp(scores), 0)
        # Scores of about 50 in float32 err by a few 1e-6, and so do the logarithms of what they are raised to.
        np.testing.assert_allclose(found[0, :, row], raised / raised.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(total[0, :, position], np.log(raised.sum(axis=-1)), rtol=1e-5)


def largest(function, *arguments):
    """Elements of the largest array that a function makes, inside loops and calls too."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield from (math.prod(out.aval.shape) for out in equation.outvars)
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda node: hasattr(node, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                yield from walk(inner) if hasattr(inner, "eqns") else ()

    return max(walk(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize("kind", ["alibi", "relative"])
def test_no_array_has_an_element_for_each_query_and_key(build, kind):
    model, params, *_ = build("decoder", position=Position(kind=kind), attention=Attention(heads=2, head_width=4))
    query = key = jax.ShapeDtypeStruct((1, LONG, 2, 4), jnp.float32)
    total = jax.ShapeDtypeStruct((1, 2, LONG), jnp.float32)
    how = rows.scoring(model, params, "decoder/1/pattern", segments=jnp.zeros((1, LONG), int))
    whole = LONG * LONG
    assert largest(attention.scores, query, key) >= whole
    assert 2 * 2 * LONG <= largest(lambda q, k: rows.rows(q, k, how, [5, 8000]), query, key) < whole / 50
    assert 2 * 128**2 <= largest(lambda q, k: rows.log_sum_exp(q, k, how, chunk=128), query, key) < whole / 50
    assert largest(lambda q, k, n: rows.cells(q, k, n, how, [1, 2], [0, 8000]), query, key, total) < whole / 50


def test_indices_may_be_traced(long):
    query, key, how = long
    traced = jax.jit(lambda index: rows.rows(query, key, how, index[None]))(jnp.int32(-2))
    np.testing.assert_allclose(traced, rows.rows(query, key, how, [LONG - 2]), rtol=1e-6)


@pytest.mark.parametrize(
    "site, message",
    [
        ("decoder/0/cross/pattern", r"'decoder/0/cross/pattern' is no pattern of this model: .* decoder/\*/pattern"),
        ("encoder/0/pattern", r"'encoder/0/pattern' is no pattern of this model"),
        ("decoder/0/scores", r"'decoder/0/scores' is no pattern"),
        ("decoder/*/pattern", r"'decoder/\*/pattern' names no layer: write one from 0 to 1 for the \*"),
        ("decoder/2/pattern", r"'decoder/2/pattern' names no layer: write one from 0 to 1"),
    ],
)
def test_a_site_that_is_no_layer_s_pattern_is_refused(build, site, message):
    model, params, *_ = build("decoder")
    with pytest.raises(ValueError, match=message):
        rows.scoring(model, params, site)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda q, k, how: rows.rows(q, k, how, [5]), r"positions=\[5\] are out of range: there are 5, 0 to 4"),
        (lambda q, k, how: rows.rows(q, k, how, [-6]), r"positions=\[-6\] are out of range"),
        (lambda q, k, how: rows.rows(q, k, how, 3), "positions=3 cannot work: give a sequence of integers"),
        (lambda q, k, how: rows.rows(q, k, how, [0.5]), r"positions=\[0.5\] cannot work"),
        (lambda q, k, how: rows.rows(q[None], k, how, [0]), r"must be \[B, T, 4, 6\] and \[B, S, 2, 6\] of one layer"),
        (lambda q, k, how: rows.rows(k, q, how, [0]), r"must be \[B, T, 4, 6\]"),
        (lambda q, k, how: rows.rows(q[:1], k, how, [0]), r"query \(1, 5, 4, 6\) and key \(2, 5, 2, 6\) must be"),
        (
            lambda q, k, how: rows.rows(q[:, :4], k[:, :4], how, [0]),
            r"has mask \(2, 5\) where queries and keys have \(2, 4\)",
        ),
        (lambda q, k, how: rows.log_sum_exp(q, k, how, chunk=0), "chunk=0 cannot work"),
        (
            lambda q, k, how: rows.cells(q, k, jnp.ones((2, 4, 5)), how, [0, 1], [0]),
            "2 queries and 1 keys make no pairs",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, call, message):
    model, params, *_ = build("decoder")
    how = rows.scoring(model, params, "decoder/1/pattern", mask=jnp.ones((2, 5), bool))
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 5, 4, 6)), jnp.ones((2, 5, 2, 6)), how)


def test_segments_of_one_side_alone_are_refused(build):
    model, params, *_ = build("encoder and decoder")
    with pytest.raises(ValueError, match="segments and source_segments come together"):
        rows.scoring(model, params, "decoder/0/cross/pattern", segments=PACKED)


def test_a_part_of_a_sequence_is_not_taken_for_the_whole(build):
    model, params, tokens, _ = build("decoder")
    _, taps = inspection.run(model, params, tokens, capture=("decoder/0/query", "decoder/0/key"))
    query, key, how = taps["decoder/0/query"], taps["decoder/0/key"], rows.scoring(model, params, "decoder/0/pattern")
    for part in ((query[:, -1:], key), (query, key[:, :3])):
        with pytest.raises(ValueError, match="are not of one whole sequence: capture all, and choose by positions"):
            rows.rows(*part, how, [0])
    total = rows.log_sum_exp(query, key, how)
    for part in (total[..., :1], total[0], total[:1]):
        with pytest.raises(ValueError, match=r"log_sum_exp has shape .*; it must be \(2, 4, 5\)"):
            rows.cells(query, key, part, how, [0], [0])
