"""Every number of the page against the forward pass in float64 NumPy."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import explorer
from transformer.inspection.explorer import Choice, Reading, Subject, Token, details, packing
from transformer.inspection.explorer.look import Look, attention_json
from transformer.inspection.explorer.packing import unpack
from transformer.models.config import Attention, ModelConfig, Position, Stack
from transformer.models.transformer import Transformer

# The model computes in float32, NumPy in float64: two layers of numbers about 1 agree to some 1e-5.
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def softmax(logits):
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def inputs(reading):
    source = {} if reading.source is None else {"source": np.array([reading.source])}
    return {"tokens": np.array([reading.tokens]), **source}


def visible(part, keys):
    """`[periods, T, S]` booleans of an attention's JSON."""
    return np.unpackbits(unpack(part["visible"]), axis=-1, bitorder="little")[..., :keys].astype(bool)


def patterns(part, queries, keys):
    """`[layers, H, T, S]` weights of an attention's JSON, 0 where nothing is visible."""
    seen, cells, place = visible(part, keys), unpack(part["pattern"]), 0
    out = np.zeros((len(part["layers"]), part["heads"], queries, keys))
    for row, layer in enumerate(part["layers"]):
        view = seen[layer % part["periods"]]
        for head in range(part["heads"]):
            out[row, head][view] = cells[place : place + view.sum()] / 255
            place += view.sum()
    assert place == len(cells)
    return out


def sites(part):
    """The name of a site in one layer of an attention."""
    return (part["stack"] + "/{}/cross/" if part["name"].endswith("/cross") else part["stack"] + "/{}/").format


def walk(described, kind):
    """Each text's JSON, with the reading and the number of tokens on both sides of each attention."""
    made = described(kind)
    for text, reading in zip(made.data["texts"], made.readings, strict=True):
        lengths = {role: len(side["tokens"]) for role, side in text["sides"].items()}
        for part in text["attentions"]:
            yield text, reading, part, lengths[part["queries"]], lengths[part["keys"]]


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


def recomputed(part, one, layer, keys):
    """The pattern of one layer `[H, T, S]` as the page makes it, from what it has alone."""
    key = np.repeat(unpack(one["key"]), part["heads"] // part["kv_heads"], axis=1)
    scores = np.einsum("thk,shk->hts", unpack(one["query"]).astype(float), key) * part["scale"]
    scores = scores if part["softcap"] is None else part["softcap"] * np.tanh(scores / part["softcap"])
    scores = scores if one["bias"] is None else scores + unpack(one["bias"])
    view = visible(part, keys)[layer % part["periods"]]
    assert view.sum() < view.size or part["name"] != "decoder"
    return softmax(np.where(view, scores, -np.inf))


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
        seen = Look(subject, reading, {}, layers, {}, {attention: attention.visible(config, queries, keys)},
                    {attention: {}}, {}, {}, None)  # fmt: skip
        part = attention_json(seen, attention, (0, 1))
        assert (part["softcap"], part["scale"]) == ((1.5, 0.7) if kind == "windows" else (None, 2**-0.5))
        for layer, one in found[attention.name].items():
            assert (one["bias"] is None) == attention.crosses
            pattern = taps[attention.site(layer, "pattern")][0]
            np.testing.assert_allclose(recomputed(part, one, int(layer), keys), pattern, atol=1e-4)


def test_what_each_stack_may_see(described):
    places = np.arange(9)
    distance = places[:, None] - places
    windows = described("windows").subject
    (decoder,) = windows.attentions
    np.testing.assert_array_equal(
        decoder.visible(windows.config, 9, 9), [(distance >= 0) & (distance < 2), distance >= 0]
    )
    encoder, decoder, cross = (visible(part, keys) for *_, part, _, keys in walk(described, "both norms"))
    assert encoder.all() and cross.all() and encoder.shape == (1, 7, 7) and cross.shape == (1, 5, 7)
    np.testing.assert_array_equal(decoder, [np.tri(5, dtype=bool)])


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


def rms(x):
    return np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


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
    ids, best, tail, total = explorer.forward.next_tokens(params, jnp.asarray(logits), model=model, count=48, bins=16)
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


def test_tokens_are_shown_and_the_model_is_described(described):
    data = described("rotary").data
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["version"] == 1 and data["title"] == "<b>" and data["origin"] == "a test" and data["limits"] == []
    assert data["model"]["stacks"]["decoder"] == {
        "depth": 2, "heads": 4, "kv_heads": 2, "head_width": 6, "causal": True, "crosses": False, "position": "rotary",
        "norm_placement": "pre",
    }  # fmt: skip
    leaves = jax.tree.leaves(described("rotary").subject.params)
    assert data["model"]["parameters"] == sum(leaf.size for leaf in leaves)
    assert data["ledger"]["total"] == sum(row["count"] for row in data["ledger"]["rows"])
    for text, reading in zip(data["texts"], described("rotary").readings, strict=True):
        tokens = text["sides"]["decoder"]["tokens"]
        assert [token["id"] for token in tokens] == list(reading.tokens) and text["position"] == len(tokens) - 1
        for token in tokens:
            assert token.get("special", False) == (token["id"] == 3) and token.get("hex") == (
                "f0" if token["id"] == 7 else None
            )
        assert text["next"]["names"] == {str(i): "<0xF0>" if i == 7 else f" w{i}" for i in range(11)}


def test_a_page_of_twelve_layers_and_128_tokens_takes_less_than_4_megabytes(monkeypatch):
    # As many layers, heads, tokens and words as GPT-2 has, and heads as wide; only the residual is narrower. Silencing
    # heads, which takes long and few bytes, is left out.
    monkeypatch.setattr(explorer.look, "OPERATIONS", 0)
    stack = Stack(12, Attention(12, head_width=64), mlp=None, position=Position("learned"))
    model, draw = Transformer(ModelConfig(50257, 48, decoder=stack, length=128)), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    subject = Subject(model, params, lambda token: Token(f" word{token}"), "large")
    reading = Reading("words", tuple(draw.integers(0, 50257, 128).tolist()))
    data = explorer.describe(subject, [reading], title="large")
    (part,) = data["texts"][0]["attentions"]
    assert part["layers"] == list(range(12)) and part["detail"] and len(data["similarity"]) == 1
    assert len(part["detail"]) < 12 and any("Exact queries" in said for said in data["limits"])
    assert set(data["texts"][0]["next"]["all"]) == {"127"}
    assert 1_500_000 < len(explorer.page(data).encode()) < 4_000_000


def test_a_budget_keeps_layers_that_are_well_spread_and_says_what_is_missing(described):
    made = described("rotary")
    full = packing.size(made.data)
    for budget in (full, full - 3000, full // 2, full // 2 - 2000):
        data = explorer.describe(made.subject, made.readings, title="<b>", choice=Choice(budget=budget))
        assert packing.size({**data, "limits": []}) <= budget
        details = [set(part["detail"]) for text in data["texts"] for part in text["attentions"]]
        assert bool(data["limits"]) == (details != [{"0", "1"}] * 2 or len(data["similarity"]) < 3)
    assert details == [set(), set()] and "kept for no layer of decoder" in " ".join(data["limits"])
    assert explorer.payload.spread(range(12), 3) == [0, 6, 11] and explorer.payload.spread([2, 5, 9], 1) == [9]
    with pytest.raises(ValueError, match="before any pattern; give more"):
        explorer.describe(made.subject, made.readings, title="", choice=Choice(budget=5000))


def test_layers_can_be_chosen(described):
    made = described("rotary")
    data = explorer.describe(made.subject, made.readings[:1], title="", choice=Choice(layers=(1,), detail=(0, 0)))
    (part,) = data["texts"][0]["attentions"]
    (whole,) = made.data["texts"][0]["attentions"]
    assert part["layers"] == [1] and list(part["detail"]) == ["0"]
    np.testing.assert_array_equal(patterns(part, 5, 5)[0], patterns(whole, 5, 5)[1])
    np.testing.assert_allclose(unpack(part["ablation"])[0], unpack(whole["ablation"])[1], rtol=1e-3)
    np.testing.assert_allclose(unpack(part["scores"]["entropy"])[0], unpack(whole["scores"]["entropy"])[1], rtol=1e-3)
    for name in ("layers", "detail"):
        for layers in ((2,), (-1,), ()):
            with pytest.raises(ValueError, match=f"{name}=.*choose among layers 0 to 1"):
                explorer.describe(made.subject, made.readings, title="", choice=Choice(**{name: layers}))


def test_what_cannot_be_shown_is_refused(described):
    subject, (reading, _) = described("rotary").subject, described("rotary").readings
    learned = described("learned").subject
    for wrong, said in (
        ((subject, []), "0 texts were given: the explorer compares 1 to 3"),
        ((subject, [reading] * 4), "4 texts"),
        (
            (subject, [Reading("ab" * 50, (1,) * 513)]),
            r"abab…' has 513 tokens; the explorer shows 1 to 512: shorten it",
        ),
        ((subject, [Reading("", ())]), "has 0 tokens"),
        ((learned, [Reading("long", (1,) * 17)]), "shows 1 to 16"),
        ((subject, [dataclasses.replace(reading, source=(1,))]), "an encoder-decoder reads one beside each text"),
        ((described("relative").subject, [reading]), "an encoder-decoder reads one beside each text"),
        ((subject, [dataclasses.replace(reading, position=5)]), "position=5 is none of the text's 5 tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            explorer.describe(*wrong, title="")


def test_what_would_take_minutes_is_left_out_and_said(described, monkeypatch):
    monkeypatch.setattr(explorer.look, "OPERATIONS", 1e3)
    made = described("rotary")
    data = explorer.describe(made.subject, made.readings[:1], title="")
    assert data["texts"][0]["attentions"][0]["ablation"] is None and "silencing heads is left out" in data["limits"][0]
