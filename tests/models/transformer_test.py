"""What holds for every model: the reference, causality, padding, packing, caching, dropout, precision."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack
from transformer.models.transformer import Transformer, unembedding
from transformer.nn import cache as caches
from transformer.nn.tap import Patch, Tap

# Logits are of order 1 to 10, and float32 rounds each of a few dozen sums in a row to 6e-8 of its size.
CLOSE = dict(rtol=2e-4, atol=2e-4)


def rows(array):
    return [None] * 3 if array is None else array


# The whole forward pass


def test_logits_are_those_of_the_reference(case):
    expected = [case.expected(*pair) for pair in zip(case.tokens, rows(case.source), strict=True)]
    assert case.logits.dtype == np.float32
    np.testing.assert_allclose(case.logits, expected, **CLOSE)
    assert np.std(expected) > 0.1  # or closeness says nothing


def test_token_types_are_added(case):
    if not case.config.token_types:
        with pytest.raises(ValueError, match=r"token_types were given.*set token_types"):
            case.model.apply({"params": case.params}, case.tokens, token_types=case.tokens, **case.with_source())
        return
    types = case.tokens % case.config.token_types
    expected = [case.expected(*pair, None, kinds) for *pair, kinds in zip(case.tokens, types, strict=True)]
    np.testing.assert_allclose(case.apply(case.params, case.tokens, token_types=types), expected, **CLOSE)


# Causality


@pytest.fixture
def influence(case, quick):
    """By stack, `[T, S]` booleans: whether a logit at t has a gradient with respect to its embedding at s."""
    reader = np.random.default_rng(1).normal(size=case.config.vocab)
    lengths = {"decoder": case.tokens.shape[1]} if case.decodes else {"encoder": case.tokens.shape[1]}
    lengths |= {"encoder": case.source.shape[1]} if case.crosses else {}
    arguments = {"source": case.source[:1]} if case.crosses else {}

    def read(nudges):
        tap = Tap((), [Patch(f"{role}/embedding", nudge, mode="add") for role, nudge in nudges.items()])
        return case.model.apply({"params": case.params}, case.tokens[:1], tap=tap, **arguments)[0] @ reader

    zeros = {role: jnp.zeros((1, length, case.config.width)) for role, length in lengths.items()}
    jacobians = quick(jax.jacrev(read))(zeros)  # [T, 1, S, D]
    return {role: np.any(jacobian != 0, axis=(1, 3)) for role, jacobian in jacobians.items()}


def test_decoders_see_the_past_as_far_as_windows_reach_and_no_future_and_encoders_see_everything(case, influence):
    if case.config.encoder is not None:
        assert influence["encoder"].all()
    if not case.decodes:
        return
    length, stack = case.tokens.shape[1], case.config.decoder
    behind, reach = np.arange(length)[:, None] - np.arange(length), np.eye(length, dtype=int)
    windows = stack.attention.windows or (0,)
    for layer in range(stack.depth):
        reach = ((behind >= 0) & (behind < (windows[layer % len(windows)] or length))).astype(int) @ reach
    np.testing.assert_array_equal(influence["decoder"], reach > 0)


# Padding


def options(case, **changes):
    """Every array that says what a token may see, so that one compilation serves padding and packing."""

    def neutral(ids, prefix=""):
        count = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        return {f"{prefix}mask": ids >= 0, f"{prefix}segments": np.ones_like(ids), f"{prefix}positions": count}

    source = {"source": case.source} | neutral(case.source, "source_") if case.crosses else {}
    return neutral(case.tokens) | source | changes


def test_padding_changes_nothing_real_and_nothing_is_undefined(case):
    real = np.arange(case.tokens.shape[1]) < np.array([4, 6, 0])[:, None]
    arguments, source_real = options(case, mask=real), None
    if case.crosses:
        source_real = np.arange(case.source.shape[1]) < np.array([5, 2, 0])[:, None]
        arguments |= {"source_mask": source_real}
    out = np.asarray(case.apply(case.params, case.tokens, **arguments))
    assert np.isfinite(out).all()

    junk = arguments | ({"source": np.where(source_real, case.source, 0)} if case.crosses else {})
    other = np.asarray(case.apply(case.params, np.where(real, case.tokens, 0), **junk))
    np.testing.assert_array_equal(out[real], other[real])
    for row in (0, 1):
        source = case.source[row][source_real[row]] if case.crosses else None
        np.testing.assert_allclose(out[row][real[row]], case.expected(case.tokens[row][real[row]], source), **CLOSE)


def test_a_row_of_padding_alone_has_finite_gradients(quick, lively):
    stack = Stack(1, Attention(2))
    model = Transformer(ModelConfig(13, 8, encoder=stack, decoder=stack))
    tokens, arguments = np.arange(3)[None], {"source": np.arange(4)[None]}
    masks = {"mask": np.zeros((1, 3), bool), "source_mask": np.zeros((1, 4), bool)}
    loss = lambda params: model.apply({"params": params}, tokens, **arguments, **masks).sum()  # noqa: E731
    gradients = quick(jax.grad(loss))(lively(model, tokens, **arguments))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


# Packing


def packed(*lengths):
    """Segments and restarting positions of documents with these lengths."""
    segments = np.concatenate([np.full(length, number + 1) for number, length in enumerate(lengths)])
    return segments, np.concatenate([np.arange(length) for length in lengths])


def documents(segments):
    return [(row, number) for row, numbers in enumerate(segments) for number in np.unique(numbers)]


def test_packed_documents_are_read_as_if_alone(case):
    segments, positions = map(np.stack, zip(packed(4, 2), packed(1, 2, 3), packed(6), strict=True))
    arguments, sources = options(case, segments=segments, positions=positions), None
    if case.crosses:
        sources, places = map(np.stack, zip(packed(2, 3), packed(1, 1, 3), packed(5), strict=True))
        arguments |= {"source_segments": sources, "source_positions": places}
    out = np.asarray(case.apply(case.params, case.tokens, **arguments))
    for row, segment in documents(segments):
        own = segments[row] == segment
        source = case.source[row][sources[row] == segment] if case.crosses else None
        np.testing.assert_allclose(out[row][own], case.expected(case.tokens[row][own], source), **CLOSE)


# Caching


def prefilled(case):
    return {"source": case.source, "source_mask": np.ones_like(case.source, bool)} if case.crosses else {}


@pytest.mark.slow  # the next one reads rows of different lengths in pieces
def test_reading_in_pieces_with_a_cache_is_reading_at_once(decoding):
    cache = caches.empty(decoding.config, 3, 8, decoding.source.shape[1] if decoding.crosses else None)
    pieces, arguments = [], prefilled(decoding)
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        piece = decoding.tokens[:, start:stop]
        logits, cache = decoding.apply(decoding.params, piece, cache=cache, **arguments)
        pieces.append(logits)
        arguments = {}  # the cache holds the source from here on
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), decoding.logits, **CLOSE)
    np.testing.assert_array_equal(cache.length, [6, 6, 6])


def test_rows_of_a_cache_may_hold_different_numbers_of_tokens(decoding):
    lengths = np.array([3, 1, 2])
    cache = caches.empty(decoding.config, 3, 8, decoding.source.shape[1] if decoding.crosses else None)
    cache = cache.replace(key=cache.key + 9.0, value=cache.value - 9.0)  # what earlier rows may have left behind
    _, cache = decoding.apply(decoding.params, decoding.tokens[:, :3], cache=cache, **prefilled(decoding))
    cache = cache.replace(length=jnp.asarray(lengths))
    for count in (1, 2):
        wanted = lengths[:, None] + np.arange(count)
        piece = np.take_along_axis(decoding.tokens, wanted, axis=1)
        logits, cache = decoding.apply(decoding.params, piece, cache=cache)
        expected = np.take_along_axis(decoding.logits, wanted[..., None], axis=1)
        np.testing.assert_allclose(logits, expected, **CLOSE)
        lengths = lengths + count


def test_a_cache_remembers_which_source_tokens_are_real(crossing):
    real = np.arange(crossing.source.shape[1]) < np.array([5, 2, 3])[:, None]
    cache = caches.empty(crossing.config, 3, 8, crossing.source.shape[1])
    first, rest = crossing.tokens[:, :3], crossing.tokens[:, 3:4]
    _, cache = crossing.apply(crossing.params, first, cache=cache, source=crossing.source, source_mask=real)
    logits, _ = crossing.apply(crossing.params, rest, cache=cache)
    for row in range(3):
        expected = crossing.expected(crossing.tokens[row, :4], crossing.source[row][real[row]])
        np.testing.assert_allclose(logits[row, 0], expected[3], **CLOSE)


# Dropout


@pytest.fixture
def dropped(lively, quick):
    """`dropped(site, stack=rate)(key)` is the logits of an encoder-decoder and its captures at the site."""

    def build(*capture, train=True, **rates):
        parts = Attention(2, dropout=rates.get("attention", 0.0)), Mlp(16, dropout=rates.get("mlp", 0.0))
        stack = Stack(2, *parts, dropout=rates.get("stack", 0.0))
        model = Transformer(ModelConfig(13, 8, encoder=stack, decoder=stack))
        tokens, source = np.arange(8).reshape(2, 4), np.arange(6).reshape(2, 3)
        params = lively(model, tokens, source=source)

        def run(key):
            tap, rngs = Tap(capture), None if key is None else {"dropout": key}
            logits = model.apply({"params": params}, tokens, source=source, tap=tap, train=train, rngs=rngs)
            return logits, tap.taps().stacked()

        return run

    return build


def test_dropout_is_a_function_of_its_key_and_off_without_train(dropped, quick):
    rates = dict(stack=0.2, attention=0.2, mlp=0.2)
    logits = quick(lambda seed: dropped(**rates)(jax.random.key(seed))[0])
    np.testing.assert_array_equal(logits(1), logits(1))
    assert np.abs(logits(1) - logits(2)).max() > 1e-3
    off = quick(lambda: dropped(train=False, **rates)(None)[0])()
    assert np.abs(logits(1) - off).max() > 1e-3


def test_dropout_keeps_the_mean(dropped, quick):
    sites = {"stack": "encoder/0/residual_pre", "attention": "encoder/0/mixed", "mlp": "encoder/0/mlp/inner"}
    keys = jax.random.split(jax.random.key(0), 600)

    def sample(where, site, **options):
        return dropped(site, **{where: 0.3}, **options)

    drawn = {site: sample(where, site) for where, site in sites.items()}
    plain = {site: sample(where, site, train=False) for where, site in sites.items()}
    drawn = quick(jax.vmap(lambda key: {site: run(key)[1] for site, run in drawn.items()}))(keys)
    plain = quick(lambda: {site: run(None)[1] for site, run in plain.items()})()
    for site in sites.values():
        (out,), (off,) = jax.tree.leaves(drawn[site]), jax.tree.leaves(plain[site])
        error = np.std(out, axis=0) / np.sqrt(len(keys))
        assert (error > 0).any()
        # Five standard errors: one value in a million is further off by chance.
        assert (np.abs(np.mean(out, axis=0) - off) <= 5.0 * error + 1e-6).all()


def test_layers_drop_differently(dropped, quick):
    sites = [f"{role}/{layer}/mlp/inner" for role in ("encoder", "decoder") for layer in (0, 1)]
    taps = quick(lambda: dropped(*sites, mlp=0.5)(jax.random.key(0))[1])()
    kept = [taps[f"{role}/*/mlp/inner"][layer] != 0 for role in ("encoder", "decoder") for layer in (0, 1)]
    assert all(0.2 < np.mean(layer) < 0.8 for layer in kept)
    assert not any(np.array_equal(kept[i][:, :3], kept[j][:, :3]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("where", ["stack", "attention", "mlp"])
def test_training_needs_a_key_for_dropout(dropped, where):
    with pytest.raises(ValueError, match=r"train=True.*dropout.*rngs=\{'dropout': key\}"):
        jax.eval_shape(lambda: dropped(**{where: 0.1})(None))


def test_training_without_dropout_needs_no_key_and_changes_nothing(dropped, quick):
    trained, plain = quick(lambda: (dropped()(None)[0], dropped(train=False)(None)[0]))()
    np.testing.assert_array_equal(trained, plain)


# Precision


@pytest.mark.parametrize(
    ("case", "dtype", "bits"),
    [("gemma", "bfloat16", 8), ("gemma", "float16", 11), ("t5", "bfloat16", 8), ("bert", "bfloat16", 8)],
    indirect=["case"],
)
def test_half_precision_is_close_to_float32(case, dtype, bits, quick):
    model = Transformer(dataclasses.replace(case.config, dtype=dtype))

    logits = quick(lambda params: model.apply({"params": params}, case.tokens, **case.with_source()))(case.params)
    assert logits.dtype == jnp.float32
    # Each rounding errs by 2^-bits of the value; some tens of them in a row add up like a random walk.
    error = np.linalg.norm(logits - case.logits) / np.linalg.norm(case.logits)
    assert 0 < error < 25 * 2.0**-bits


def test_half_precision_has_float32_gradients_of_float32_parameters(quick, lively):
    stack = Stack(1, Attention(2, 1, query_key_norm=True), Mlp(16), position=Position("relative"))
    config, tokens = ModelConfig(13, 8, decoder=stack), np.arange(6)[None]
    params = lively(Transformer(config), tokens)

    def gradients(config):
        loss = lambda params: jnp.mean(jax.nn.logsumexp(Transformer(config).apply({"params": params}, tokens), -1))  # noqa: E731
        return quick(jax.grad(loss))(params)

    exact, rough = gradients(config), gradients(dataclasses.replace(config, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype("float32")}
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (exact, rough)]
    # As above, twice over: forwards and backwards.
    assert 0 < np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0]) < 50 * 2.0**-8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_have_their_own_dtype(dtype):
    config = ModelConfig(13, 8, decoder=Stack(1), param_dtype=dtype)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}


# Parameters


def shapes_of(model, **arguments):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32), **arguments)["params"]
    flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return {"/".join(entry.key for entry in path): leaf.shape for path, leaf in flat}


def projection(name, inputs, outputs, bias=True):
    return {f"{name}/kernel": (3, *inputs, *outputs)} | ({f"{name}/bias": (3, *outputs)} if bias else {})


def test_parameter_paths_of_a_decoder():
    attention = Attention(4, 2, 6, bias=True, output_bias=True, query_key_norm=True)
    stack = Stack(3, attention, Mlp(20, bias=True), Norm("layer", bias=True), embedding_norm=True)
    model = Transformer(ModelConfig(13, 8, decoder=stack, token_types=2, readout=Readout(tied=False, bias=True)))
    blocks = {
        **{f"{norm}/{name}": (3, 8) for norm in ("attention_norm", "mlp_norm") for name in ("scale", "bias")},
        **projection("attention/query", (8,), (4, 6)),
        **projection("attention/key", (8,), (2, 6)),
        **projection("attention/value", (8,), (2, 6)),
        **projection("attention/output", (4, 6), (8,)),
        "attention/query_norm/scale": (3, 6),
        "attention/key_norm/scale": (3, 6),
        **projection("mlp/up", (8,), (20,)),
        **projection("mlp/gate", (8,), (20,)),
        **projection("mlp/down", (20,), (8,)),
    }
    assert shapes_of(model) == {
        "embedding/table": (13, 8),
        "embedding/types": (2, 8),
        "decoder/embedding_norm/scale": (8,),
        "decoder/embedding_norm/bias": (8,),
        **{f"decoder/blocks/{path}": shape for path, shape in blocks.items()},
        "decoder/final_norm/scale": (8,),
        "decoder/final_norm/bias": (8,),
        "readout/kernel": (8, 13),
        "readout/bias": (13,),
    }


def plain_blocks(norms, attentions):
    blocks = {f"{norm}/scale": (3, 8) for norm in norms}
    for name in attentions:
        for part in ("query", "key", "value"):
            blocks |= projection(f"{name}/{part}", (8,), (2, 4), bias=False)
        blocks |= projection(f"{name}/output", (2, 4), (8,), bias=False)
    return blocks | projection("mlp/up", (8,), (20,), False) | projection("mlp/down", (20,), (8,), False)


def test_parameter_paths_of_an_encoder():
    stack = Stack(3, Attention(2), Mlp(20, gated=False), norm_placement="post", position=Position("learned"))
    config = ModelConfig(13, 8, encoder=stack, length=16, pooler=True, readout=Readout(transform=True))
    blocks = plain_blocks(("attention_norm", "mlp_norm"), ("attention",))
    assert shapes_of(Transformer(config)) == {
        "embedding/table": (13, 8),
        "encoder/positions/table": (16, 8),
        **{f"encoder/blocks/{path}": shape for path, shape in blocks.items()},
        "readout/transform/kernel": (8, 8),
        "readout/transform/bias": (8,),
        "readout/norm/scale": (8,),
        "pooler/kernel": (8, 8),
        "pooler/bias": (8,),
    }


def test_parameter_paths_of_an_encoder_decoder():
    stack = Stack(3, Attention(2), Mlp(20, gated=False), position=Position("relative", buckets=10))
    model = Transformer(ModelConfig(13, 8, encoder=stack, decoder=stack))
    norms = {"encoder": ("attention_norm", "mlp_norm"), "decoder": ("attention_norm", "cross_norm", "mlp_norm")}
    parts = {"encoder": ("attention",), "decoder": ("attention", "cross_attention")}
    expected = {"embedding/table": (13, 8)}
    for role in ("encoder", "decoder"):
        blocks = plain_blocks(norms[role], parts[role])
        expected |= {f"{role}/blocks/{path}": shape for path, shape in blocks.items()}
        expected |= {f"{role}/relative/table": (10, 2), f"{role}/final_norm/scale": (8,)}
    assert shapes_of(model, source=jnp.zeros((1, 3), jnp.int32)) == expected


def test_parameter_paths_of_a_decoder_with_norms_on_both_sides():
    stack = Stack(3, Attention(2), Mlp(20, gated=False), norm_placement="both")
    model = Transformer(ModelConfig(13, 8, encoder=dataclasses.replace(stack, norm_placement="pre"), decoder=stack))
    norms = [f"{half}_{name}" for half in ("attention", "cross", "mlp") for name in ("norm", "post_norm")]
    blocks = plain_blocks(norms, ("attention", "cross_attention"))
    found = shapes_of(model, source=jnp.zeros((1, 3), jnp.int32))
    assert {path: shape for path, shape in found.items() if path.startswith("decoder/")} == {
        **{f"decoder/blocks/{path}": shape for path, shape in blocks.items()},
        "decoder/final_norm/scale": (8,),
    }


# The other entries


def test_the_pooler_reads_the_first_position(lively):
    stack = Stack(1, Attention(2))
    model = Transformer(ModelConfig(13, 8, encoder=stack, pooler=True))
    tokens, mask = jnp.arange(8).reshape(2, 4), jnp.arange(4) < jnp.array([[4], [2]])
    params = lively(model, tokens)
    pooled = model.apply({"params": params}, tokens, mask=mask, method="pool")
    hidden = np.asarray(model.apply({"params": params}, tokens, mask=mask, method="encode"), np.float64)
    expected = np.tanh(hidden[:, 0] @ np.float64(params["pooler"]["kernel"]) + np.float64(params["pooler"]["bias"]))
    np.testing.assert_allclose(pooled, expected, **CLOSE)


@pytest.mark.parametrize("readout", [Readout(bias=True, scale=True, transform=True), Readout(tied=False, softcap=3.0)])
def test_features_and_the_unembedding_make_the_logits(readout, lively):
    model, tokens = (
        Transformer(ModelConfig(13, 8, decoder=Stack(1, Attention(2)), readout=readout)),
        jnp.arange(4)[None],
    )
    params = lively(model, tokens)
    features, cache = model.apply({"params": params}, tokens, method="features")
    kernel, bias = unembedding(model.config, params)
    logits = np.float64(features) @ np.float64(kernel) + (0 if bias is None else np.float64(bias))
    logits = logits if readout.softcap is None else readout.softcap * np.tanh(logits / readout.softcap)
    assert cache is None and (bias is None) == (not readout.bias)
    np.testing.assert_allclose(model.apply({"params": params}, tokens), logits, **CLOSE)
    np.testing.assert_allclose(model.apply({"params": params}, features, method="read"), logits, **CLOSE)


# Errors

DECODER = ModelConfig(13, 8, decoder=Stack(1, Attention(2), position=Position("learned")), length=4)
ENCODER = dataclasses.replace(DECODER, decoder=None, encoder=DECODER.decoder)
BOTH = dataclasses.replace(DECODER, encoder=DECODER.decoder)
IDS = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("config", "tokens", "arguments", "message"),
    [
        (DECODER, IDS[0], {}, r"tokens must be \[B, T\] integers, not int32 of shape \(3,\)"),
        (DECODER, IDS * 1.0, {}, r"tokens must be \[B, T\] integers, not float64"),
        (DECODER, np.zeros((2, 5), int), {}, r"tokens has length 5, but the model has 4 learned positions"),
        (DECODER, IDS, {"source": IDS}, r"source was given.*pass tokens alone"),
        (DECODER, IDS, {"mask": IDS[:, :2] == 0}, r"mask of tokens has shape \(2, 2\); .* \(2, 3\)"),
        (DECODER, IDS, {"segments": IDS[:1]}, r"segments of tokens has shape \(1, 3\); .* \(2, 3\)"),
        (DECODER, IDS, {"positions": np.arange(3)}, r"positions of tokens has shape \(3,\); .* \(2, 3\)"),
        (DECODER, IDS, {"source_mask": IDS == 0}, r"source_mask.*pass source as well"),
        (DECODER, IDS, {"method": "encode"}, r"no encoder.*encoder=Stack"),
        (ENCODER, IDS, {"source": IDS}, r"source was given.*pass tokens alone"),
        (ENCODER, np.zeros((2, 5), int), {"method": "encode"}, r"tokens has length 5, .* 4 learned positions"),
        (ENCODER, IDS, {"method": "pool"}, r"no pooler.*pooler=True"),
        (ENCODER, IDS, {"token_types": IDS}, r"token_types were given.*set token_types"),
        (BOTH, IDS, {}, r"needs source: pass source"),
        (BOTH, IDS, {"source": IDS[0]}, r"source must be \[B, T\] integers"),
        (BOTH, IDS, {"source": np.zeros((2, 5), int)}, r"source has length 5, but the model has 4 learned positions"),
        (BOTH, IDS, {"source": IDS, "segments": IDS}, r"segments and source_segments come together"),
        (BOTH, IDS, {"source": IDS, "source_mask": IDS[:, :2] == 0}, r"mask of source has shape \(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(config, tokens, arguments, message, lively):
    model, source = Transformer(config), {"source": IDS} if config.encoder and config.decoder else {}
    with pytest.raises(ValueError, match=message):
        model.apply({"params": lively(model, IDS, **source)}, tokens, **arguments)


@pytest.mark.parametrize(
    ("config", "cache", "tokens", "arguments", "message"),
    [
        (DECODER, (2, 4), IDS, {"mask": IDS == 0}, r"mask and segments cannot be combined with a cache.*cache.length"),
        (DECODER, (3, 4), IDS, {}, r"tokens \(2, 3\) do not fit a cache of 3 rows and 4 slots"),
        (DECODER, (2, 2), IDS, {}, r"tokens \(2, 3\) do not fit a cache of 2 rows and 2 slots"),
        (BOTH, (2, 4, 4), IDS, {"source": IDS}, r"source has length 3, but the cache was made for 4"),
        (BOTH, (2, 4, 3), IDS, {"source_mask": IDS == 0}, r"source_mask.*pass source as well"),
    ],
)
def test_what_does_not_fit_a_cache_is_refused(config, cache, tokens, arguments, message, lively):
    model, source = Transformer(config), {"source": IDS} if config.encoder and config.decoder else {}
    cache = caches.empty(config, *cache)
    with pytest.raises(ValueError, match=message):
        model.apply({"params": lively(model, IDS, **source)}, tokens, cache=cache, **arguments)


def test_an_encoder_has_no_use_for_a_cache():
    model, cache = Transformer(ENCODER), caches.empty(DECODER, 2, 4)
    with pytest.raises(ValueError, match="a cache was given, but the model has no decoder"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), IDS, cache=cache))
