from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import circuits
from transformer.models.config import Attention, Mlp, Norm, Position, Scaling

LAYER = Norm("layer", 1e-5, bias=True)
PLAIN = Mlp(20, "gelu_tanh", gated=False, bias=True)
YARN = Scaling("yarn", 4.0, original_length=16, low=0.2, high=2.0, magnitude=1.3)
SHAPES = {
    "gpt2": ("decoder", dict(attention=Attention(4, bias=True), mlp=PLAIN, norm=LAYER, position=Position("learned"))),
    "llama": ("decoder", dict(depth=3)),
    "neox": (
        "decoder",
        dict(norm=Norm("layer"), parallel=True, position=Position(fraction=2 / 3, base=50.0, scaling=YARN)),
    ),
    "sandwich": (
        "decoder",
        dict(norm=Norm("layer", zero_centred=True), norm_placement="both", attention=Attention(4, 1, 10, scale=0.3)),
    ),
    "t5": ("encoder decoder", dict(position=Position("relative"), attention=Attention(4, 2, 6, scale=1.0))),
    "marian": ("encoder decoder", dict(norm=LAYER, norm_placement="post", position=Position("none"))),
}


ATTENTIONS = [
    ("gpt2", "decoder"),
    ("llama", "decoder"),
    ("neox", "decoder"),
    ("sandwich", "decoder"),
    ("t5", "decoder/cross"),
    ("marian", "decoder"),
    ("marian", "encoder"),
]


SITES = ("**/residual_pre", "**/residual_mid", "**/scores", "**/pattern", "**/head_output")


def quick(function):
    """`jax.jit` that spends less on optimising: these programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def built(build):
    return functools.cache(lambda name: build(SHAPES[name][0], **SHAPES[name][1]))


@pytest.fixture(scope="module")
def captured(built):
    """What a run of a shape captured."""

    @functools.cache
    def run(name):
        model, params, tokens, arguments = built(name)
        capture = (*SITES, "encoder/final_norm") if arguments else SITES
        taps = quick(lambda params: inspection.run(model, params, tokens, capture=capture, **arguments)[1])(params)
        return {site: np.asarray(array, np.float64) for site, array in taps.items()}

    return run


def seen(model, attention, taps, layer):
    """What a layer's queries and keys are made of, but for gain and bias of the norm: `[B, T, D]` and `[B, S, D]`."""
    role, cross = attention.split("/")[0], attention.endswith("cross")
    norm, placement = getattr(model.config, role).norm, getattr(model.config, role).norm_placement
    x = taps[f"{role}/{layer}/residual_{'mid' if cross else 'pre'}"]
    if placement != "post":
        x = x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + norm.epsilon)
    return x, taps["encoder/final_norm"] if cross else x


def constant(params, part, layer, head):
    """What a head of the model like GPT-2 adds to its queries, keys or values, whatever it reads."""
    block = jax.tree.map(lambda leaf: np.asarray(leaf[layer], np.float64), params["decoder"]["blocks"])
    own = block["attention"][part]
    return own["bias"][head] + block["attention_norm"]["bias"] @ own["kernel"][:, head]


@pytest.mark.parametrize("name, attention", ATTENTIONS)
def test_query_key_gives_the_scores_of_the_model(built, captured, name, attention):
    model, params, _, _ = built(name)
    taps, (role, *cross) = captured(name), attention.split("/")
    found = lambda distance: circuits.query_key(model, params, attention=attention, distance=distance)  # noqa: E731
    turns = getattr(model.config, role).position.kind == "rotary"
    factors = quick(jax.vmap(found))(jnp.arange(-4, 5)) if turns else [factor[None] for factor in found(None)]
    for layer, head in np.ndindex(factors[0].shape[1:3]):
        x, y = seen(model, attention, taps, layer)
        left, right = (np.asarray(factor[:, layer, head], np.float64) for factor in factors)  # [distances, ...]
        scores = np.einsum("btd,pdk,pke,bse->pbts", x, left, right, y)
        distance = np.arange(x.shape[1])[:, None] - np.arange(y.shape[1])
        scores = np.choose(distance + 4, scores) if turns else scores[0]
        if name == "gpt2":  # whose biases the matrix leaves out
            ours, theirs = (constant(params, part, layer, head) for part in ("query", "key"))
            scale = left.shape[-1] ** -0.5
            scores += (
                (x @ left[0] @ theirs)[:, :, None] + scale * (y @ right[0].T @ ours)[:, None] + scale * ours @ theirs
            )
        expected = taps["/".join([role, str(layer), *cross, "scores"])][:, head]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_gains_of_query_and_key_norms_are_folded_in(build):
    stack = dict(attention=Attention(4, 2, 6, query_key_norm=True), position=Position("none"))
    model, params, tokens, _ = build("decoder", **stack)
    capture = ("decoder/1/scores", "decoder/1/residual_pre")
    taps = quick(lambda params: inspection.run(model, params, tokens, capture=capture)[1])(params)
    x = seen(model, "decoder", {site: np.asarray(array) for site, array in taps.items()}, 1)[0]
    block = jax.tree.map(lambda leaf: np.asarray(leaf[1]), params["decoder"]["blocks"])
    x = x * block["attention_norm"]["scale"]
    factors = circuits.query_key(model, params)
    for head, group in enumerate((0, 0, 1, 1)):
        raw = [x @ block["attention"][part]["kernel"][:, index] for part, index in (("query", head), ("key", group))]
        sizes = [np.sqrt((array**2).mean(axis=-1)) for array in raw]
        products = (
            x / block["attention_norm"]["scale"] @ factors.dense()[1, head] @ (x / block["attention_norm"]["scale"]).mT
        )
        expected = taps["decoder/1/scores"][:, head] * sizes[0][:, :, None] * sizes[1][:, None]
        np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, attention", ATTENTIONS)
def test_output_value_gives_what_heads_of_the_model_write(built, captured, name, attention):
    model, params, _, _ = built(name)
    taps, (role, *cross) = captured(name), attention.split("/")
    factors = quick(lambda params: circuits.output_value(model, params, attention=attention))(params)
    for layer, head in np.ndindex(factors.left.shape[:2]):
        site = "/".join([role, str(layer), *cross, ""])
        moved = taps[f"{site}pattern"][:, head] @ seen(model, attention, taps, layer)[1] @ factors.dense()[layer, head]
        expected = taps[f"{site}head_output"][:, :, head]
        if name == "gpt2":  # a pattern sums to 1
            kernel = params["decoder"]["blocks"]["attention"]["output"]["kernel"]
            moved = moved + constant(params, "value", layer, head) @ kernel[layer, head]
        if name == "sandwich":  # the norm behind attention
            expected = expected - expected.mean(axis=-1, keepdims=True)
            expected = expected * (1 + params["decoder"]["blocks"]["attention_post_norm"]["scale"][layer])
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "sandwich"])  # heads narrower and wider than the model
def test_factors_without_norms_are_products_of_kernels_and_know_their_singular_values(built, name):
    model, params, _, _ = built(name)
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["decoder"]["blocks"]["attention"])
    found = {
        "qk": circuits.query_key(model, params, norms=False),
        "ov": circuits.output_value(model, params, norms=False),
    }
    width, groups = own["query"]["kernel"].shape[-1], own["key"]["kernel"].shape[2]
    for layer, head in np.ndindex(own["query"]["kernel"].shape[0], 4):
        query, key, value = (
            own[part]["kernel"][layer, :, index]
            for part, index in (("query", head), ("key", head * groups // 4), ("value", head * groups // 4))
        )
        scale = model.config.decoder.attention.scale or width**-0.5
        dense = {"qk": query @ key.T * scale, "ov": value @ own["output"]["kernel"][layer, head]}
        for circuit, factors in found.items():
            one = circuits.Factors(*(factor[layer, head] for factor in factors))
            singular = np.linalg.svd(dense[circuit], compute_uv=False)
            assert np.linalg.matrix_rank(dense[circuit]) == min(8, width) and np.all(singular[width:] < 1e-12)
            np.testing.assert_allclose(one.dense(), dense[circuit], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(one.norm(), np.linalg.norm(dense[circuit]), rtol=1e-5)
            # Of a small singular value rounding leaves less: its error is that of the largest one.
            np.testing.assert_allclose(one.singular_values(), singular[:width], atol=1e-5 * singular[0])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_composition_is_a_loop_over_pairs_of_dense_matrices(built, name):
    model, params, _, _ = built(name)
    params = jax.tree.map(jnp.array, params)
    kernel = params["decoder"]["blocks"]["attention"]["output"]["kernel"]
    params["decoder"]["blocks"]["attention"]["output"]["kernel"] = kernel.at[0, 2].set(0)  # a head that writes nothing
    found = quick(functools.partial(circuits.composition, model))(params)
    query_key, output_value = (
        np.asarray(circuit(model, params).dense(), np.float64)
        for circuit in (circuits.query_key, circuits.output_value)
    )
    layers = len(kernel)
    for first, head, second, other in np.ndindex(layers, 4, layers, 4):
        moves, reads = output_value[first, head], query_key[second, other]
        products = {"query": (moves, reads), "key": (moves, reads.T), "value": (moves, output_value[second, other])}
        for role, (one, two) in products.items():
            score = getattr(found, role)[first, head, second, other]
            if first >= second or (first, head) == (0, 2):
                assert score == 0
            else:
                sizes = np.linalg.norm(one) * np.linalg.norm(two)
                np.testing.assert_allclose(score, np.linalg.norm(one @ two) / sizes, rtol=1e-4)


@pytest.mark.parametrize(
    "name, call, message",
    [
        (
            "llama",
            lambda *m: circuits.query_key(*m, attention="encoder"),
            r"attention='encoder' is not in this model: .* decoder",
        ),
        ("llama", lambda *m: circuits.output_value(*m, attention="decoder/cross"), r"choose one of decoder$"),
        ("t5", lambda *m: circuits.output_value(*m, attention="cross"), r"one of decoder, decoder/cross, encoder"),
        ("t5", lambda *m: circuits.composition(*m, role="decoder/cross"), r"role='decoder/cross' cannot work"),
        ("gpt2", lambda *m: circuits.query_key(*m, distance=1), r"distance=1 cannot work: only .* rotary"),
        ("t5", lambda *m: circuits.query_key(*m, attention="decoder/cross", distance=0), r"distance=0 cannot work"),
    ],
)
def test_what_a_model_lacks_is_refused_in_one_line(built, name, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(*built(name)[:2])
    assert "\n" not in str(error.value)
