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
        for side, path in enumerate(paths):
            path.write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
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
    counts, languages = bitext.counts["train"], (bitext.train.source, bitext.train.target)
    assert all(isinstance(one.tokens, np.memmap) and one.tokens.dtype == np.uint16 for one in languages)
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


def test_pairs_keep_their_order_and_copies_stay(files, tmp_path):
    repeated = [*PAIRS, PAIRS[3], PAIRS[3]]
    bitext = data.prepare(config(files(repeated), pairs=data.Pairs(validation=files(PAIRS[:1], "val"))), tmp_path / "d")
    decode, both = bitext.tokenizer.decode, bitext.train
    assert [(decode(both.source[i]), decode(both.target[i])) for i in range(len(both))] == repeated


def test_one_tokenizer_learns_both_languages_of_the_training_side(files, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(text, "train", lambda kind, texts, vocab: seen.extend(texts) or text.Bytes())
    bitext = data.prepare(config(files(), length=64), tmp_path / "data")
    assert sorted(seen) == sorted(part for pair in spelt(bitext, "train") for part in pair)


def test_a_table_of_characters_knows_the_validation_pairs_too(files, tmp_path):
    pairs = data.Pairs(validation=files([("q", "ß")], "val"))
    table = data.Tokenizer("characters", fallback=False, end=True)
    bitext = data.prepare(config(files([("ab", "cd")]), pairs=pairs, tokenizer=table), tmp_path / "data")
    assert bitext.tokenizer.size == len("abcdqß") + 1 and spelt(bitext, "validation") == {("q", "ß")}


def test_a_saved_tokenizer_is_used(files, tmp_path):
    first = data.prepare(config(files()), tmp_path / "data")
    saved = config(files(), tokenizer=data.Tokenizer(folder=str(tmp_path / "data")))
    for again in (data.prepare(saved, tmp_path / "b"), data.prepare(config(files()), tmp_path / "c", first.tokenizer)):
        assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
        np.testing.assert_array_equal(again.train.source.tokens, first.train.source.tokens)


def test_a_second_call_and_load_map_what_is_there(files, tmp_path, monkeypatch):
    first = data.prepare(config(files()), tmp_path / "data")
    monkeypatch.setattr(subject, "_build", lambda *_: pytest.fail("tokenised again"))
    for again in (data.prepare(config(files()), tmp_path / "data"), data.load(tmp_path / "data")):
        assert again.fingerprint == first.fingerprint and again.objective.kind == "pairs"
        assert (again.length, again.segments, again.counts) == (first.length, first.segments, first.counts)
        for side in subject.SIDES:
            for name in subject.LANGUAGES:
                one, other = (getattr(getattr(bitext, side), name) for bitext in (first, again))
                np.testing.assert_array_equal(other.tokens, one.tokens)
                np.testing.assert_array_equal(other.ends, one.ends)


@pytest.mark.parametrize("name", ["train_source.npy", "validation_target_ends.npy", "tokenizer.json"])
def test_damage_is_noticed_and_mended(files, tmp_path, name):
    data.prepare(config(files()), tmp_path / "data")
    path = tmp_path / "data" / name
    whole = path.read_bytes()
    for damaged in (whole[:-3] + b"xyz", whole[:-2], b"", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no intact corpus"):
            data.load(tmp_path / "data")
        data.prepare(config(files()), tmp_path / "data")
        assert path.read_bytes() == whole


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


def test_the_fingerprint_changes_with_the_texts_and_not_with_their_place(files, tmp_path):
    def fingerprint(pairs, held_out, names):
        path, validation = files(pairs, names[0]), files(held_out, names[1])
        wanted = config(path, pairs=data.Pairs(validation=validation))
        return data.prepare(wanted, tmp_path / "".join(names)).fingerprint

    held_out = [("a cat", "eine katze")]
    first = fingerprint(PAIRS, held_out, ("a", "b"))
    assert first == fingerprint(PAIRS, held_out, ("c", "d"))
    changed = {
        "source": ([("a cow runs", PAIRS[0][1]), *PAIRS[1:]], held_out),
        "target": ([(PAIRS[0][0], "kühe"), *PAIRS[1:]], held_out),
        "order": (PAIRS[::-1], held_out),
        "held-out target": (PAIRS, [("a cat", "zwei katzen")]),
        "languages": (PAIRS, [held_out[0][::-1]]),
    }
    others = {name: fingerprint(*both, (f"{name} 1", f"{name} 2")) for name, both in changed.items()}
    assert len({first, *others.values()}) == 1 + len(changed)


def test_text_and_pairs_do_not_take_each_others_folder(files, tmp_path):
    (tmp_path / "text.txt").write_text("all that is and all that is not " * 300)
    stream = data.Data(path=str(tmp_path / "text.txt"), length=24, split="tail", tokenizer=data.Tokenizer("bytes"))
    for number, (one, other) in enumerate([(stream, config(files())), (config(files()), stream)]):
        first = data.prepare(one, tmp_path / f"{number}")
        with pytest.raises(ValueError, match=r"data\.content was \w+, now \w+"):
            data.prepare(other, tmp_path / f"{number}")
        assert data.load(tmp_path / f"{number}").fingerprint == first.fingerprint


LONG = ("x " * 30, "kurz")


@pytest.mark.parametrize(
    ("pair", "misfits", "message"),
    [
        (LONG, "error", r"train\.en, line 41 has a source of \d+ tokens, and data\.length=24 has room for 23 and the"),
        (("a", ""), "error", r"train\.en, line 41 has an empty target: take the pair out, or set"),
        (("", "b"), "truncate", r"train\.en, line 41 has an empty source"),
        (
            LONG[::-1],
            "error",
            r"train\.en, line 41 has a target of 60 tokens, .*: raise it, or set data\.pairs\.misfits",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line_and_leaves_nothing(files, tmp_path, pair, misfits, message):
    bytes_alone = {"tokenizer": data.Tokenizer("bytes"), "length": 24}
    held_out = files([("a", "b")], "val")
    short = [("a", "b")] * 40
    wanted = config(files([*short, pair]), pairs=data.Pairs(misfits=misfits, validation=held_out), **bytes_alone)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message) as caught:
        data.prepare(wanted, tmp_path / "data")
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_a_held_out_pair_that_does_not_fit_is_refused_too(files, tmp_path):
    pairs = data.Pairs(validation=files([("a", "b"), LONG], "val"))
    with pytest.raises(ValueError, match=r"val\.en, line 2 has a source of \d+ tokens"):
        data.prepare(config(files(), pairs=pairs), tmp_path / "data")


@pytest.mark.parametrize("letters", [22, 23, 24])
def test_the_end_takes_one_place(files, tmp_path, letters):
    pairs = data.Pairs(misfits="drop", validation=files([("a", "b")], "val"))
    path = files([("a", "b"), ("a" * letters, "b"), ("a", "b" * letters)])
    bitext = data.prepare(config(path, pairs=pairs, tokenizer=data.Tokenizer("bytes"), length=24), tmp_path / "data")
    assert len(bitext.train) == (3 if letters + 1 <= 24 else 1)
    assert bitext.train.lengths.max() == (letters + 1 if letters + 1 <= 24 else 2)


def test_long_texts_are_cut_or_left_out_when_told_to(files, tmp_path):
    path, held_out = files([PAIRS[0], LONG, LONG[::-1], PAIRS[1]]), files(PAIRS[:2], "val")
    cut, dropped = (
        data.prepare(
            config(path, pairs=data.Pairs(misfits=misfits, validation=held_out), tokenizer=data.Tokenizer("bytes"),
                   length=40), tmp_path / misfits,
        )
        for misfits in ("truncate", "drop")
    )  # fmt: skip
    assert (cut.counts["train"]["cut"], cut.counts["train"]["left_out"], len(cut.train)) == (2, 0, 4)
    assert (dropped.counts["train"]["cut"], dropped.counts["train"]["left_out"], len(dropped.train)) == (0, 2, 2)
    assert spelt(dropped, "train") == set(PAIRS[:2])  # partners stay together around what is left out
    shortened = (LONG[0][:39], LONG[1])
    assert spelt(cut, "train") == {*PAIRS[:2], shortened, shortened[::-1]}


def test_pairs_with_an_empty_text_are_left_out_when_told_to(files, tmp_path):
    pairs = data.Pairs(misfits="drop", validation=files(PAIRS[:2], "val"))
    path = files([("", "b"), *PAIRS[:2], ("a", ""), ("", "")])
    bitext = data.prepare(config(path, pairs=pairs, length=64), tmp_path / "data")
    assert bitext.counts["train"]["left_out"] == 3 and spelt(bitext, "train") == set(PAIRS[:2])
    with pytest.raises(ValueError, match="leaves out every pair of the train side"):
        data.prepare(config(files([("", "b"), ("a", "")], "none"), pairs=pairs), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ([], None, r"data\.path=.* holds no pairs: point it to some"),
        (PAIRS, [], r"data\.pairs\.validation=.* holds no pairs: point it to some"),
        (PAIRS[:1], None, "needs pairs with two different sources to hold some out"),
    ],
)
def test_refuses_a_side_without_pairs(files, tmp_path, train, held_out, message):
    validation = None if held_out is None else files(held_out, "val")
    with pytest.raises(ValueError, match=message):
        data.prepare(config(files(train), pairs=data.Pairs(validation=validation)), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("misfits", ["error", "truncate", "drop"])
def test_refuses_a_length_without_room_for_a_token_and_the_end(files, tmp_path, misfits):
    pairs = data.Pairs(misfits=misfits, validation=files([("c", "d")], "val"))
    with pytest.raises(ValueError, match=r"data\.length=1 has room for an end alone: pairs need 2 or more"):
        data.prepare(config(files([("a", "b")]), pairs=pairs, length=1), tmp_path / "data")
    least = data.prepare(config(files([("a", "b")]), pairs=pairs, length=2), tmp_path / "data")
    assert spelt(least, "train") == {("a", "b")} and spelt(least, "validation") == {("c", "d")}


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
