"""Interventions against the forward pass in float64 NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from transformer.inspection.explorer.intervene import Change, intervene


def arguments(reading):
    source = {} if reading.source is None else {"source": np.array([reading.source])}
    return {"tokens": np.array([reading.tokens]), **source}


def site(change):
    role, *cross = change.attention.split("/")
    return "/".join([role, str(change.layer), *cross, "mixed"])


def expected(reference, subject, reading, changes, position):
    """Probabilities `[V]` of plain arrays that are changed in place, change after change."""
    others = {}
    for change in changes:
        if change.other is not None:
            forward = reference(subject.model, subject.params)
            forward(**arguments(change.other))
            others[change.other] = forward.taps

    def edit(name, x):
        x = x.copy()
        for change in (change for change in changes if site(change) == name):
            heads = slice(None) if change.head is None else change.head
            for place in range(x.shape[1]) if change.position is None else [change.position]:
                if change.action == "patch" and place < others[change.other][name].shape[1]:
                    x[0, place, heads] = others[change.other][name][0, place, heads]
                elif change.action != "patch":
                    x[0, place, heads] *= change.value if change.action == "scale" else 0
        return x

    logits = reference(subject.model, subject.params, edit)(**arguments(reading))[0, position]
    return np.exp(logits) / np.exp(logits).sum()


def cases(kind, first, second):
    if kind == "rotary":
        return [
            (first, [], -1),
            (first, [Change("decoder", 1, "zero", head=2)], -1),
            (first, [Change("decoder", 0, "zero", position=1)], 2),
            (first, [Change("decoder", 0, "scale", head=0, value=-1.5), Change("decoder", 0, "scale", value=0.5)], 4),
            (
                second,
                [Change("decoder", 0, "patch", head=3, other=first), Change("decoder", 1, "patch", other=first)],
                -1,
            ),
            (
                second,
                [Change("decoder", 0, "patch", position=2, other=first), Change("decoder", 0, "scale", value=2.0)],
                3,
            ),
            (first, [Change("decoder", 0, "patch", other=second), Change("decoder", 0, "zero", head=1)], -2),
        ]
    return [
        (first, [Change("encoder", 0, "zero", head=1, position=6)], -1),
        (first, [Change("decoder/cross", 1, "patch", head=0, other=second), Change("decoder", 0, "zero", head=0)], -1),
        (first, [Change("encoder", 1, "patch", other=second), Change("decoder/cross", 0, "scale", value=3.0)], 0),
    ]


@pytest.mark.parametrize("kind", ["rotary", "both norms"])
def test_probabilities_agree_with_numpy(described, reference, kind):
    made = described(kind)
    subject, first = made.subject, made.readings[0]
    second = made.readings[1] if kind == "rotary" else dataclasses.replace(first, tokens=(4, 3, 2), source=(1, 2, 3, 4))
    for reading, changes, position in cases(kind, first, second):
        found = intervene(subject, reading, changes, position)
        before, after = (expected(reference, subject, reading, some, position) for some in ([], changes))
        ids = found["before"]["ids"]
        assert ids == found["after"]["ids"] and sorted(ids) == list(range(11))  # of 11 tokens all are listed
        assert np.argmax(np.maximum(before, after)) == ids[0]
        for name, probabilities in (("before", before), ("after", after)):
            np.testing.assert_allclose(found[name]["probabilities"], probabilities[ids], rtol=1e-3, atol=1e-5)
            assert found[f"rest_{name}"] == pytest.approx(0, abs=1e-6)
        assert found["kl"] == pytest.approx(np.sum(before * np.log(before / after)), rel=2e-3, abs=1e-6)
        assert bool(changes) == (found["kl"] > 1e-4)
        assert found["names"]["7"] == "<0xF0>" and found["names"]["2"] == " w2"


def test_what_is_not_there_cannot_be_changed(described):
    made = described("rotary")
    subject, (first, second) = made.subject, made.readings
    zero = Change("decoder", 0, "zero")
    for changes, position, said in (
        ([], 5, "position=5 is out of range: the text has 5 tokens"),
        ([], -6, "position=-6"),
        ([dataclasses.replace(zero, attention="encoder")], 0, "attention='encoder' is none of this model's"),
        ([dataclasses.replace(zero, layer=2)], 0, "layer=2 is out of range in decoder: use 0 to 1"),
        ([dataclasses.replace(zero, layer=-1)], 0, "layer=-1"),
        ([dataclasses.replace(zero, head=4)], 0, "head=4 is out of range in decoder: use 0 to 3"),
        ([dataclasses.replace(zero, position=5)], 0, "position=5 is out of range in decoder: use 0 to 4"),
        ([dataclasses.replace(zero, action="double")], 0, "action='double' is unknown: choose zero, scale, patch"),
        ([dataclasses.replace(zero, action="patch")], 0, "another text goes with 'patch'"),
        ([dataclasses.replace(zero, other=second)], 0, "another text goes with 'patch'"),
        ([Change("decoder", 0, "scale", value=float("inf"))], 0, "value=inf cannot scale"),
    ):
        with pytest.raises(ValueError, match=said):
            intervene(subject, first, changes, position)
    with pytest.raises(ValueError, match="position=6 is beyond the other text's 5 tokens"):
        intervene(subject, second, [Change("decoder", 0, "patch", position=6, other=first)], 0)
    with pytest.raises(ValueError, match="not finite"):
        intervene(subject, first, [Change("decoder", 0, "scale", value=3e38)] * 2, 0)
