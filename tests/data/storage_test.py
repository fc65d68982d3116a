"""A folder is read back as it was written, or not at all; nothing but an older corpus is ever replaced."""

from __future__ import annotations

import numpy as np
import pytest

from transformer.data import storage

ARRAYS = {"train": np.arange(5, dtype=np.uint16), "validation": np.arange(3, dtype=np.uint32)}


def _write(folder, arrays=None):
    storage.write(
        folder, {"name": "é"}, ARRAYS if arrays is None else arrays, lambda new: (new / "more").write_text("x")
    )


def test_what_is_written_is_read(tmp_path):
    folder = tmp_path / "deep" / "corpus"
    _write(folder)
    record = storage.read_record(folder)
    assert record["name"] == "é"
    assert record["files"] == ["corpus.json", "more", "train.npy", "validation.npy"]
    arrays = storage.read_arrays(folder, record)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
        assert not arrays[name].flags.writeable
    assert list(folder.parent.iterdir()) == [folder]


def test_arrays_of_another_dtype_or_shape_are_not_those_written(tmp_path):
    _write(tmp_path / "corpus")
    record = storage.read_record(tmp_path / "corpus")
    for other in (ARRAYS["train"].view(np.int16), ARRAYS["train"][None], ARRAYS["train"] + 1):
        np.save(tmp_path / "corpus" / "train.npy", other)
        assert storage.read_arrays(tmp_path / "corpus", record) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"name": "forged", "checksum": "0"}'])
def test_a_record_that_was_not_written_is_no_record(tmp_path, content):
    (tmp_path / storage.RECORD).write_text(content)
    assert storage.read_record(tmp_path) == {}
    assert storage.read_record(tmp_path / "missing") == {}


def test_a_newer_corpus_replaces_an_older_one(tmp_path):
    folder = tmp_path / "corpus"
    _write(folder)
    storage.refuse_strangers(folder)
    _write(folder, {"train": ARRAYS["train"][::-1].copy()})
    assert storage.read_record(folder)["files"] == ["corpus.json", "more", "train.npy"]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_an_array_still_mapped_outlives_its_replacement(tmp_path):
    folder = tmp_path / "corpus"
    _write(folder)
    mapped = storage.read_arrays(folder, storage.read_record(folder))["train"]
    _write(folder, {"train": ARRAYS["train"] + 1})
    np.testing.assert_array_equal(mapped, ARRAYS["train"])


def test_another_process_that_lands_first_wins(tmp_path, monkeypatch):
    folder, rename = tmp_path / "corpus", type(tmp_path).rename

    def overtaken(path, target):
        monkeypatch.setattr(type(tmp_path), "rename", rename)
        _write(folder, {"train": ARRAYS["validation"]})
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", overtaken)
    _write(folder)
    assert storage.read_arrays(folder, storage.read_record(folder))["train"].size == 3


@pytest.mark.parametrize("present", [["a.txt"], [".git"], ["train.npy"]])
def test_refuses_a_folder_with_other_files(tmp_path, present):
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"holds '{present[0]}', which no intact corpus.json lists: remove it"):
        storage.refuse_strangers(tmp_path)


def test_an_empty_or_missing_folder_is_welcome(tmp_path):
    storage.refuse_strangers(tmp_path)
    storage.refuse_strangers(tmp_path / "missing")
