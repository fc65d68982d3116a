"""Configurations that cannot work are refused, naming field, value and remedy."""

from __future__ import annotations

import dataclasses
import os

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


@pytest.mark.parametrize(
    ("path", "same", "others"),
    [
        ("t.en,t.de", ("./t.en, t.de", "../data/t.en,{here}/t.de", "link.en,t.de"), ("t.de,t.en", "v.en,v.de")),
        ("a,b.tsv", ("./a,b.tsv", "{here}/a,b.tsv"), ("a,{here}/b.tsv", "b.tsv")),
        ("task:reverse", ("task:reverse:1-16", "task:reverse:01-16"), ("task:reverse:1-17", "task:sort", "task:dates")),
        ("tfds:wmt@train", ("tfds:wmt",), ("tfds:wmt@validation", "tfds:wmt/de-en")),
    ],
)
def test_held_out_pairs_are_not_those_that_are_trained_on(tmp_path, monkeypatch, path, same, others):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for name in ("t.en", "a,b.tsv"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "data" / "link.en").symlink_to("t.en")

    def build(validation):
        held = data.Pairs(validation=validation.format(here=os.getcwd()))
        return data.Data(path=path, objective=data.Objective("pairs"), pairs=held)

    for validation in (path, *same):
        with pytest.raises(ValueError, match=r"^pairs\.validation='.*' cannot work: these are the pairs"):
            build(validation)
    for validation in others:
        build(validation)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.Data().length = 3
