"""What a page has of a model, what is left out, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inspection.explorer.reader import patterns
from transformer.inspection import explorer
from transformer.inspection.explorer import Choice, Reading, Subject, Token, packing
from transformer.inspection.explorer.packing import unpack
from transformer.models.config import Attention, ModelConfig, Position, Stack
from transformer.models.transformer import Transformer


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


def test_a_choice_has_layers_of_each_stack():
    stacks = {"encoder": Stack(1, Attention(2)), "decoder": Stack(3, Attention(2))}
    subject = Subject(Transformer(ModelConfig(vocab=9, width=8, **stacks)), {}, Token, "uneven")
    reading = Reading("", (1,), "", (1,))
    for name in ("layers", "detail"):
        with pytest.raises(ValueError, match=rf"{name}=\(1, 2\) has no layer of the encoder: add one below 1"):
            explorer.describe(subject, [reading], title="", choice=Choice(**{name: (1, 2)}))


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


def test_one_text_may_be_measured_where_another_is_too_long(described):
    made = described("rotary")

    def look(subject, reading, layers):
        seen = explorer.look.look(subject, reading, layers)
        return seen if reading == made.readings[0] else dataclasses.replace(seen, effects={})

    for readings, number in ((made.readings, 2), (made.readings[::-1], 1)):
        data = explorer.describe(made.subject, readings, title="", look=look)
        effects = [text["attentions"][0]["ablation"] is not None for text in data["texts"]]
        assert effects == [number != 1, number != 2]
        assert f"The effect of silencing heads in text {number} is left out" in data["limits"][0]


def test_a_choice_that_fits_leaves_nothing_to_say(described):
    made = described("rotary")
    data = explorer.describe(made.subject, made.readings[:1], title="", choice=Choice(layers=(0,), detail=(1,)))
    assert data["limits"] == [] and list(data["texts"][0]["attentions"][0]["detail"]) == ["1"]
