"""Patterns, residuals, the lens and the next token against the forward pass in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inspection.explorer.reader import CLOSE, inputs, patterns, rms, sites, softmax, walk
from transformer.inspection.explorer import forward
from transformer.inspection.explorer.packing import unpack
from transformer.models.config import Attention, ModelConfig, Stack
from transformer.models.transformer import Transformer


@pytest.mark.parametrize("kind", ["rotary", "both norms", "post-norm"])
def test_patterns_and_residuals_agree_with_numpy(described, reference, kind):
    made, residuals = described(kind), []
    for text, reading in zip(made.data["texts"], made.readings, strict=True):
        forward = reference(made.subject.model, made.subject.params)
        forward(**inputs(reading))
        taps = {name: array[0] for name, array in forward.taps.items()}
        layers = {
            role: [taps[f"{role}/0/residual_pre"], *(taps[f"{role}/{layer}/residual_post"] for layer in range(2))]
            for role in text["sides"]
        }
        residuals.append({role: np.stack(arrays) for role, arrays in layers.items()})
        for role, side in text["sides"].items():
            np.testing.assert_allclose(unpack(side["norms"]), np.linalg.norm(residuals[-1][role], axis=-1), **CLOSE)
        for part in text["attentions"]:
            expected = np.stack([taps[sites(part)(layer) + "pattern"] for layer in part["layers"]])
            found = patterns(part, *expected.shape[2:])
            assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4  # rounding to a byte, and to float32
    pairs = {(pair["a"], pair["b"], pair["side"]) for pair in made.data["similarity"]}
    count = len(made.readings)
    assert pairs == {(i, j, role) for i in range(count) for j in range(i, count) for role in residuals[0]}
    for pair in made.data["similarity"]:
        first, second = (residuals[pair[name]][pair["side"]] for name in "ab")
        norms = (np.linalg.norm(array, axis=-1) for array in (first, second))
        cosines = first @ second.swapaxes(1, 2) / (next(norms)[:, :, None] * next(norms)[:, None])
        found = unpack(pair["cosines"]) / 65535 * 2 - 1
        np.testing.assert_allclose(found, cosines, atol=1 / 65535 + 1e-4)


@pytest.mark.parametrize("kind", ["rotary", "both norms", "post-norm"])
def test_next_tokens_and_the_lens_agree_with_numpy(described, reference, kind):
    made = described(kind)
    params = jax.tree.map(np.asarray, made.subject.params)
    for text, reading in zip(made.data["texts"], made.readings, strict=True):
        forward = reference(made.subject.model, made.subject.params)
        logits = forward(**inputs(reading))[0]
        following, lens, role = text["next"], text["lens"], made.subject.side
        assert following["side"] == lens["side"] == role and following["positions"] == list(range(len(logits)))
        for place, row in following["all"].items():
            np.testing.assert_allclose(unpack(row), logits[int(place)], **CLOSE)
        top = {name: unpack(packed) for name, packed in following["top"].items()}
        order = np.argsort(-logits, axis=-1)
        np.testing.assert_array_equal(top["ids"], order[:, :10])
        np.testing.assert_allclose(top["logits"], -np.sort(-logits, axis=-1)[:, :10], **CLOSE)
        np.testing.assert_allclose(top["log_sum_exp"], np.log(np.exp(logits).sum(axis=-1)), **CLOSE)
        counts, means = np.moveaxis(top["tail"], -1, 0)
        np.testing.assert_array_equal(counts.sum(axis=1), 1)  # of 11 tokens ten are listed
        np.testing.assert_allclose((counts * means).sum(axis=1), np.sort(logits, axis=-1)[:, 0], **CLOSE)
        layers = [
            forward.taps[f"{role}/0/residual_pre"],
            *(forward.taps[f"{role}/{layer}/residual_post"] for layer in range(2)),
        ]
        scale = 1 if kind == "post-norm" else params[role]["final_norm"]["scale"]
        read = [(x if kind == "post-norm" else x / rms(x) * scale)[0] @ params["embedding"]["table"].T for x in layers]
        ids = unpack(lens["ids"])
        np.testing.assert_array_equal(ids, np.argsort(-np.stack(read), axis=-1)[..., :3])
        np.testing.assert_allclose(
            unpack(lens["probabilities"]), np.take_along_axis(softmax(np.stack(read)), ids, axis=-1), **CLOSE
        )


def test_a_large_vocabulary_is_kept_in_bins_with_the_right_sum():
    logits = np.random.default_rng(0).normal(0, 3, (1, 2, 500)).astype(np.float32)
    model = Transformer(ModelConfig(vocab=500, width=500, decoder=Stack(1, Attention(2))))
    params = {"embedding": {"table": jnp.eye(500)}, "readout": {}}
    ids, best, tail, total = forward.next_tokens(model, params, jnp.asarray(logits), 2, count=48, bins=16)
    for row, (some, kept, bins) in zip(logits[0], zip(ids, best, tail, strict=True), strict=True):
        rest = np.delete(row, some)
        np.testing.assert_array_equal(some, np.argsort(-row)[:48])
        edges = np.linspace(rest.min(), kept[-1], 17)
        counts, _ = np.histogram(rest, edges)
        np.testing.assert_allclose(bins[:, 0], counts, atol=1)  # one on an edge may fall on either side
        assert bins[:, 0].sum() == 452
        np.testing.assert_allclose((bins[:, 0] * bins[:, 1]).sum(), rest.sum(), rtol=1e-4)
        # What the page makes of the bins at another temperature is near the truth.
        near, true = (bins[:, 0] * np.exp(bins[:, 1] / 0.7)).sum(), np.exp(rest / 0.7).sum()
        assert abs(near / true - 1) < 0.1
    np.testing.assert_allclose(total, np.log(np.exp(logits[0]).sum(axis=-1)), rtol=1e-5)


def test_a_model_that_has_diverged_is_refused():
    params = {"embedding": {"table": jnp.full((9, 8), jnp.nan)}, "readout": {}}
    model = Transformer(ModelConfig(vocab=9, width=8, decoder=Stack(1, Attention(2))))
    with pytest.raises(ValueError, match="logits that are not finite"):
        forward.next_tokens(model, params, jnp.ones((1, 16, 8)), 3, count=2, bins=2)


def test_scores_are_those_of_the_patterns(described):
    for _, _, part, queries, keys in walk(described, "rotary"):
        pattern, scores = patterns(part, queries, keys), {name: unpack(one) for name, one in part["scores"].items()}
        assert set(scores) == {"entropy", "distance", "sink_mass", "previous_token", "duplicate_token", "induction"}
        assert all(array.shape == (2, 4) for array in scores.values())
        # The patterns are rounded to bytes: so are means of them.
        np.testing.assert_allclose(scores["sink_mass"], pattern[..., 0].mean(axis=-1), atol=1 / 255)
        away = np.abs(np.arange(queries)[:, None] - np.arange(queries))
        np.testing.assert_allclose(scores["distance"], (pattern * away).sum(-1).mean(-1), atol=0.1)
        before = np.stack([pattern[..., t, t - 1] for t in range(1, queries)], axis=-1)
        np.testing.assert_allclose(scores["previous_token"], before.mean(axis=-1), atol=1 / 255)
    cross = next(part for *_, part, _, _ in walk(described, "both norms") if part["name"] == "decoder/cross")
    assert (
        np.isnan(unpack(cross["scores"]["induction"])).all() and np.isfinite(unpack(cross["scores"]["entropy"])).all()
    )
