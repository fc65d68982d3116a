"""Pairs on disk: what is kept of them, what is refused, and what they are known by."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from transformer import data, text
from transformer.data import bitext as subject

PAIRS = [(f"the {number} dogs run", f"die {number} hunde laufen schnell") for number in range(40)]


@pytest.fixture
def files(tmp_path):
    """`files(pairs, name)` writes two parallel files and returns the path that names both."""

    def write(pairs=PAIRS, name="train"):
        paths = [tmp_path / f"{name}.{language}" for language in ("en", "de")]
        for path, lines in zip(paths, zip(*pairs, strict=True), strict=True):
            path.write_text("".join(f"{line}\n" for line in lines))
        return ",".join(map(str, paths))

    return write


def config(path, **changes):
    fields = {"objective": data.Objective("pairs"), "length": 24, "validation": 0.2}
    fields["tokenizer"] = data.Tokenizer(vocab=300)
    return data.Data(path=path, **{**fields, **changes})


def spelt(bitext, side):
    both = getattr(bitext, side)
    decode = bitext.tokenizer.decode
    return {(decode(both.source[index]), decode(both.target[index])) for index in range(len(both))}


def test_the_ids_spell_the_pairs_and_each_pair_is_on_one_side(files, tmp_path):
    bitext = data.prepare(config(files()), tmp_path / "data")
    train, validation = spelt(bitext, "train"), spelt(bitext, "validation")
    assert train | validation == set(PAIRS) and not train & validation and train and validation
    counts = bitext.counts["train"]
    assert counts == {
        "pairs": len(train),
        "left_out": 0,
        "cut": 0,
        "source_tokens": len(bitext.train.source.tokens),
        "target_tokens": len(bitext.train.target.tokens),
    }
    lengths = [[len(bitext.train.target[i]) + 1, len(bitext.train.source[i]) + 1] for i in range(len(train))]
    np.testing.assert_array_equal(bitext.train.lengths, lengths)


def test_named_pairs_are_held_out(files, tmp_path):
    held_out = [("a cat", "eine katze"), ("two cats", "zwei katzen")]
    path = files(held_out, "val")
    bitext = data.prepare(config(files(), pairs=data.Pairs(validation=path)), tmp_path / "data")
    assert spelt(bitext, "train") == set(PAIRS) and spelt(bitext, "validation") == set(held_out)


def test_one_tokenizer_learns_both_languages_of_the_training_side(files, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(text, "train", lambda kind, texts, vocab: seen.extend(texts) or text.Bytes())
    bitext = data.prepare(config(files(), length=64), tmp_path / "data")
    assert sorted(seen) == sorted(part for pair in spelt(bitext, "train") for part in pair)


def test_a_second_call_and_load_map_what_is_there(files, tmp_path, monkeypatch):
    first = data.prepare(config(files()), tmp_path / "data")
    monkeypatch.setattr(subject, "_build", lambda *_: pytest.fail("tokenised again"))
    for again in (data.prepare(config(files()), tmp_path / "data"), data.load(tmp_path / "data")):
        assert again.fingerprint == first.fingerprint and again.objective.kind == "pairs"
        np.testing.assert_array_equal(again.train.target.tokens, first.train.target.tokens)


@pytest.mark.parametrize("name", ["train_source.npy", "validation_target_ends.npy", "tokenizer.json"])
def test_damage_is_noticed_and_mended(files, tmp_path, name):
    first = spelt(data.prepare(config(files()), tmp_path / "data"), "train")  # read before the file changes under it
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    with pytest.raises(ValueError, match="no intact corpus"):
        data.load(tmp_path / "data")
    assert spelt(data.prepare(config(files()), tmp_path / "data"), "train") == first


CHANGES = {
    "length": {"length": 30},
    "segments": {"segments": True},
    "misfits": {"pairs": data.Pairs(misfits="drop")},
    "tokenizer": {"tokenizer": data.Tokenizer(vocab=290)},
    "content": {"validation": 0.5},
}


@pytest.mark.parametrize("field", CHANGES)
def test_bitext_made_from_something_else_is_named_and_kept(files, tmp_path, field):
    first = data.prepare(config(files()), tmp_path / "data")
    with pytest.raises(ValueError, match=rf"data\.{field} was "):
        data.prepare(config(files(), **CHANGES[field]), tmp_path / "data")
    assert data.load(tmp_path / "data").fingerprint == first.fingerprint


LONG = ("x " * 30, "kurz")


@pytest.mark.parametrize(
    ("pair", "misfits", "message"),
    [
        (LONG, "error", r"train\.en, line 41 has a source of \d+ tokens, and data\.length=24 has room for 23 and the"),
        (("a", ""), "error", r"train\.en, line 41 has an empty target: take the pair out, or set"),
        (("", "b"), "truncate", r"train\.en, line 41 has an empty source"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line_and_leaves_nothing(files, tmp_path, pair, misfits, message):
    wanted = config(files([*PAIRS, pair]), pairs=data.Pairs(misfits=misfits, validation=files(PAIRS[:2], "val")))
    with pytest.raises(ValueError, match=message):
        data.prepare(wanted, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_long_texts_are_cut_or_left_out_when_told_to(files, tmp_path):
    path, held_out = files([*PAIRS, LONG]), files(PAIRS[:2], "val")
    cut, dropped = (
        data.prepare(
            config(path, pairs=data.Pairs(misfits=misfits, validation=held_out), tokenizer=data.Tokenizer("bpe", 300)),
            tmp_path / misfits,
        )
        for misfits in ("truncate", "drop")
    )
    assert (cut.counts["train"]["cut"], len(cut.train)) == (1, 41)
    assert cut.tokenizer.decode(cut.train.source[40]) == LONG[0][: len(cut.tokenizer.decode(cut.train.source[40]))]
    assert len(cut.train.source[40]) == 23
    assert (dropped.counts["train"]["left_out"], len(dropped.train)) == (1, 40)


def test_a_tokenizer_without_an_end_is_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"needs a token that ends texts.*data\.tokenizer\.end=True"):
        data.prepare(config(files(), tokenizer=data.Tokenizer("characters")), tmp_path / "data")


def test_settings_that_nothing_would_read_are_refused():
    for changes, message in [
        ({"pairs": data.Pairs(source="en", target="de")}, "only .tsv and .jsonl files and tfds:"),
        ({"pairs": data.Pairs(count=9)}, "only task: has as many pairs as one likes"),
        ({"split": "tail"}, "pairs are held out by their hash"),
        ({"pairs": data.Pairs(validation="a,b")}, "these are the pairs that are trained on"),
        ({"objective": data.Objective(), "pairs": data.Pairs(misfits="drop")}, "objective.kind='pairs' reads it"),
    ]:
        with pytest.raises(ValueError, match=message):
            config("a,b", **changes)
    with pytest.raises(ValueError, match=r"objective\.rate=0\.3 .*'pairs' does not read it"):
        data.Objective("pairs", rate=0.3)


def test_what_a_row_is_made_of_depends_on_the_objective(tmp_path):
    (tmp_path / "text.txt").write_text("all that is and all that is not " * 300)
    sizes = {}
    for kind in ("causal", "prefix", "masked", "spans"):
        wanted = data.Data(
            path=str(tmp_path / "text.txt"), length=32, split="tail", objective=data.Objective(kind),
            tokenizer=data.Tokenizer(vocab=280),
        )  # fmt: skip
        corpus = data.prepare(wanted, tmp_path / kind)
        sizes[kind] = (corpus.stride, corpus.reach)
        assert dataclasses.asdict(data.load(tmp_path / kind).objective)["kind"] == kind
    # T5's formula: of 35 tokens, 5 are noise in 2 spans, so that the source has 30 + 2 + 1 = 33; of 34, 32.
    assert sizes == {"causal": (32, 33), "prefix": (32, 33), "masked": (32, 32), "spans": (34, 34)}
