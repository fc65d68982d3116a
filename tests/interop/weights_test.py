"""Files of tensors: read in every form they come in, and refused in one line where they are damaged or lead astray."""

import json
import os
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop.folders import raw
from transformer.interop import weights
from transformer.interop.weights import INDEX, SINGLE, Kind

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def arrays(*names: str, shape=(3, 2)) -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32) for name in names}


def sharded(folder, **files: dict[str, np.ndarray]) -> dict[str, str]:
    where = {}
    for file, content in files.items():
        save_file(content, folder / f"{file}.safetensors")
        where |= dict.fromkeys(content, f"{file}.safetensors")
    return where


def index(folder, where) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def refused(words: str):
    return pytest.raises(ValueError, match=words)


def test_a_single_file_is_listed_without_reading_and_read(tmp_path):
    content = arrays("a", "b.c")
    save_file(content, tmp_path / SINGLE)
    found = weights.tensors(tmp_path)
    assert found.keys() == content.keys()
    for name, tensor in found.items():
        assert (tensor.name, tensor.shape, tensor.dtype, tensor.path) == (name, (3, 2), np.float32, tmp_path / SINGLE)
        np.testing.assert_array_equal(tensor.read(), content[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("piece", [1, 100, 2**20])
def test_pieces_are_all_of_a_tensor_in_order(tmp_path, monkeypatch, dtype, piece):
    monkeypatch.setattr(weights, "PIECE", piece)
    content = np.arange(70).reshape(7, 10).astype(dtype)
    save_file({"a": content}, tmp_path / SINGLE)
    tensor = weights.tensors(tmp_path)["a"]
    weights.check_type(tensor)
    places, pieces = zip(*tensor.pieces(), strict=True)
    assert [place.start for place in places[1:]] == [place.stop for place in places[:-1]]
    assert max(part.nbytes for part in pieces) <= max(piece, content[0].nbytes)
    assert len(pieces) == {1: 7, 100: 4 if dtype is np.float32 else 2, 2**20: 1}[piece]
    joined = np.concatenate(pieces)
    assert joined.dtype == dtype
    np.testing.assert_array_equal(joined, content)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_tensors_without_axes_or_without_numbers_are_read(tmp_path, shape):
    save_file({"a": np.full(shape, 5, np.float32)}, tmp_path / SINGLE)
    tensor = weights.tensors(tmp_path)["a"]
    assert tensor.shape == tensor.read().shape == shape
    assert sum(piece.sum() for _, piece in tensor.pieces()) == (5 if shape == () else 0)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, bool])
def test_what_holds_no_such_floats_is_listed_but_not_taken(tmp_path, dtype):
    save_file({"a": np.zeros(3, dtype)}, tmp_path / SINGLE)
    with refused(f"{SINGLE}: a is none of float32, float16 and bfloat16: convert it first"):
        weights.check_type(weights.tensors(tmp_path)["a"])


def test_eight_bit_floats_are_listed_but_not_taken(tmp_path):
    raw(tmp_path / SINGLE, {"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"\0\0")
    with refused("a is none of float32"):
        weights.check_type(weights.tensors(tmp_path)["a"])


def test_shards_are_found_by_their_index(tmp_path):
    one, other = arrays("a", "b"), arrays("c", shape=(4,))
    index(tmp_path, sharded(tmp_path, one=one, other=other))
    save_file(arrays("elsewhere"), tmp_path / "consolidated.safetensors")  # which the index does not name
    found = weights.tensors(tmp_path)
    assert {name: tensor.path.stem for name, tensor in found.items()} == {"a": "one", "b": "one", "c": "other"}
    np.testing.assert_array_equal(found["c"].read(), other["c"])


def test_the_single_file_counts_where_there_is_an_index_too(tmp_path):
    index(tmp_path, sharded(tmp_path, shard=arrays("old")))
    save_file(arrays("new"), tmp_path / SINGLE)
    assert weights.tensors(tmp_path).keys() == {"new"}


def test_one_file_of_another_name_is_enough(tmp_path):
    save_file(arrays("a"), tmp_path / "other.safetensors")
    assert weights.tensors(tmp_path).keys() == {"a"}


def test_several_files_need_an_index(tmp_path):
    sharded(tmp_path, one=arrays("a"), other=arrays("b"))
    with refused(f"holds 2 .* but no {INDEX} says which"):
        weights.tensors(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    where = sharded(tmp_path, one=arrays("a", "b"), other=arrays("a", "c"))
    index(tmp_path, where)
    with refused("other.safetensors holds 'a', and so does one.safetensors: keep one"):
        weights.tensors(tmp_path)


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/passwd", "sub/one.safetensors", "..\\out.safetensors", "", ".", "..", 3, None]
)
def test_an_index_may_not_lead_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(arrays("a"), tmp_path / "out.safetensors")
    index(folder, {"a": name})
    with refused(f"{INDEX} points to .* which is not a file of its folder: it is not followed"):
        weights.tensors(folder)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    (tmp_path / "model").mkdir()
    save_file(arrays("a"), tmp_path / "blob")
    (tmp_path / "model" / SINGLE).symlink_to("../blob")
    assert weights.tensors(tmp_path / "model").keys() == {"a"}


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path):
    where = sharded(tmp_path, one=arrays("a"))
    index(tmp_path, where | {"b": "two.safetensors"})
    with refused("names two.safetensors, which is missing: fetch it"):
        weights.tensors(tmp_path)
    index(tmp_path, where | {"b": "one.safetensors"})
    with refused("says that one.safetensors holds 'b', which it does not: fetch both again"):
        weights.tensors(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}', "[" * 100_000, b"\xff"]
)
def test_a_damaged_index_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(rf"{INDEX} cannot be read as an index \(\w+\): restore it"):
        weights.tensors(tmp_path)


DAMAGED = {
    "empty": b"",
    "no header": b"\1",
    "a header longer than the file": b"\xff" * 8 + b"{}",
    "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "a pickle": pickle.dumps({"a": [1.0]}),
}
HEADERS = {
    "more numbers than there are": {"a": F32 | {"shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
    "a shape that does not fit": {"a": F32 | {"shape": [10**12]}},
    "a size that overflows": {"a": F32 | {"shape": [2**62, 2**62]}},
    "a negative size": {"a": F32 | {"shape": [-1]}},
    "an unknown type": {"a": F32 | {"dtype": "Q4"}},
    "two tensors in one place": {"a": F32, "b": F32},
    "no numbers at all": {"a": F32 | {"shape": [2], "data_offsets": [0, 8]}},
}


@pytest.mark.parametrize("what", [*DAMAGED, *HEADERS])
def test_a_damaged_file_is_refused(tmp_path, what):
    if what in DAMAGED:
        (tmp_path / SINGLE).write_bytes(DAMAGED[what])
    else:
        raw(tmp_path / SINGLE, HEADERS[what], b"\0" * 4)
    with refused(f"{SINGLE} cannot be read as safetensors .*: fetch it again") as error:
        weights.tensors(tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(tmp_path):
    save_file(arrays("a"), tmp_path / SINGLE)
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(content[:-1])
    with refused("cannot be read as safetensors"):
        weights.tensors(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    save_file(arrays("a"), tmp_path / SINGLE)
    (tmp_path / SINGLE).chmod(0)
    with refused("cannot be read as safetensors"):
        weights.tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_never_opened_but_can_be_converted(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with refused(f"{name} is a pickle.*not read.*save_pretrained") as error:
        weights.tensors(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_says_what_was_expected(tmp_path):
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(FileNotFoundError, match=f"holds no weights: {SINGLE} or {INDEX} was expected"):
        weights.tensors(tmp_path)


def kinds(content) -> dict[str, Kind]:
    return {name: Kind(array.shape, array.dtype) for name, array in content.items()}


def test_what_is_written_the_formats_own_library_reads(tmp_path):
    content = {
        "half": np.arange(5).astype(np.float16),
        "whole": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "brain": np.arange(3).astype(ml_dtypes.bfloat16),
        "one": np.float32(7).reshape(()),
        "none": np.zeros((0, 2), np.float32),
    }
    weights.save(tmp_path, content, kinds(content))
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]
    back = load_file(tmp_path / SINGLE)
    assert back.keys() == content.keys()
    for name, array in content.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    header = (tmp_path / SINGLE).read_bytes()
    assert (8 + int.from_bytes(header[:8], "little")) % 8 == 0
    assert b'"__metadata__": {"format": "pt"}' in header


def test_shards_are_about_as_large_as_asked_for(tmp_path):
    content = arrays(*"abcde", shape=(10,))  # of 40 bytes
    weights.save(tmp_path, content, kinds(content), shard=100)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    content_of_index = json.loads((tmp_path / INDEX).read_text())
    assert content_of_index["metadata"] == {"total_size": 200}
    assert content_of_index["weight_map"] == dict(
        zip("abcde", [files[0]] * 2 + [files[1]] * 2 + [files[2]], strict=True)
    )
    for name, tensor in weights.tensors(tmp_path).items():
        np.testing.assert_array_equal(tensor.read(), content[name])


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
    content = arrays("a", shape=(100,)) | arrays("bb", shape=(2,)) | arrays("ccc", shape=(100,))
    weights.save(tmp_path, content, kinds(content), shard=10)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
