from __future__ import annotations

import jax
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Capture


def answer(logits):
    return logits[0, -1, 3] - logits[1, 2, 5]


def test_it_is_the_change_times_the_slope_of_the_numpy_model(build, reference):
    model, params, tokens, arguments = build("encoder and decoder")
    other, theirs = (tokens + 3) % 11, {"source": (arguments["source"] + 2) % 11}
    sites = (
        "**/mixed",
        "decoder/*/cross/pattern",
        "encoder/*/residual_pre",
        "decoder/final_norm",
        "decoder/*/mlp/inner",
    )
    effects = inspection.attribute(
        model, params, tokens, other, metric=answer, sites=sites, other_arguments=theirs, **arguments
    )
    clean, changed = reference(model, params), reference(model, params)
    base = answer(clean(tokens, **arguments))
    changed(other, **theirs)
    draw = np.random.default_rng(0)
    for site, array in effects.items():
        for _ in range(6):
            layer = draw.integers(2) if "*" in site else None
            name = site if layer is None else site.replace("*", str(layer))
            place = tuple(draw.integers(size) for size in array.shape[0 if layer is None else 1 :])
            change = changed.taps[name][place] - clean.taps[name][place]

            def edit(there, x, name=name, place=place, change=change, step=1e-6):
                if there == name:
                    x = x.copy()
                    x[place] += step * change
                return x

            slope = (answer(reference(model, params, edit)(tokens, **arguments)) - base) / 1e-6
            np.testing.assert_allclose(
                array[(*(() if layer is None else (layer,)), *place)], slope, rtol=2e-3, atol=2e-4
            )


def test_where_the_metric_is_linear_it_is_the_patch_itself(build):
    model, params, tokens, _ = build("decoder")
    other = (tokens + 3) % 11
    effects = inspection.attribute(model, params, tokens, other, metric=answer, sites="logits")
    both = [inspection.run(model, params, ids)[0] for ids in (tokens, other)]
    np.testing.assert_allclose(effects["logits"].sum(), answer(both[1]) - answer(both[0]), rtol=1e-4)
    assert effects["logits"].shape == (2, 5) and np.count_nonzero(effects["logits"]) == 2


def test_it_runs_inside_jit(build):
    model, params, tokens, _ = build("decoder")
    call = lambda ids: inspection.attribute(model, params, tokens, ids, metric=answer, sites="decoder/*/pattern")  # noqa: E731
    other = (tokens + 3) % 11
    jitted, plain = jax.jit(call)(other), call(other)
    assert plain["decoder/*/pattern"].shape == (2, 2, 4, 5, 5)
    np.testing.assert_allclose(jitted["decoder/*/pattern"], plain["decoder/*/pattern"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sites": "decoder/1/mixed"}, r"decoder/\*/mixed is asked for in layers \(1,\) alone: write \*"),
        ({"sites": "decoder/0/mixed"}, r"decoder/\*/mixed is asked for in layers \(0,\) alone: write \*"),
        ({"sites": Capture("decoder/*/mixed", head=1)}, r"sites=Capture\(.* cannot work: give str"),
        ({"cache": 1}, r"cache cannot be given here"),
        ({"sites": "decoder/*/mixd"}, r"no site is called 'decoder/\*/mixd'"),
        ({"metric": lambda logits: logits[:, -1, 3]}, r"metric gives an array of shape \(2,\): it must give a scalar"),
        ({"short": True}, r"decoder/\*/mixed is \(2, 2, 5, 4, 6\) in one run and \(2, 2, 4, 4, 6\) in the other"),
    ],
)
def test_what_cannot_work_is_refused(build, change, message):
    model, params, tokens, _ = build("decoder")
    other = tokens[:, : 4 if change.pop("short", False) else 5]
    with pytest.raises(ValueError, match=message):
        inspection.attribute(model, params, tokens, other, **{"metric": answer, "sites": "decoder/*/mixed", **change})
