"""A corpus holds its text exactly, has a fingerprint of all that shapes it, and lands whole or not at all."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from transformer import data, text
from transformer.data import corpus as subject

DOCUMENTS = [f"Document {index} says: " + "näher " * (index % 5 + 1) for index in range(40)]
BYTES = data.Tokenizer("bytes")
CHARACTERS = data.Tokenizer("characters", fallback=False)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for index, document in enumerate(DOCUMENTS):
        (folder / f"{index:02}.txt").write_text(document, encoding="utf-8")
    return folder


@pytest.fixture
def config(source):
    return data.Data(path=str(source), length=8, tokenizer=BYTES)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "corpus"


def _error(config, folder):
    """The one line that `prepare` fails with, having left nothing behind."""
    before = sorted(path for path in folder.parent.parent.rglob("*"))
    with pytest.raises(ValueError) as caught:
        data.prepare(config, folder)
    assert sorted(path for path in folder.parent.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_streams_spell_the_documents(config, folder):
    corpus = data.prepare(config, folder)
    end, spelt = corpus.tokenizer.end, []
    for stream in (corpus.train, corpus.validation):
        assert stream.dtype == np.uint16
        assert stream[0] == end
        spelt += [corpus.tokenizer.decode(ids) for ids in np.split(stream, np.flatnonzero(stream == end))[1:]]
    assert sorted(spelt) == sorted(DOCUMENTS)


def test_counts_and_bytes_are_exact(config, folder):
    corpus = data.prepare(config, folder)
    total = sum(len(document.encode()) for document in DOCUMENTS)
    counts = corpus.counts
    assert sum(side.documents for side in counts.values()) == len(DOCUMENTS)
    assert sum(side.bytes for side in counts.values()) == total
    assert counts["train"].tokens == len(corpus.train) == counts["train"].bytes + counts["train"].documents
    assert corpus.validation_bytes == counts["validation"].bytes  # all predicted: the stream begins with an end token
    assert corpus.bytes_per_token == pytest.approx(counts["train"].bytes / (len(corpus.train) - 1))


@pytest.mark.parametrize(("opening", "unpredicted"), [("a", 1), ("é", 2), ("\ufffd", 3), ("😀", 4)])
def test_without_an_end_token_the_first_character_is_not_predicted(tmp_path, folder, opening, unpredicted):
    path = tmp_path / "input.txt"
    body = "x" * 90
    path.write_text(body + opening + "x" * 9, encoding="utf-8")
    config = data.Data(path=str(path), length=4, split="tail", tokenizer=CHARACTERS, validation=0.1)
    corpus = data.prepare(config, folder)
    assert corpus.tokenizer.end is None
    assert corpus.validation_bytes == 9
    assert corpus.counts["validation"].bytes == 9 + unpredicted
    assert len(corpus.train) == 90


def test_the_tokenizer_sees_training_text_only(config, folder, monkeypatch):
    seen = []
    monkeypatch.setattr(text, "train", lambda kind, texts, vocab: seen.extend(texts) or text.Bytes())
    corpus = data.prepare(config, folder)
    assert len(seen) == corpus.counts["train"].documents < len(DOCUMENTS)
    spelt = corpus.tokenizer.decode(corpus.train[corpus.train != corpus.tokenizer.end].astype(np.int32))
    assert "".join(seen) == spelt


def test_a_table_of_characters_knows_validation_text_too(tmp_path, folder):
    path = tmp_path / "input.txt"
    path.write_text("ab" * 90 + "xyz" * 7)
    config = data.Data(path=str(path), length=4, split="tail", tokenizer=CHARACTERS)
    assert data.prepare(config, folder).tokenizer.size == 5


def test_a_saved_tokenizer_is_used(config, folder, tmp_path):
    first = data.prepare(dataclasses.replace(config, tokenizer=data.Tokenizer("bpe", vocab=270)), folder)
    loaded = dataclasses.replace(config, tokenizer=data.Tokenizer(folder=str(folder)))
    second = data.prepare(loaded, tmp_path / "second")
    np.testing.assert_array_equal(first.train, second.train)
    assert first.fingerprint == second.fingerprint


def test_a_second_call_maps_what_is_there(config, folder, monkeypatch):
    first = data.prepare(config, folder)
    monkeypatch.setattr(subject, "_build", lambda *_: pytest.fail("tokenised again"))
    second = data.prepare(config, folder)
    np.testing.assert_array_equal(first.train, second.train)
    assert second.fingerprint == first.fingerprint
    assert second.counts == first.counts
    assert isinstance(second.train, np.memmap)


TOKENIZERS = [
    BYTES,
    CHARACTERS,
    dataclasses.replace(CHARACTERS, fallback=True),
    dataclasses.replace(CHARACTERS, end=True),
    data.Tokenizer("bpe", vocab=270),
    data.Tokenizer("bpe", vocab=280),
]


def test_every_choice_of_tokenizer_is_read(config, tmp_path):
    corpora = [
        data.prepare(dataclasses.replace(config, tokenizer=tokenizer), tmp_path / str(index))
        for index, tokenizer in enumerate(TOKENIZERS)
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == len(TOKENIZERS)
    assert [corpus.tokenizer.end is not None for corpus in corpora] == [True, False, False, True, True, True]


CHANGES = {
    "length": 9,
    "validation": 0.3,
    "split": "tail",
    "segments": True,
    "objective": data.Objective("prefix"),
    "tokenizer": data.Tokenizer("bpe", vocab=270),
}


@pytest.mark.parametrize("field", CHANGES)
def test_the_fingerprint_changes_with_the_field(config, folder, tmp_path, field):
    before = data.prepare(config, folder)
    changed = dataclasses.replace(config, **{field: CHANGES[field]})
    assert f"data.{field} was " in _error(changed, folder)
    assert data.load(folder).fingerprint == before.fingerprint
    after = data.prepare(changed, tmp_path / "other")
    assert before.fingerprint != after.fingerprint
    with pytest.raises(ValueError, match=f"data.{field} was .*, now "):
        data.check_fingerprint(before.recipe, after.recipe)


def test_the_fingerprint_changes_with_the_text_and_not_with_its_place(config, folder, source, tmp_path):
    before = data.prepare(config, folder)
    moved = source.rename(tmp_path / "moved")
    same = data.prepare(dataclasses.replace(config, path=str(moved)), folder)
    assert same.fingerprint == before.fingerprint
    (moved / "00.txt").write_text("Document 0 says something else.")
    after = data.prepare(dataclasses.replace(config, path=str(moved)), tmp_path / "other")
    assert after.fingerprint != before.fingerprint
    with pytest.raises(ValueError, match=r"data\.content was \w+, now \w+; restore"):
        data.check_fingerprint(before.recipe, after.recipe)


def test_every_field_of_the_configuration_is_read():
    choosing = {"path", "limit", "suffixes", "tfds", "pairs"}  # which text: seen in its content
    assert {field.name for field in dataclasses.fields(data.Data)} == choosing | set(CHANGES)


def test_check_fingerprint_names_each_field_that_differs():
    old = {"length": 256, "split": "tail", "segments": False}
    data.check_fingerprint(old, dict(old))
    with pytest.raises(ValueError, match=r"data\.length was 256, now 128; data\.segments was False, now True;"):
        data.check_fingerprint(old, {**old, "length": 128, "segments": True})


@pytest.mark.parametrize("name", ["train.npy", "validation.npy", "tokenizer.json"])
def test_damage_is_noticed_and_mended(config, folder, name):
    config = dataclasses.replace(config, tokenizer=data.Tokenizer("bpe", vocab=270))
    data.prepare(config, folder)
    content = (folder / name).read_bytes()
    flipped = bytes([*content[:-20], content[-20] ^ 1, *content[-19:]])
    for damaged in (flipped, content[:-30], b"", None):
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        data.prepare(config, folder)
        assert (folder / name).read_bytes() == content


def test_a_damaged_record_is_noticed_and_nothing_is_replaced_on_its_word(config, folder):
    data.prepare(config, folder)
    path = folder / "corpus.json"
    path.write_text(path.read_text().replace('"bytes": ', '"bytes": 1', 1))
    assert "holds 'bytes.json', which no intact corpus.json lists: remove it" in _error(config, folder)


def test_an_interrupted_writer_leaves_nothing(config, folder, monkeypatch):
    def interrupt(self, folder):
        assert (folder / "train.npy").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(text.Bytes, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(config, folder)
    assert list(folder.parent.iterdir()) == []


def test_an_interrupted_mending_leaves_the_older_corpus(config, folder, monkeypatch):
    before = data.prepare(config, folder)
    (folder / "train.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no intact corpus: train there again"):
        data.load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            data.prepare(config, folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert data.prepare(config, folder).fingerprint == before.fingerprint


def test_a_corpus_is_loaded_without_its_source(config, folder, source):
    before = data.prepare(config, folder)
    source.rename(source.with_name("gone"))
    after = data.load(folder)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.validation, before.validation)
    with pytest.raises(ValueError, match="holds no intact corpus"):
        data.load(folder.parent)


def test_the_record_on_disk_says_what_it_is(config, folder):
    corpus = data.prepare(config, folder)
    record = json.loads((folder / "corpus.json").read_text())
    assert record["fingerprint"] == corpus.fingerprint
    assert record["counts"]["train"]["tokens"] == len(corpus.train)
    assert sorted(path.name for path in folder.iterdir()) == record["files"]


def test_refuses_an_empty_corpus(config, folder, tmp_path):
    (tmp_path / "empty.txt").touch()
    assert "holds no text: point it" in _error(dataclasses.replace(config, path=str(tmp_path / "empty.txt")), folder)
    assert "files ending in .rst" in _error(dataclasses.replace(config, suffixes=(".rst",)), folder)


def test_refuses_a_missing_path(config, folder):
    assert "data.path='no/such' does not exist" in _error(dataclasses.replace(config, path="no/such"), folder)


def test_refuses_text_that_is_not_utf8(config, folder, source):
    (source / "bad.txt").write_bytes(b"\xff")
    assert "bad.txt is not UTF-8" in _error(config, folder)


@pytest.mark.parametrize(("share", "side"), [(0.01, "validation"), (0.99, "train")])
def test_refuses_a_side_shorter_than_a_row(config, folder, share, side):
    config = dataclasses.replace(config, validation=share, split="tail", length=1000)
    message = _error(config, folder)
    assert message.startswith(f"the {side} side has ")
    assert "one row needs 1001 at data.length=1000" in message


def test_a_side_of_exactly_one_row_is_enough(tmp_path, folder):
    folder.parent.mkdir()
    path = tmp_path / "input.txt"
    path.write_text("abcd" * 20)
    config = data.Data(path=str(path), length=7, split="tail", tokenizer=CHARACTERS)
    assert "has 8 tokens" in _error(dataclasses.replace(config, length=8), folder)
    assert len(data.prepare(config, folder).validation) == 8


def test_refuses_segments_without_an_end_token(config, folder):
    message = _error(dataclasses.replace(config, segments=True, tokenizer=CHARACTERS), folder)
    assert message.startswith("data.segments=True needs a token that opens documents")


def test_refuses_a_tokenizer_folder_that_is_not_there(config, folder):
    message = _error(dataclasses.replace(config, tokenizer=data.Tokenizer(folder="no/such")), folder)
    assert message.startswith("data.tokenizer: folder='no/such' does not exist")


def test_refuses_a_tokenizer_folder_without_a_tokenizer(config, folder, source):
    message = _error(dataclasses.replace(config, tokenizer=data.Tokenizer(folder=str(source))), folder)
    assert message.startswith("data.tokenizer: folder=")


def test_refuses_a_character_that_a_saved_table_lacks(config, folder, tmp_path):
    text.Characters.train(["abc"], fallback=False).save(tmp_path / "table")
    message = _error(dataclasses.replace(config, tokenizer=data.Tokenizer(folder=str(tmp_path / "table"))), folder)
    assert "none of the 3 characters" in message


@pytest.mark.parametrize("name", ["model.safetensors", ".hidden"])
def test_refuses_to_replace_what_is_not_a_corpus(config, folder, name):
    folder.mkdir(parents=True)
    (folder / name).touch()
    assert f"holds {name!r}, which no intact corpus.json lists" in _error(config, folder)


def test_refuses_to_lose_what_lies_beside_an_older_corpus(config, folder):
    data.prepare(config, folder)
    (folder / "notes.md").touch()
    data.prepare(config, folder)
    (folder / "train.npy").write_bytes(b"")
    assert "holds 'notes.md', which no intact corpus.json lists" in _error(config, folder)


def test_refuses_a_folder_that_is_a_file(config, folder):
    folder.parent.mkdir()
    folder.touch()
    assert "is a file" in _error(config, folder)


def test_shakespeare_is_split_as_published(shared_data, folder):
    path = shared_data / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    corpus = data.prepare(data.Data(path=str(path), split="tail", tokenizer=CHARACTERS), folder)
    # karpathy/nanoGPT, data/shakespeare_char: the numbers that its preparation prints.
    assert (corpus.tokenizer.size, len(corpus.train), len(corpus.validation)) == (65, 1_003_854, 111_540)
