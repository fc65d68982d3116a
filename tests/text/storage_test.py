import pytest

from transformer import text
from transformer.text import storage

CORPUS = ["the cat sat on the mat"]


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_saving_again_replaces_and_leaves_nothing_else(kind, tmp_path):
    text.train(kind, CORPUS, 260).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    newer = text.train(kind, ["another text of other letters"], 262)
    newer.save(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == names
    assert text.load(tmp_path).fingerprint == newer.fingerprint


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    storage.write(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_kind_is_not_overwritten(tmp_path):
    text.Bytes().save(tmp_path)
    with pytest.raises(ValueError, match=r"bytes\.json is another tokenizer \(bytes, not bpe\)"):
        text.BPE.train(CORPUS, 260).save(tmp_path)
    assert isinstance(text.load(tmp_path), text.Bytes)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        text.Bytes().save(tmp_path / "taken")


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "source.spm", "tokenizer.json"])
def test_nothing_is_saved_beside_another_tokenizer(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"{name} is another tokenizer \(\w+, not characters\)"):
        text.Characters.train(CORPUS).save(tmp_path)


def test_bytes_are_written_as_they_are(tmp_path):
    storage.write(tmp_path / "model", b"\xff\r\n\x00")
    assert (tmp_path / "model").read_bytes() == b"\xff\r\n\x00"
