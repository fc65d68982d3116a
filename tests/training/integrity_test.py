import errno
import hashlib
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.training import integrity


def arrays():
    return {
        "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "c": np.ones((), jnp.bfloat16),
        "d": np.zeros(0, np.int32),
    }


def test_a_description_is_json_and_fits_itself():
    described = json.loads(json.dumps(integrity.describe(arrays())))
    assert described["a/b"]["shape"] == [2, 3] and described["c"]["dtype"] == "bfloat16"
    integrity.check_structure(described, arrays(), "it")
    integrity.check_structure(described, jax.eval_shape(lambda: arrays()), "it")


@pytest.fixture
def sealed(tmp_path):
    """A folder with files in two parts, and its manifest."""
    for name, content in {"params/d/a": b"1234", "params/meta": b"{}", "recipe/metadata": b"[1]"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    integrity.write_manifest(tmp_path)
    return tmp_path


def test_a_manifest_lists_every_file_with_its_size_and_hash(sealed):
    manifest = json.loads((sealed / integrity.MANIFEST).read_text())
    files = {str(path.relative_to(sealed)): path for path in sealed.rglob("*") if path.is_file()}
    del files[integrity.MANIFEST]
    assert manifest["files"] == {
        name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
    }
    integrity.verify(sealed, ["params", "recipe"])


def test_every_bit_counts_but_only_of_the_parts_that_are_read(sealed):
    path = sealed / "params" / "d" / "a"
    for bit in range(32):
        path.write_bytes((int.from_bytes(b"1234") ^ 1 << bit).to_bytes(4))
        with pytest.raises(integrity.Damaged, match=r"^params/d/a is not what was saved$"):
            integrity.verify(sealed, ["recipe", "params"])
        integrity.verify(sealed, ["recipe"])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "params/d/a").unlink(), "params/d/a is missing"),
        (lambda folder: (folder / "params/d/a").write_bytes(b"12"), "params/d/a is not as long as it was"),
        (lambda folder: (folder / "params/d/a").write_bytes(b"12\0\0"), "params/d/a is not what was saved"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not what was saved"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is not what was saved"),
    ],
)
def test_damage_names_the_file(sealed, harm, said):
    harm(sealed)
    with pytest.raises(integrity.Damaged, match=f"^{said}$"):
        integrity.verify(sealed, ["params"])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"format": 2}, "is of format 2, and this program reads 1"), ({"files": {}}, "is not what was")],
)
def test_a_manifest_of_another_version_or_with_other_files_is_refused(sealed, change, said):
    path = sealed / integrity.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(integrity.Damaged, match=f"^manifest.json {said}"):
        integrity.verify(sealed, ["params"])


def test_processes_share_the_files_and_agree(sealed, monkeypatch):
    def found(index):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        return integrity._damaged(sealed, ["params"])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    (sealed / "params/meta").write_bytes(b"[]")
    assert [found(0), found(1)] == ["", "params/meta is not what was saved"]  # files are shared in their order
    others = []

    def gather(own):
        return np.stack([own, np.frombuffer(others[0].encode().ljust(len(own), b"\0"), np.uint8)])

    monkeypatch.setattr(integrity, "multihost_utils", SimpleNamespace(process_allgather=gather))
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    for said in ("params/meta is not what was saved", "manifest.json is missing"):
        others[:] = [said]
        with pytest.raises(integrity.Damaged, match=f"^{said}$"):  # which this process has not seen
            integrity.verify(sealed, ["params"])
    others[:] = [""]
    integrity.verify(sealed, ["params"])


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_sector_that_cannot_be_read_is_damage_and_too_many_open_files_are_not(sealed, monkeypatch, code):
    def fail(path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(integrity, "_hash", fail)
    expected = pytest.raises(OSError, match="Too many open files")
    if code == errno.EIO:
        expected = pytest.raises(integrity.Damaged, match=r"^params/d/a cannot be read$")
    with expected:
        integrity.verify(sealed, ["params"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": np.ones((), np.float32)}, r"c is bfloat16\[\] in the checkpoint, expected float32\[\]"),
        ({"a/b": np.zeros((3, 2), np.float32)}, r"a/b is float32\[2, 3\] in the checkpoint, expected float32\[3, 2\]"),
        ({"e": np.ones(1)}, "e is expected but not in the checkpoint"),
    ],
)
def test_another_structure_names_the_parameter(change, message):
    with pytest.raises(integrity.Mismatch, match=message):
        integrity.check_structure(integrity.describe(arrays()), arrays() | change, "checkpoint 3")
    with pytest.raises(
        integrity.Mismatch, match=r"^checkpoint 3 does not fit: a/b is in the checkpoint but not expected"
    ):
        integrity.check_structure(integrity.describe(arrays()), {}, "checkpoint 3")


def test_types_need_not_count():
    described, wanted = integrity.describe(arrays()), arrays() | {"c": np.ones((), np.float32)}
    integrity.check_structure(described, wanted, "it", types=False)
    with pytest.raises(integrity.Mismatch, match="a/b is float32"):
        integrity.check_structure(described, wanted | {"a/b": np.ones(3, np.float32)}, "it", types=False)


def test_the_hash_of_json_ignores_order_only():
    assert integrity.hash_json({"a": 1, "b": [2]}) == integrity.hash_json({"b": [2], "a": 1})
    assert integrity.hash_json({"a": 1}) != integrity.hash_json({"a": 2})
