from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Patch
from transformer.nn.tap import MODES


def edited(patches, found):
    """The same patches on NumPy arrays, by slices."""

    def edit(site, x):
        for patch in (patch for patch in patches if patch.site == site):
            place, axes = [slice(None)] * x.ndim, found[site].axes
            if patch.head is not None:
                place[axes.index("H" if "H" in axes else "G")] = patch.head
            if patch.position is not None:
                place[axes.index("T" if "T" in axes else "S")] = patch.position
            x, old = x.copy(), x[tuple(place)]
            x[tuple(place)] = {"set": patch.value, "add": old + patch.value, "scale": old * patch.value}[patch.mode]
        return x

    return edit


@pytest.mark.parametrize("shift", range(3), ids=MODES)
def test_every_mode_at_every_site_agrees_with_numpy(build, reference, shift):
    # All sites are patched in one run; over the three runs each site meets each mode, by layer, head and position.
    model, params, tokens, arguments = build("encoder and decoder")
    found = inspection.sites(model, batch=2, length=5, source_length=7)
    patches = []
    for number, (site, (axes, _, _)) in enumerate(found.items()):
        head = number % 2 - number % 3 // 2 if set(axes) & set("HG") else None
        position = None if number % 5 == 0 else number % 5 - 1
        value = 0.5 + 0.1 * (number % 7)
        patches.append(Patch(site, value, MODES[(number + shift) % 3], head=head, position=position))
    logits, taps = inspection.run(model, params, tokens, capture="**", patches=patches, **arguments)
    expected = reference(model, params, edited(patches, found))
    np.testing.assert_allclose(logits, expected(tokens, **arguments), rtol=1e-3, atol=1e-3)
    assert set(taps) == set(expected.taps)
    for site in taps:
        np.testing.assert_allclose(taps[site], expected.taps[site], rtol=1e-3, atol=1e-3, err_msg=site)


@pytest.mark.parametrize("mode", MODES)
def test_a_value_and_a_mask_may_have_a_part_for_each_layer(build, reference, mode):
    model, params, tokens, _ = build("decoder", depth=3)
    draw = np.random.default_rng(3)
    value, mask = draw.normal(size=(3, 1, 5, 4, 6)), draw.random((3, 2, 5, 1, 1)) < 0.5
    patch = Patch("decoder/*/mixed", value, mode, head=2, mask=mask)

    def edit(site, x):
        if not site.endswith("/mixed"):
            return x
        layer = int(site.split("/")[1])
        new = {"set": value[layer], "add": x + value[layer], "scale": x * value[layer]}[mode]
        return np.where(mask[layer] & (np.arange(4) == 2)[:, None], new, x)

    logits, _ = inspection.run(model, params, tokens, patches=patch)
    np.testing.assert_allclose(logits, reference(model, params, edit)(tokens), rtol=3e-4, atol=3e-4)
    only = lambda site, x: edit(site, x) if site == "decoder/1/mixed" else x  # noqa: E731
    logits, _ = inspection.run(model, params, tokens, patches=patch.replace(layer=1))
    np.testing.assert_allclose(logits, reference(model, params, only)(tokens), rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize("mode, value", [("scale", 1.0), ("add", 0.0)])
def test_patches_that_say_nothing_change_nothing(build, reference, mode, value):
    model, params, tokens, _ = build("decoder")
    patches = [Patch(site, value, mode) for site in inspection.sites(model)]
    logits, _ = inspection.run(model, params, tokens, patches=patches)
    np.testing.assert_allclose(logits, reference(model, params)(tokens), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("changes", [{}, {"unroll": 2}, {"unroll": 3, "remat": "full"}], ids=str)
def test_a_silenced_head_is_a_head_without_output_kernel(build, reference, changes):
    model, params, tokens, _ = build("decoder", changes, depth=3)
    kernel = params["decoder"]["blocks"]["attention"]["output"]["kernel"]
    for layer, head in ((0, 1), (2, 3)):
        without = jax.tree.map(lambda leaf: leaf.at[layer, head].set(0) if leaf is kernel else leaf, params)  # noqa: B023
        expected = reference(model, without)(tokens)
        for index in ((layer, head), (layer - 3, head - 4)):
            patch = Patch("decoder/*/mixed", 0.0, layer=index[0], head=index[1])
            logits, _ = inspection.run(model, params, tokens, patches=(patch,))
            np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)


def test_the_last_residual_of_another_run_gives_its_logits(build):
    model, params, tokens, _ = build("decoder")
    site = "decoder/1/residual_post"
    clean, _ = inspection.run(model, params, tokens, capture=site)
    other, taps = inspection.run(model, params, (tokens + 3) % 11, capture=site)
    patch = Patch(site, taps[site])
    np.testing.assert_allclose(inspection.run(model, params, tokens, patches=(patch,))[0], other, rtol=1e-5, atol=1e-5)
    last, _ = inspection.run(model, params, tokens, patches=(patch.replace(position=-1),))
    np.testing.assert_allclose(last, jnp.concatenate([clean[:, :-1], other[:, -1:]], axis=1), rtol=1e-5, atol=1e-5)


def test_vmap_over_everything_traced_is_a_python_loop(build):
    model, params, tokens, _ = build("decoder")

    def run(value, layer, head, position):
        patch = Patch("decoder/*/pattern", value, "scale", layer=layer, head=head, position=position)
        return inspection.run(model, params, tokens, patches=(patch,))[0]

    draw = np.random.default_rng(1)
    cases = [jnp.asarray(draw.normal(size=6), jnp.float32)]
    cases += [jnp.asarray(draw.integers(-size, size, 6)) for size in (2, 4, 5)]
    looped = jnp.stack([run(float(case[0]), *map(int, case[1:])) for case in zip(*cases, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(*cases), looped, rtol=1e-5, atol=1e-5)
    assert np.all(np.std(looped, axis=0).max(axis=-1)[:, -1] > 1e-3)  # the cases differ


def test_a_mask_chooses_the_entries_and_later_patches_see_earlier_ones(build, reference):
    model, params, tokens, _ = build("decoder")
    mask = np.random.default_rng(2).random((2, 4, 5, 5)) < 0.5
    site = "decoder/1/scores"
    patches = (
        Patch(site, 2.0, mask=mask),
        Patch(site, 3.0, "scale", position=4),
        Patch(site, 1.0, "add", mask=mask[:1]),
    )
    _, taps = inspection.run(model, params, tokens, capture=site, patches=patches)
    clean = reference(model, params)
    clean(tokens)
    expected = np.where(mask, 2.0, clean.taps[site])
    expected[:, :, 4] *= 3
    np.testing.assert_allclose(taps[site], expected + mask[:1], rtol=2e-4, atol=2e-4)


def test_the_gradient_through_a_patch_is_the_slope_of_the_numpy_model(build, reference):
    model, params, tokens, _ = build("decoder", {"remat": "full"})
    patch = Patch("decoder/0/mixed", 0.7, "scale", head=2)

    def loss(value):
        return jnp.mean(inspection.run(model, params, tokens, patches=(patch.replace(value=value),))[0] ** 2)

    def slope(value, step=1e-5):
        found = inspection.sites(model)
        ends = [reference(model, params, edited([patch.replace(value=v)], found)) for v in (value - step, value + step)]
        low, high = (np.mean(end(tokens) ** 2) for end in ends)
        return (high - low) / (2 * step)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.7), slope(0.7), rtol=1e-3)


@pytest.mark.parametrize(
    "patch, message",
    [
        (Patch("decoder/7/pattern"), r"decoder/7/pattern: layer=7 is out of range; there are 2"),
        (Patch("decoder/*/pattern", layer=-3), r"decoder/\*/pattern: layer=-3 is out of range"),
        (Patch("decoder/1/key", head=2), r"decoder/1/key: head=2 is out of range; there are 2: use 0 to 1"),
        (Patch("logits", position=5), r"logits: position=5 is out of range"),
        (Patch("logits", position=jnp.arange(2)), r"logits: position=\[0 1\] must be one integer"),
        (Patch("decoder/1/mixed", head="1"), r"decoder/1/mixed: head=1 must be one integer"),
        (Patch("logits", value="x"), r"logits: value must be real numbers, not <U1 of shape \(\)"),
        (Patch("logits", value=jnp.asarray(1j)), r"logits: value must be real numbers, not complex64"),
        (Patch("logits", position=1.0), r"logits: position=1.0 must be one integer"),
        (Patch("logits", layer=0), r"logits: the site has no layers, so leave out layer=0"),
        (Patch("decoder/1/output", head=0), r"decoder/1/output: the site has no heads"),
        (
            Patch("decoder/1/output", layer=1),
            r"the site names its layer, so leave out layer=1, or use decoder/\*/output",
        ),
        (Patch("decoder/1/output", mode="ablate"), r"mode='ablate' is unknown; choose one of set, add, scale"),
        (Patch("decoder/1/output", np.ones(3)), r"value of shape \(3,\) does not broadcast to the site's \(2, 5, 8\)"),
        (Patch("decoder/1/output", np.ones((2, 2, 5, 8))), r"value of shape \(2, 2, 5, 8\) does not broadcast"),
        (Patch("decoder/*/output", np.ones((3, 2, 5, 8))), r"to the site's \(2, 5, 8\), with or without its 2 layers"),
        (Patch("logits", np.ones((2, 2, 5, 11))), r"value of shape \(2, 2, 5, 11\) does not broadcast to the site's"),
        (Patch("decoder/1/output", mask=np.ones((5, 2), bool)), r"mask of shape \(5, 2\) does not broadcast"),
        (Patch("decoder/1/output", mask=np.ones(8)), r"mask must be booleans, not float64"),
        (Patch("decoder/*/mlp/*"), r"'decoder/\*/mlp/\*' is a pattern: .* decoder/\*/mlp/inner, decoder/\*/mlp/outer"),
        (Patch("decoder/1/patern"), r"no site is called 'decoder/\*/patern'; the nearest are decoder/\*/pattern"),
        (Patch("encoder/0/pattern"), r"no site is called 'encoder/\*/pattern'"),
        (Patch("decoder/0/cross/pattern"), r"no site is called 'decoder/\*/cross/pattern'"),
    ],
    ids=lambda case: case.site if isinstance(case, Patch) else "",
)
def test_a_patch_that_cannot_have_been_meant_is_refused_in_one_line(build, patch, message):
    model, params, tokens, _ = build("decoder")
    with pytest.raises(ValueError, match=message) as error:
        inspection.run(model, params, tokens, patches=(patch,))
    assert "\n" not in str(error.value)
