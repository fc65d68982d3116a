from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection.ablation import ablate
from transformer.models.config import Attention, Mlp, Norm, Position

GPT2 = dict(
    attention=Attention(4, 2, 6, bias=True, output_bias=True),
    mlp=Mlp(20, "gelu_tanh", gated=False, bias=True),
    norm=Norm("layer", 1e-5, bias=True),
    position=Position("learned"),
)


@pytest.fixture(scope="module")
def case(build):
    """A model like GPT-2, its parameters, four rows of tokens and what a run on other ones captured."""
    model, params, tokens, _ = build("decoder", **GPT2)
    tokens = jnp.concatenate([tokens, tokens[::-1, ::-1]])
    capture = ("decoder/embedding", "decoder/1/key", "decoder/*/mixed", "decoder/*/pattern")
    _, taps = inspection.run(model, params, (tokens + 3) % 11, capture=capture)
    return model, params, tokens, taps


def after(case, *patches):
    """What a run with patches has at their sites."""
    model, params, tokens, _ = case
    sites = [patch.site for patch in patches]
    taps = inspection.run(model, params, tokens, patches=patches, capture=sites)[1]
    return [np.asarray(taps[site]) for site in sites]


def test_zeroed_heads_are_zero_and_the_others_are_not(case):
    model = case[0]
    patch = ablate("zero", model, "decoder/*/mixed", heads=[(0, 1), (-1, 3), (1, 0)])
    of_groups = ablate("zero", model, "decoder/*/key", heads=[(1, -1)])
    silent = [np.argwhere(np.all(array == 0, axis=(1, 2, 4))).tolist() for array in after(case, patch, of_groups)]
    assert silent == [[[0, 1], [1, 0], [1, 3]], [[1, 1]]]
    assert not np.any(ablate("zero", model, "decoder/*/mixed", heads=[]).mask)


def test_the_numpy_model_with_a_mean_in_the_place_of_a_head_has_the_same_logits(build, reference):
    model, params, tokens, _ = build("decoder")
    clean = reference(model, params)
    clean((tokens + 3) % 11)
    means = {site: array.mean(axis=0, keepdims=True) for site, array in clean.taps.items()}

    def edit(site, x):
        x = x.copy()
        if site == "decoder/1/mixed":
            x[:, :, 2] = means[site][:, :, 2]
        return np.broadcast_to(means[site], x.shape) if site == "decoder/0/mlp/outer" else x

    _, taps = inspection.run(model, params, (tokens + 3) % 11, capture=("decoder/*/mixed", "decoder/0/mlp/outer"))
    patches = (
        ablate("mean", model, "decoder/*/mixed", taps, heads=[(1, 2)]),
        ablate("mean", model, "decoder/0/mlp/outer", taps),
    )
    logits = inspection.run(model, params, tokens, patches=patches)[0]
    np.testing.assert_allclose(logits, reference(model, params, edit)(tokens), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("site", ["decoder/*/mixed", "decoder/*/pattern", "decoder/1/key", "decoder/embedding"])
@pytest.mark.parametrize("by_position", [True, False])
def test_means_are_a_loops_and_leave_out_what_has_no_weight(case, site, by_position):
    model, _, _, taps = case
    weights = np.asarray([[1, 1, 1, 1, 0], [1, 2, 0, 0, 0], [0, 0.5, 1, 0, 0], [1, 0, 0, 0, 0]])
    value = ablate("mean", model, site, taps, by_position=by_position, weights=weights).value
    array = np.asarray(taps[site], np.float64)
    array = array if "*" in site else array[None]
    position = {"pattern": 2}.get(site.split("/")[-1], 1)
    rows = np.moveaxis(array, (1, 1 + position), (0, 1))  # [B, T, L, ...]

    def mean(places):
        return sum(weights[b, t] * rows[b, t] for b, t in places) / sum(weights[b, t] for b, t in places)

    everywhere = mean([(b, t) for b in range(4) for t in range(5)])
    expected = [mean([(b, t) for b in range(4)]) if weights[:, t].any() else everywhere for t in range(5)]
    expected = np.moveaxis(
        np.stack(expected)[None] if by_position else everywhere[None, None], (0, 1), (1, 1 + position)
    )
    np.testing.assert_allclose(value, expected if "*" in site else expected[0], rtol=1e-4, atol=1e-5)


def test_rows_are_exchanged_in_one_round(case):
    model, _, _, taps = case
    seen = set()
    for seed in range(8):
        patch = ablate("resample", model, "decoder/*/mixed", taps, key=jax.random.key(seed))
        own = np.asarray(taps["decoder/*/mixed"])
        alike = np.all(patch.value[:, :, None] == own[:, None], axis=(0, 3, 4, 5))  # [row, row that it is from]
        assert alike.sum() == 4 and not np.diag(alike).any()
        order, row = [], 0
        while row not in order:
            order.append(row)
            row = int(np.argmax(alike[row]))
        assert len(order) == 4  # no shorter round
        seen.add(tuple(order))
    assert len(seen) > 1  # of six rounds


def test_a_patch_for_other_heads_compiles_nothing_and_a_sweep_takes_it_to_each_head(case, caplog):
    model, params, tokens, taps = case
    run = lambda heads: inspection.run(  # noqa: E731
        model, params, tokens, patches=ablate("mean", model, "decoder/*/mixed", taps, heads=heads)
    )[0]
    run([(0, 1)])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        several = {pair: run([pair]) for pair in ((1, 2), (0, 3))}
        run([(0, 0), (1, 1), (1, 2)])
        assert not [record for record in caplog.records if "ompil" in record.message]
    patch = ablate("mean", model, "decoder/*/mixed", taps)
    metric = lambda logits: logits  # noqa: E731
    swept = inspection.sweep(model, params, tokens, patch, metric=metric, layers="all", heads="all")
    for pair, logits in several.items():
        np.testing.assert_allclose(swept[pair], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (("drop", "decoder/*/mixed"), {}, r"kind='drop' is unknown; choose one of zero, mean, resample"),
        (("zero", "decoder/**"), {}, r"site='decoder/\*\*' is not one site"),
        (("mean", "decoder/*/mixed"), {}, r"kind='mean' needs reference: give it"),
        (("resample", "decoder/*/mixed", {}), {}, r"kind='resample' needs key: give it"),
        (("zero", "decoder/*/mixed", {}), {}, r"kind='zero' does not take reference: leave it out"),
        (("zero", "decoder/*/mixed"), dict(weights=np.ones(2)), r"kind='zero' does not take weights"),
        (
            ("mean", "decoder/0/mixed", {"decoder/0/mixed": np.ones((2, 5, 4, 6))}),
            dict(weights=np.ones(2)),
            r"weights of",
        ),
        (("zero", "decoder/*/mixed"), dict(heads=[(0, 4)]), r"heads=\(0, 4\) is out of range: there are 2 layers of 4"),
        (("zero", "decoder/*/key"), dict(heads=[(0, 2)]), r"heads=\(0, 2\) is out of range: there are 2 layers of 2"),
        (("zero", "decoder/0/mixed"), dict(heads=[(0, 1)]), r"heads cannot be told apart at 'decoder/0/mixed'"),
        (("zero", "decoder/*/output"), dict(heads=[(0, 1)]), r"heads cannot be told apart at 'decoder/\*/output'"),
        (("zero", "encoder/*/mixed"), dict(heads=[(0, 1)]), r"heads cannot be told apart at 'encoder/\*/mixed'"),
    ],
)
def test_what_cannot_be_ablated_is_refused_in_one_line(case, arguments, options, message):
    kind, *rest = arguments
    with pytest.raises(ValueError, match=message) as error:
        ablate(kind, case[0], *rest, **options)
    assert "\n" not in str(error.value)


def test_a_reference_that_cannot_serve_is_refused(build):
    model, params, tokens, _ = build("decoder")
    _, taps = inspection.run(model, params, tokens, capture=inspection.Capture("decoder/*/mixed", head=1))
    with pytest.raises(ValueError, match=r"reference has 1 of 4 heads at decoder/\*/mixed: capture all"):
        ablate("mean", model, "decoder/*/mixed", taps, heads=[(0, 0)])
    _, taps = inspection.run(model, params, tokens[:1], capture="decoder/*/mixed")
    with pytest.raises(ValueError, match="one row, which can only be exchanged with itself"):
        ablate("resample", model, "decoder/*/mixed", taps, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"heads holds 0: give pairs of a layer and a head"):
        ablate("zero", model, "decoder/*/mixed", heads=(0, 1))
