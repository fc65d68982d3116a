"""Every implementation of attention that runs here, for every kind of mask, against formulas in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import attention, chunked, fused
from transformer.ops.chunked import chunked_attention
from transformer.ops.masks import Mask

BATCH, LENGTH, HEADS, WIDTH = 2, 11, 4, 8


def masks(length):
    """Name to (mask, the booleans that it means `[B, T, S]`), the latter by loops."""
    rng = np.random.default_rng(3)
    valid = rng.random((BATCH, length)) < 0.7
    valid[1, 0] = False  # with causality, a query that sees nothing
    segments = np.sort(rng.integers(0, 3, (BATCH, length)), axis=1)
    prefix = np.arange(length) < np.array([[length // 2], [1]])
    offset = np.array([3, -2])
    parts = {
        "open": {},
        "causal": {"causal": True},
        "window": {"causal": True, "window": 3},
        "padding": {"valid": valid},
        "causal and padding": {"causal": True, "valid": valid},
        "segments": {"causal": True, "query_segments": segments, "key_segments": segments},
        "prefix": {"causal": True, "prefix": prefix},
        "offset": {"causal": True, "offset": offset},
        "window and offset": {"causal": True, "window": 4, "offset": offset},
    }

    def meaning(causal=False, window=0, valid=None, query_segments=None, key_segments=None, prefix=None, offset=None):
        out = np.zeros((BATCH, length, length), bool)
        for b, t, s in np.ndindex(out.shape):
            slot = t + (0 if offset is None else offset[b])
            allowed = not causal or s <= slot or (prefix is not None and prefix[b, s])
            allowed &= not window or slot - s < window
            allowed &= valid is None or valid[b, s]
            allowed &= query_segments is None or query_segments[b, t] == key_segments[b, s]
            out[b, t, s] = allowed
        return out

    made = {}
    for name, some in parts.items():
        arrays = {key: jnp.asarray(part) if isinstance(part, np.ndarray) else part for key, part in some.items()}
        made[name] = Mask(**arrays), meaning(**some)
    return made


def example(groups, length=LENGTH, width=WIDTH, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = ((BATCH, length, heads, width) for heads in (HEADS, groups, groups, HEADS))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def by_formula(query, key, value, slope, allowed, softcap=None):
    """Mixed values, log-normalisers and gradients of `sum(out * slope)` by query, key and value, in float64."""
    query, key, value, slope = (np.asarray(x, np.float64) for x in (query, key, value, slope))
    share = query.shape[2] // key.shape[2]
    keys, values = (np.repeat(x, share, axis=2) for x in (key, value))
    scale = query.shape[3] ** -0.5
    scores = np.einsum("bthk,bshk->bhts", query, keys) * scale
    bend = 1.0
    if softcap is not None:
        bent = np.tanh(scores / softcap)
        scores, bend = softcap * bent, 1 - bent**2
    raised = np.where(allowed[:, None], np.exp(scores), 0.0)
    total = raised.sum(-1, keepdims=True)
    weights = raised / np.where(total == 0, 1, total)
    out = np.einsum("bhts,bshk->bthk", weights, values)
    by_weights = np.einsum("bthk,bshk->bhts", slope, values)
    by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdims=True)) * bend * scale
    fold = lambda x: x.reshape(*x.shape[:2], -1, share, x.shape[3]).sum(3)  # noqa: E731
    gradients = (
        np.einsum("bhts,bshk->bthk", by_scores, keys),
        fold(np.einsum("bhts,bthk->bshk", by_scores, query)),
        fold(np.einsum("bhts,bthk->bshk", weights, slope)),
    )
    with np.errstate(divide="ignore"):
        return out, np.log(total)[..., 0].transpose(0, 2, 1), gradients


def with_gradients(function, query, key, value, slope):
    def total(query, key, value):
        out = function(query, key, value)
        return jnp.sum(out.astype(jnp.float32) * slope.astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(query, key, value)
    return out, gradients


def check(actual, expected, tolerance):
    out, gradients = actual
    for one, other in zip((out, *gradients), (expected[0], *expected[2]), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float64), other, atol=tolerance * max(1, np.abs(other).max()))


# Sums of a dozen products round at a few 1e-7 in float32, and at 2^-8 of the largest in bfloat16.
TOLERANCES = {"float32": 5e-6, "bfloat16": 3e-2}


@pytest.mark.parametrize("name", masks(LENGTH))
@pytest.mark.parametrize(
    "groups", [pytest.param(4, marks=pytest.mark.slow), 2, pytest.param(1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("implementation", ["explicit", "chunked"])
def test_outputs_and_gradients(implementation, name, groups):
    mask, allowed = masks(LENGTH)[name]
    for dtype, tolerance in TOLERANCES.items():
        arrays = example(groups, dtype=dtype)

        def run(query, key, value):
            if implementation == "explicit":
                return attention.attend(query, key, value, mask=mask, implementation="explicit")
            return chunked_attention(query, key, value, mask=mask, queries=4, keys=3)[0]

        check(with_gradients(run, *arrays), by_formula(*arrays, allowed), tolerance)


@pytest.mark.parametrize("name", ["open", "causal and padding", "segments", "prefix", "window and offset"])
def test_rows_may_be_taken_in_parts(name, monkeypatch):
    monkeypatch.setattr(attention, "PARTED_FROM", 0)
    monkeypatch.setattr(attention, "cores", lambda: 3)
    mask, allowed = masks(LENGTH)[name]
    arrays = example(2)
    assert attention._parts(*arrays[:2]) == 2 == BATCH
    run = lambda *qkv: attention.attend(*qkv, mask=mask, implementation="explicit")  # noqa: E731
    check(with_gradients(run, *arrays), by_formula(*arrays, allowed), TOLERANCES["float32"])


@pytest.mark.parametrize(("queries", "keys"), [(3, 5), (11, 4), (16, 16), (2, 11)])
@pytest.mark.parametrize("name", ["causal", "window and offset"])
def test_blocks_of_any_size_and_a_soft_cap(name, queries, keys):
    mask, allowed = masks(LENGTH)[name]
    arrays = example(2)
    run = lambda *qkv: chunked_attention(*qkv, mask=mask, softcap=0.9, queries=queries, keys=keys)[0]  # noqa: E731
    check(with_gradients(run, *arrays), by_formula(*arrays, allowed, softcap=0.9), TOLERANCES["float32"])
    assert np.abs(by_formula(*arrays, allowed)[0] - by_formula(*arrays, allowed, 0.9)[0]).max() > 1e-2


@pytest.mark.parametrize("together", [1, 3 * 4, None])
@pytest.mark.parametrize("name", ["open", "causal and padding", "segments", "prefix", "window and offset"])
def test_rows_and_heads_may_be_apart(name, together, monkeypatch):
    if together is None:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where all are at once
    else:
        monkeypatch.setattr(chunked, "TOGETHER", together)  # a head, two heads
        monkeypatch.setattr(chunked, "cores", lambda: 2)
    mask, allowed = masks(LENGTH)[name]
    arrays = example(HEADS)
    run = lambda *qkv: chunked_attention(*qkv, mask=mask, queries=4, keys=3)[0]  # noqa: E731
    check(with_gradients(run, *arrays), by_formula(*arrays, allowed), TOLERANCES["float32"])


def test_log_normalisers_and_their_gradient():
    mask, allowed = masks(LENGTH)["causal and padding"]
    query, key, value, _ = example(2)

    def total(query):
        normaliser = chunked_attention(query, key, value, mask=mask, queries=4, keys=4)[1]
        return jnp.sum(jnp.where(jnp.isfinite(normaliser), normaliser, 0.0)), normaliser

    (_, normaliser), gradient = jax.value_and_grad(total, has_aux=True)(query)
    expected = by_formula(query, key, value, query, allowed)[1]
    assert (expected == -np.inf).any()
    np.testing.assert_allclose(normaliser, expected, atol=1e-5)
    moved = np.asarray(query).copy()
    moved[0, 5, 1, 2] += 1e-2
    change = by_formula(moved, key, value, query, allowed)[1] - np.where(expected == -np.inf, np.nan, expected)
    np.testing.assert_allclose(gradient[0, 5, 1, 2], np.nansum(change) / 1e-2, rtol=2e-2)  # a difference quotient


def test_memory_is_linear_in_length():
    def bytes_of(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        run = lambda q, k, v: jnp.sum(chunked_attention(q, k, v, mask=Mask(causal=True), queries=64, keys=64)[0])  # noqa: E731
        return (
            jax.jit(jax.grad(run, (0, 1, 2))).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes
        )

    assert bytes_of(2048) < 2.5 * bytes_of(1024)


SPLASH = [{"causal": True}, {"causal": True, "window": 40}, {"causal": True, "segments": True}]


@pytest.mark.slow  # some ten seconds each: the kernel is interpreted
@pytest.mark.parametrize("parts", SPLASH, ids=str)
def test_splash_interpreted(parts):
    length = 128
    parts = dict(parts)
    if parts.pop("segments", False):
        ids = jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 3, (BATCH, length)), axis=1))
        parts |= {"query_segments": ids, "key_segments": ids}
    mask = Mask(**parts)
    arrays = example(2, length, 64)
    assert fused.splash_refuses(arrays[0], arrays[1], mask, None) is None
    run = lambda *qkv: fused.splash(*qkv, mask=mask, scale=None, softcap=None, interpret=True)  # noqa: E731
    allowed = np.broadcast_to(np.asarray(mask.array(length, length))[:, 0], (BATCH, length, length))
    check(with_gradients(run, *arrays), by_formula(*arrays, allowed), 1e-5)  # sums of 128 terms


REFUSALS = [
    ("cudnn", "float32", {"causal": True}, None, 11, "float32"),
    ("cudnn", "bfloat16", {"causal": True}, 5.0, 11, "soft cap"),
    ("cudnn", "bfloat16", {"valid": jnp.ones((BATCH, 11), bool)}, None, 11, "valid"),
    ("cudnn", "bfloat16", {"causal": True}, None, 9, "square"),
    ("cudnn", "bfloat16", {"window": 4}, None, 11, "its windows are causal"),
    ("splash", "float32", {"causal": True}, None, 11, "multiples of 128"),
    ("splash", "float32", {"prefix": jnp.ones((BATCH, 11), bool), "causal": True}, None, 11, "prefix"),
]


@pytest.mark.parametrize(("name", "dtype", "parts", "softcap", "keys", "reason"), REFUSALS)
def test_what_a_kernel_cannot_do_it_is_never_handed(name, dtype, parts, softcap, keys, reason):
    query, key, value, _ = example(2, dtype=dtype)
    with pytest.raises(ValueError, match=reason):
        attention.attend(
            query, key[:, :keys], value[:, :keys], mask=Mask(**parts), softcap=softcap, implementation=name
        )


class Device:
    def __init__(self, platform, capability=None):
        self.platform = platform
        if capability is not None:
            self.compute_capability = capability


@pytest.mark.parametrize(
    ("device", "width", "reason"),
    [
        (Device("gpu", "9.0"), 256, None),
        (Device("gpu", "12.0"), 256, None),
        (Device("gpu", "9.0"), 264, "at most 256 wide"),
        (Device("gpu", "9.0"), 60, "multiple of 8"),
        (Device("gpu", "8.6"), 128, None),
        (Device("gpu", "8.6"), 136, "at most 128 wide"),
        (Device("gpu", "7.5"), 64, "8.0"),
        (Device("gpu", "gfx942"), 64, "NVIDIA"),
        (Device("cpu"), 64, "NVIDIA"),
    ],
)
def test_cudnn_takes_what_the_device_can(monkeypatch, device, width, reason):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    query = jax.ShapeDtypeStruct((1, 16, 2, width), jnp.bfloat16)
    refused = fused.cudnn_refuses(query, query, Mask(causal=True), None)
    assert refused is None if reason is None else reason in refused


@pytest.mark.parametrize(
    ("dtype", "parts", "length", "keys", "width", "reason"),
    [
        ("float32", {"causal": True}, 128, 128, 64, None),
        ("float32", {}, 128, 256, 128, None),
        ("float16", {"causal": True}, 128, 128, 64, "not float16"),
        ("float32", {"query_segments": 0, "key_segments": 1}, 128, 128, 64, "share their segments"),
        ("float32", {"window": 9}, 128, 256, 64, "square"),
        ("float32", {}, 128, 130, 64, "multiples of 128"),
        ("bfloat16", {"causal": True}, 128, 128, 32, "multiple of 64 wide"),
    ],
)
def test_what_splash_refuses(dtype, parts, length, keys, width, reason):
    parts = {name: jnp.full((1, length), value) if "segments" in name else value for name, value in parts.items()}
    query, key = (jax.ShapeDtypeStruct((1, size, 2, width), dtype) for size in (length, keys))
    refused = fused.splash_refuses(query, key, Mask(**parts), None)
    assert refused is None if reason is None else reason in refused


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel runs on NVIDIA GPUs")
@pytest.mark.parametrize("parts", [{}, {"causal": True}, {"causal": True, "window": 40}], ids=str)
@pytest.mark.parametrize("width", [64, 256])
def test_cudnn_computes_what_the_formula_does(parts, width):
    mask, length = Mask(**parts), 128
    arrays = [0.5 * array for array in example(2, length, width, dtype="bfloat16")]
    if refused := fused.cudnn_refuses(arrays[0], arrays[1], mask, None):
        pytest.skip(refused)
    run = lambda *qkv: fused.cudnn(*qkv, mask=mask, scale=None)  # noqa: E731
    allowed = np.broadcast_to(np.asarray(mask.array(length, length))[:, 0], (BATCH, length, length))
    exact = [np.asarray(array, np.float32) for array in arrays]
    check(with_gradients(run, *arrays), by_formula(*exact, allowed), 0.05)  # bfloat16 has 8 bits


def test_long_sequences_are_chunked_and_what_is_observed_is_explicit(monkeypatch):
    monkeypatch.setattr(attention, "CHUNKED_FROM", LENGTH * LENGTH)
    arrays = example(2)[:3]
    called = []
    real = attention.chunked_attention
    monkeypatch.setattr(attention, "chunked_attention", lambda *a, **k: called.append(1) or real(*a, **k))
    attention.attend(*arrays, mask=Mask(causal=True))
    assert len(called) == 1
    attention.attend(*arrays, mask=Mask(causal=True), bias=jnp.zeros((1, HEADS, LENGTH, LENGTH)))
    attention.attend(*arrays, mask=Mask(causal=True), observe=lambda name, x: x)
    attention.attend(*arrays, mask=jnp.ones((1, 1, LENGTH, LENGTH), bool))
    attention.attend(*(x[:, :-1] for x in arrays), mask=Mask(causal=True))
    assert len(called) == 1
    with pytest.raises(ValueError, match="implementation='flash': choose one of auto"):
        attention.attend(*arrays, implementation="flash")
    with pytest.raises(ValueError, match="a bias"):
        attention.attend(*arrays, bias=jnp.zeros((1, HEADS, LENGTH, LENGTH)), implementation="chunked")
