"""Single heads against the forward pass in float64 NumPy, and patterns recomputed as the page does."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.inspection.explorer.reader import CLOSE, inputs, patterns, recomputed, rms, sites, softmax, walk
from transformer import inspection
from transformer.inspection.explorer import details
from transformer.inspection.explorer.look import Look, attention_json
from transformer.inspection.explorer.packing import unpack


@pytest.mark.parametrize("kind", ["rotary", "both norms"])
def test_the_page_can_recompute_each_pattern_from_queries_and_keys(described, kind):
    for _, _, part, queries, keys in walk(described, kind):
        assert set(part["detail"]) == set(map(str, part["layers"]))
        for row, found in enumerate(patterns(part, queries, keys)):
            expected = recomputed(part, part["detail"][str(part["layers"][row])], part["layers"][row], keys)
            assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("kind", ["windows", "relative"])
def test_so_it_can_with_biases_windows_and_caps(described, kind):
    made = described(kind)
    subject, reading, config = made.subject, made.readings[0], made.subject.config
    layers = dict.fromkeys(subject.attentions, (0, 1))
    found, _ = details.details(subject, reading, layers)
    capture = [attention.site("*", "pattern") for attention in layers]
    _, taps = inspection.run(subject.model, subject.params, capture=capture, **inputs(reading))
    for attention in layers:
        queries, keys = (len(reading.sides(config)[role]) for role in (attention.role, attention.keys))
        views = {attention: attention.visible(config, queries, keys)}
        seen = Look(subject, reading, layers, {}, views, {attention: {}}, {}, {}, None)
        part = attention_json(seen, attention, (0, 1))
        assert (part["softcap"], part["scale"]) == ((1.5, 0.7) if kind == "windows" else (None, 2**-0.5))
        for layer, one in found[attention.name].items():
            assert (one["bias"] is None) == attention.crosses
            pattern = taps[attention.site(layer, "pattern")][0]
            np.testing.assert_allclose(recomputed(part, one, int(layer), keys), pattern, atol=1e-4)


@pytest.mark.parametrize("kind", ["rotary", "both norms"])
def test_heads_are_described_as_numpy_would(described, reference, kind):
    made = described(kind)
    params = jax.tree.map(np.asarray, made.subject.params)
    for _, reading, part, *_ in walk(described, kind):
        forward = reference(made.subject.model, made.subject.params)
        forward(**inputs(reading))
        taps = {name: array[0] for name, array in forward.taps.items()}
        table, role = params["embedding"]["table"].astype(float), part["stack"]
        for layer in part["layers"]:
            one, site = part["detail"][str(layer)], sites(part)(layer)
            for name in ("query", "key", "value"):
                np.testing.assert_allclose(unpack(one[name]), taps[site + name], **CLOSE)
            added, whole = taps[site + "head_output"], taps[site + "output"][:, None]
            if kind == "both norms":
                half = "cross_post_norm" if "cross" in site else "attention_post_norm"
                added = added / rms(whole) * params[role]["blocks"][half]["scale"][layer]
            before = taps[f"{role}/{layer}/{'residual_mid' if 'cross' in site else 'residual_pre'}"][:, None]
            lengths = [np.linalg.norm(array, axis=-1) for array in (added, before)]
            np.testing.assert_allclose(unpack(one["output_norm"]), lengths[0], **CLOSE)
            np.testing.assert_allclose(
                unpack(one["cosine"]), (added * before).sum(-1) / lengths[0] / lengths[1], **CLOSE
            )
            if role == "encoder":
                assert one["promotes"] is None
                continue
            end = taps[f"{role}/1/residual_post"][:, None]
            logits = added / rms(end) * params[role]["final_norm"]["scale"] @ table.T
            order = np.argsort(logits, axis=-1)
            ids, values = unpack(one["promotes"]["ids"]), unpack(one["promotes"]["values"])
            np.testing.assert_array_equal(ids, np.concatenate([order[..., ::-1][..., :4], order[..., :4]], axis=-1))
            np.testing.assert_allclose(values, np.take_along_axis(logits, ids, axis=-1), **CLOSE)


@pytest.mark.parametrize("kind", ["rotary", "both norms"])
def test_silencing_a_head_is_measured_as_a_divergence(described, reference, kind):
    made = described(kind)
    for _, reading, part, *_ in walk(described, kind):
        effects = unpack(part["ablation"])
        assert effects.shape == (2, 4)
        for layer, head in ((0, 3), (1, 0)):
            name = sites(part)(layer) + "mixed"
            silence = lambda site, x: np.where(np.arange(4)[:, None] == head, 0, x) if site == name else x  # noqa: B023, E731
            before, after = (
                softmax(reference(made.subject.model, made.subject.params, *edit)(**inputs(reading))[0, -1])
                for edit in ((), (silence,))
            )
            expected = np.sum(before * np.log(before / after))
            np.testing.assert_allclose(effects[layer, head], expected, rtol=2e-3, atol=1e-5)
