from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Patch
from transformer.models.config import Attention
from transformer.models.feed_forward import Experts, Mlp
from transformer.nn import cache


@pytest.mark.parametrize(
    "roles, stack",
    [
        ("decoder", {}),
        ("encoder", {"norm_placement": "post"}),
        ("encoder and decoder", {}),
        ("encoder and decoder", {"norm_placement": "both"}),
        ("decoder", {"parallel": True}),
        ("decoder", {"mlp": Mlp(experts=Experts(5, 2))}),
    ],
    ids=str,
)
def test_every_capture_agrees_with_numpy(build, reference, roles, stack):
    model, params, tokens, arguments = build(roles, **stack)
    logits, taps = inspection.run(model, params, tokens, capture="**", **arguments)
    expected = reference(model, params)
    np.testing.assert_allclose(logits, expected(tokens, **arguments), rtol=2e-4, atol=2e-4)
    assert set(taps) == set(expected.taps)
    for site in taps:  # in float32, over two layers, sums of up to 32 terms
        np.testing.assert_allclose(taps[site], expected.taps[site], rtol=2e-4, atol=2e-4, err_msg=site)


def test_a_sweep_over_heads_of_a_mixture_is_each_head_by_itself(build):
    model, params, tokens, _ = build("decoder", mlp=Mlp(12, experts=Experts(3, 2)))
    silence, metric = Patch("decoder/*/mixed", 0.0), lambda logits: logits[0, -1, 3]
    swept = inspection.sweep(model, params, tokens, silence, metric=metric, layers="all", heads="all")
    for layer, head in ((0, 1), (1, 3)):
        alone, _ = inspection.run(model, params, tokens, patches=silence.replace(layer=layer, head=head))
        np.testing.assert_allclose(swept[layer, head], metric(alone), rtol=1e-4, atol=1e-5)


def test_lists_and_numpy_booleans_will_do_and_nothing_at_all_will_not(build):
    model, params, tokens, _ = build("decoder")
    plain, _ = inspection.run(model, params, tokens)
    listed, _ = inspection.run(model, params, tokens.tolist(), train=np.bool_(False))
    np.testing.assert_array_equal(plain, listed)
    with pytest.raises(ValueError, match=r"tokens of shape \(2, 0\) are empty: give at least one token"):
        inspection.run(model, params, tokens[:, :0])


def test_a_patch_alone_is_a_tuple_of_one(build):
    model, params, tokens, _ = build("decoder")
    patch = Patch("decoder/0/output", 0.0, position=2)
    alone, several, none = (inspection.run(model, params, tokens, patches=p)[0] for p in (patch, [patch], ()))
    np.testing.assert_array_equal(alone, several)
    assert np.abs(alone - none).max() > 1e-2
    with pytest.raises(ValueError, match=r"layer=7 is out of range"):
        inspection.run(model, params, tokens, patches=patch.replace(site="decoder/7/output"))


def test_captures_have_the_shapes_and_the_order_that_sites_promises(build):
    model, params, tokens, arguments = build("encoder and decoder")
    _, taps = inspection.run(model, params, tokens, capture="**", **arguments)
    expected = inspection.sites(model, batch=2, length=5, source_length=7)
    assert list(taps) == list(expected)
    for site, array in taps.items():
        assert (array.shape, array.dtype) == (expected[site].shape, expected[site].dtype), site


def test_patterns_sum_to_one_over_what_may_be_attended_to(build):
    model, params, tokens, arguments = build("encoder and decoder")
    real, source_real = np.arange(5) < np.array([[5], [3]]), np.arange(7) < np.array([[4], [7]])
    masks = {"mask": jnp.asarray(real), "source_mask": jnp.asarray(source_real)}
    _, taps = inspection.run(model, params, tokens, capture="**/pattern", **arguments, **masks)
    visible = {
        "decoder/*/pattern": real[:, None, None, :] & np.tri(5, dtype=bool),
        "decoder/*/cross/pattern": source_real[:, None, None, :] & np.ones((5, 1), bool),
        "encoder/*/pattern": source_real[:, None, None, :] & np.ones((7, 1), bool),
    }
    assert set(taps.stacked()) == set(visible)
    for site, may in visible.items():
        pattern = np.asarray(taps[site])
        np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-6)
        assert np.array_equal(pattern > 0, np.broadcast_to(may, pattern.shape)), site


WINDOWED = {"depth": 4, "attention": Attention(heads=4, kv_heads=2, head_width=6, windows=(0, 3))}


@pytest.fixture(scope="module")
def every(build):
    model, params, tokens, _ = build("decoder", **WINDOWED)
    return inspection.run(model, params, tokens, capture="**")[1]


@pytest.mark.parametrize("changes", [{}, {"unroll": 4, "remat": "full"}], ids=["scanned", "unrolled and remat"])
def test_chosen_layers_are_slices_of_all_layers(build, every, changes):
    model, params, tokens, _ = build("decoder", changes, **WINDOWED)
    logits, taps = inspection.run(model, params, tokens, capture=("decoder/3/**", "decoder/1/pattern", "logits"))
    assert taps.layers("decoder/*/pattern") == (1, 3) and taps.layers("decoder/*/key") == (3,)
    assert taps["decoder/*/pattern"].shape == (2, 2, 4, 5, 5)
    for site in taps:
        np.testing.assert_allclose(taps[site], every[site], rtol=1e-5, atol=1e-5, err_msg=site)
    np.testing.assert_allclose(logits, every["logits"], rtol=1e-5, atol=1e-5)


def test_capturing_one_layer_of_twelve_keeps_one_layer(build):
    model, params, _, _ = build("decoder", depth=12)
    tokens = jnp.zeros((8, 128), jnp.int32)

    def room(capture):
        compiled = jax.jit(lambda p, t: inspection.run(model, p, t, capture=capture)).lower(params, tokens).compile()
        memory = compiled.memory_analysis()
        return memory.output_size_in_bytes + memory.temp_size_in_bytes

    pattern = 8 * 4 * 128 * 128 * 4  # bytes of one layer
    one, all_of_them = room("decoder/5/pattern"), room("decoder/*/pattern")
    assert one < 6 * pattern  # the row itself, and scores and weights on their way
    assert all_of_them > one + 10 * pattern


def test_a_thousand_interventions_compile_once(build, caplog):
    model, params, tokens, _ = build("decoder")

    def intervene(layer, head, position, value):
        patch = Patch(f"decoder/{layer}/mixed", value, head=head, position=position)
        return inspection.run(model, params, tokens, patches=(patch,), capture="decoder/0/pattern")

    intervene(0, 0, 0, 0.5)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for number in range(8):
            intervene(
                number % 2, number % 4 - 2, np.int64(number % 5), [1, 2.5, np.float64(3), np.float32(4)][number % 4]
            )
        assert not [record for record in caplog.records if "ompil" in record.message]
        intervene(0, None, 0, 0.5)  # another structure is another program
        assert [record for record in caplog.records if "ompil" in record.message]


def test_it_runs_inside_jit_and_grad(build, reference):
    model, params, tokens, _ = build("decoder")

    def loss(params):
        logits, taps = inspection.run(model, params, tokens, capture="decoder/1/output")
        return jnp.mean(logits**2), taps

    (_, taps), through = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    plain = jax.jit(jax.grad(lambda p: jnp.mean(model.apply({"params": p}, tokens) ** 2)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), through, plain)
    expected = reference(model, params)
    expected(tokens)
    np.testing.assert_allclose(taps["decoder/1/output"], expected.taps["decoder/1/output"], rtol=2e-4, atol=2e-4)


def test_captures_under_vmap_keep_the_mapped_axis_in_front(build):
    model, params, tokens, _ = build("decoder")
    many = jax.vmap(lambda t: inspection.run(model, params, t, capture="**")[1])(
        jnp.stack([tokens, tokens + 1, tokens])
    )
    one = inspection.run(model, params, tokens + 1, capture="**")[1]
    for site in one:
        np.testing.assert_allclose(many[site][1], one[site], rtol=1e-5, atol=1e-5, err_msg=site)


def test_bfloat16_computes_in_bfloat16_and_softmax_in_float32(build, reference):
    model, params, tokens, _ = build("decoder", {"dtype": "bfloat16"})
    logits, taps = inspection.run(model, params, tokens, capture=("decoder/1/**", "logits"))
    wide = {name for name, array in taps.items() if array.dtype == jnp.float32}
    assert wide == {"decoder/1/scores", "decoder/1/pattern", "logits"}
    assert {array.dtype for array in taps.values()} == {jnp.dtype("float32"), jnp.dtype("bfloat16")}
    # bfloat16 keeps 8 bits: two layers of products end within a few percent of the logits' spread.
    expected = reference(model, params)(tokens)
    np.testing.assert_allclose(logits, expected, atol=0.15 * np.std(expected))


def test_dropout_and_caches_pass_through(build, reference):
    model, params, tokens, _ = build("decoder", dropout=0.5)
    noisy = lambda seed: inspection.run(model, params, tokens, train=True, rngs={"dropout": jax.random.key(seed)})[0]  # noqa: E731
    expected = reference(model, params)(tokens)
    np.testing.assert_array_equal(noisy(1), noisy(1))
    assert not np.allclose(noisy(1), noisy(2)) and not np.allclose(noisy(1), expected)
    kept = cache.empty(model.config, 2, 9)
    (logits, kept), taps = inspection.run(model, params, tokens, cache=kept, train=False, capture="decoder/1/pattern")
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
    assert taps["decoder/1/pattern"].shape == (2, 4, 5, 9) and kept.length.tolist() == [5, 5]


def test_a_glob_that_matches_nothing_names_the_nearest_sites(build):
    model, params, tokens, _ = build("decoder")
    for capture in ("decoder/*/patern", ("**", "decoder/2/pattern")):
        with pytest.raises(ValueError, match=r"no site is called .*decoder/0/pattern"):
            inspection.run(model, params, tokens, capture=capture)
    with pytest.raises(ValueError, match="no site is called 'encoder/"):
        inspection.run(model, params, tokens, capture="encoder/*/pattern")
