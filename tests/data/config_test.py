"""Configurations that cannot work are refused, naming field, value and remedy."""

from __future__ import annotations

import dataclasses

import pytest

from transformer import data


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: data.Data(path=""), "path=''"),
        (lambda: data.Data(path="tfds:"), "path='tfds:'"),
        (lambda: data.Data(length=0), "length=0"),
        (lambda: data.Data(validation=0.0), "validation=0.0"),
        (lambda: data.Data(validation=1.0), "validation=1.0"),
        (lambda: data.Data(split="random"), "split='random'"),
        (lambda: data.Data(limit=0), "limit=0"),
        (lambda: data.Data(suffixes=()), r"suffixes=\(\)"),
        (lambda: data.Data(suffixes=("txt",)), "suffixes="),
        (lambda: data.Tokenizer(kind="words"), "tokenizer.kind='words'"),
        (lambda: data.Tokenizer(vocab=256), "tokenizer.vocab=256"),
        (lambda: data.Tokenizer(folder=""), "tokenizer.folder=''"),
        (lambda: data.Tfds(split=""), "tfds.split=''"),
        (lambda: data.Tfds(feature=""), "tfds.feature=''"),
    ],
)
def test_refuses_what_cannot_work(build, field):
    with pytest.raises(ValueError, match=f"^{field}.* cannot work: ") as caught:
        build()
    assert "\n" not in str(caught.value)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.Data().length = 3
