"""Each source gives its documents, in order, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from transformer.data import Data, Document, Tfds, documents


def _error(config):
    with pytest.raises(ValueError) as caught:
        list(documents(config))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_standard_library_starts_with_its_topics_and_goes_on_with_modules():
    from pydoc_data import topics

    found = list(documents(Data(limit=2_000_000)))
    count = len(topics.topics)
    assert [text for _, text in found[:count]] == [topics.topics[name] for name in sorted(topics.topics)]
    modules = dict(found[count:])
    assert list(modules) == sorted(modules)
    with open(__import__("abc").__file__, encoding="utf-8", newline="") as file:
        assert modules["abc.py"] == file.read()
    assert found == list(documents(Data(limit=2_000_000)))


def test_the_standard_library_leaves_out_tests_tables_and_packages():
    names = [name for name, _ in documents(Data(limit=10**9))]
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
    assert "pydoc_data/topics.py" not in names
    assert {"argparse.py", "json/decoder.py"} <= set(names)


@pytest.mark.parametrize("limit", [100_000, 1_000_000])
def test_the_standard_library_keeps_to_its_limit(limit):
    total = sum(len(text.encode()) for _, text in documents(Data(limit=limit)))
    assert 0.5 * limit < total <= limit


def test_a_file_is_one_document_with_its_bytes_unchanged(tmp_path):
    path = tmp_path / "any.name"
    path.write_bytes("é\r\nb\n".encode())
    assert list(documents(Data(path=str(path)))) == [Document("any.name", "é\r\nb\n")]


def test_a_folder_is_read_in_order_and_by_suffix(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.TXT", "a/z.txt", "skipped.py", ".hidden.txt", ".git/x.txt", "empty.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name == "empty.txt" else name)
    assert [name for name, _ in documents(Data(path=str(tmp_path)))] == ["a.md", "a/z.txt", "b.txt", "sub/c.TXT"]
    assert [name for name, _ in documents(Data(path=str(tmp_path), suffixes=(".py",)))] == ["skipped.py"]


def test_refuses_a_missing_path():
    assert _error(Data(path="no/such")).startswith("data.path='no/such' does not exist")


@pytest.mark.parametrize("whole", [True, False])
def test_refuses_text_that_is_not_utf8_and_names_the_file(tmp_path, whole):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    assert _error(Data(path=str(tmp_path if whole else path))).startswith(f"{path} is not UTF-8 (byte 3)")


_PREPARE = """
    import sys, numpy as np, tensorflow_datasets as tfds
    from etils import epath

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = epath.Path(sys.argv[1])

        def _info(self):
            features = {"text": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": ((i, {"text": f"é {i}", "number": i}) for i in range(5))}

        def _generate_examples(self):
            raise NotImplementedError

    Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder that holds the dataset `tiny`, prepared by another process, so that this one knows no code for it."""
    folder = tmp_path_factory.mktemp("tfds")
    script = textwrap.dedent(_PREPARE)
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True)
    return folder


def _tiny(folder, path="tfds:tiny", **options):
    return Data(path=path, tfds=Tfds(folder=str(folder), **options))


@pytest.mark.parametrize("path", ["tfds:tiny", "tfds:tiny:1.0.0"])
def test_a_prepared_dataset_is_read(prepared, path):
    found = list(documents(_tiny(prepared, path)))
    assert sorted(text for _, text in found) == [f"é {index}" for index in range(5)]
    assert found == list(documents(_tiny(prepared, path)))
    assert len(list(documents(_tiny(prepared, path, split="train[:2]")))) == 2


def test_a_prepared_dataset_is_read_without_tensorflow(prepared):
    script = f"""
        import sys
        from transformer.data import Data, Tfds, documents
        assert len(list(documents(Data(path="tfds:tiny", tfds=Tfds(folder={str(prepared)!r}))))) == 5
        sys.exit("tensorflow" in sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_importing_the_room_does_not_import_tfds():
    script = "import sys, transformer.data; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("path", ["tfds:tiny:2.0.0", "tfds:tiny/other", "tfds:imdb_reviews", "tfds:a b", "tfds:x:y:z"])
def test_refuses_to_download(prepared, path):
    message = _error(_tiny(prepared, path))
    name = path.removeprefix("tfds:")
    assert "is not prepared" in message
    assert f"tfds.builder({name!r}, data_dir={str(prepared)!r}, file_format='array_record').download_and_pr" in message


def test_refuses_a_split_a_feature_and_a_number(prepared):
    assert "has no data.tfds.split='test': choose among train" in _error(_tiny(prepared, split="test"))
    assert "has no data.tfds.feature='x': choose one of number, text" in _error(_tiny(prepared, feature="x"))
    assert "holds int, not text" in _error(_tiny(prepared, feature="number"))


def test_refuses_a_format_that_needs_tensorflow(prepared, tmp_path):
    version = tmp_path / "tiny" / "1.0.0"
    version.mkdir(parents=True)
    for path in (prepared / "tiny" / "1.0.0").iterdir():
        (version / path.name).write_bytes(path.read_bytes())
    info = json.loads((version / "dataset_info.json").read_text())
    (version / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    assert "is stored as tfrecord, not array_record" in _error(_tiny(tmp_path))
