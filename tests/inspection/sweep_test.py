from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Patch
from transformer.inspection.sites import discover
from transformer.inspection.sweep import _chunk, _sweep


def last(logits):
    return {"all": logits[:, -1], "one": logits[0, -1, 3]}


@pytest.mark.parametrize("memory", [1, 2**30], ids=["one at a time", "all at once"])
def test_a_sweep_is_a_loop_over_layers_heads_and_positions(build, memory):
    model, params, tokens, arguments = build("encoder and decoder")
    patch = Patch("decoder/*/cross/mixed", 0.5, "scale")
    ranges = {"layers": "all", "heads": (3, -4, 1), "positions": np.array([4, 0])}
    out = inspection.sweep(model, params, tokens, patch, metric=last, memory=memory, **ranges, **arguments)
    assert out["all"].shape == (2, 3, 2, 2, 11) and out["one"].shape == (2, 3, 2)
    cases = itertools.product(range(2), range(3), range(2))
    for layer, head, position in cases:
        one = patch.replace(layer=layer, head=(3, 0, 1)[head], position=(4, 0)[position])
        logits, _ = inspection.run(model, params, tokens, patches=one, **arguments)
        np.testing.assert_allclose(out["all"][layer, head, position], logits[:, -1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out["one"][layer, head, position], logits[0, -1, 3], rtol=1e-5, atol=1e-5)
    assert np.std(out["one"], axis=(0, 1)).min() > 1e-4  # places differ


def test_values_of_another_run_go_to_their_own_places(build, reference):
    model, params, tokens, _ = build("decoder")
    other = (tokens + 3) % 11
    _, theirs = inspection.run(model, params, other, capture="decoder/*/mixed")
    patch = Patch("decoder/*/mixed", theirs["decoder/*/mixed"])
    out = inspection.sweep(model, params, tokens, patch, metric=last, layers="all", heads="all")
    clean = reference(model, params)
    clean(other)
    for layer, head in itertools.product(range(2), range(4)):

        def edit(site, x, layer=layer, head=head):
            if site == f"decoder/{layer}/mixed":
                x = x.copy()
                x[:, :, head] = clean.taps[site][:, :, head]
            return x

        expected = reference(model, params, edit)(tokens)[:, -1]
        np.testing.assert_allclose(out["all"][layer, head], expected, rtol=3e-4, atol=3e-4)


def test_other_patches_come_first_in_every_run(build):
    model, params, tokens, _ = build("decoder")
    besides = Patch("decoder/1/mlp/outer", 0.0)
    patch = Patch("decoder/*/residual_mid", 1.0, "add")
    out = inspection.sweep(model, params, tokens, patch, metric=last, layers=[1], besides=besides)
    expected, _ = inspection.run(model, params, tokens, patches=(besides, patch.replace(layer=1)))
    np.testing.assert_allclose(out["all"][0], expected[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [13, 30])
def test_memory_bounds_what_the_program_needs(build, count):
    model, params, _, _ = build("decoder", depth=3)
    tokens, memory = jnp.zeros((2, 48), jnp.int32), 2**22
    sites = discover(model, params, tokens, {})
    chunk = _chunk(sites, {"decoder/*/mixed"}, memory)
    assert 1 < chunk < count
    grid = {"position": np.arange(count, dtype=np.int32)}
    static = {"model": model, "metric": last, "flags": (), "chunk": chunk}
    compiled = _sweep.lower(params, tokens, Patch("decoder/*/mixed"), (), {}, grid, **static).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < memory


def test_the_same_metric_compiles_once(build, caplog):
    model, params, tokens, _ = build("decoder")
    sweep = lambda value: inspection.sweep(  # noqa: E731
        model, params, tokens, Patch("decoder/*/mixed", value), metric=last, layers="all"
    )
    sweep(0.0)
    jnp.asarray(1).astype(jnp.float32), jnp.asarray(1.0).astype(jnp.float32)  # not what is looked at
    with jax.log_compiles(), caplog.at_level("WARNING"):
        sweep(0.5)
        sweep(1)
        sweep(jnp.asarray(1))
        sweep(jnp.asarray(2.0))
    assert not [record for record in caplog.records if "ompil" in record.message]


MIXED = Patch("decoder/*/mixed")


@pytest.mark.parametrize(
    "patch, ranges, message",
    [
        (MIXED, {}, r"give layers, heads or positions"),
        (MIXED, {"layers": "every"}, r"layers='every' cannot work: give indices, or \"all\""),
        (MIXED, {"layers": (0, 2)}, r"layers=\(0, 2\) are out of range; there are 2: use 0 to 1, or -2 to -1"),
        (MIXED, {"heads": [1.5]}, r"heads=\[1.5\] cannot work: give a sequence of integers"),
        (MIXED, {"heads": []}, r"heads=\[\] cannot work"),
        (MIXED, {"heads": 3}, r"heads=3 cannot work"),
        (MIXED, {"positions": [5]}, r"positions=\[5\] are out of range; there are 5"),
        (MIXED, {"layers": "all", "memory": 0}, r"memory=0 cannot work: it counts bytes"),
        (MIXED.replace(head=1), {"heads": "all"}, r"goes over heads, so leave out head=1 of the patch"),
        (Patch("decoder/0/mixed"), {"layers": "all"}, r"needs a site with \* for the layer, not decoder/0/mixed"),
        (Patch("logits"), {"layers": "all"}, r"needs a site with \* for the layer, not logits"),
        (Patch("decoder/*/output"), {"heads": "all"}, r"decoder/\*/output has no heads"),
        (MIXED, {"layers": "all", "memory": "1G"}, r"memory='1G' cannot work"),
        (MIXED, {"layers": "all", "besides": MIXED.replace(layer=7)}, r"mixed: layer=7 is out of range"),
        (MIXED, {"layers": "all", "besides": "logits"}, r"besides='logits' cannot work: give Patch, one or several"),
        (MIXED, {"layers": "all", "cache": 1}, r"cache cannot be given here"),
        (MIXED, {"layers": "all", "patches": MIXED}, r"patches cannot be given here"),
        (Patch("decoder/*/patern"), {"heads": "all"}, r"no site is called 'decoder/\*/patern'"),
    ],
)
def test_a_sweep_that_cannot_have_been_meant_is_refused(build, patch, ranges, message):
    model, params, tokens, _ = build("decoder")
    with pytest.raises(ValueError, match=message):
        inspection.sweep(model, params, tokens, patch, metric=last, **ranges)
