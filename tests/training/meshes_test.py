import jax
import numpy as np
import pytest

from transformer.training import meshes


def sizes(**named):
    return {axis: named.get(axis, 1) for axis in ("data", "fsdp", "expert", "sequence", "tensor")}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"data": 8}),
        ("data=2,fsdp=4", {"data": 2, "fsdp": 4}),
        ("fsdp=-1, tensor=2", {"fsdp": 4, "tensor": 2}),
        ("data=8,sequence=-1", {"data": 8, "sequence": 1}),
        ("expert=8", {"expert": 8}),
    ],
)
def test_sizes_from_words(words, expected):
    assert meshes.parse(words, 8) == sizes(**expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rows=2", "'rows=2' cannot work: write name=size"),
        ("data", "'data' cannot work"),
        ("data=", "'data=' cannot work"),
        ("data=0", "'data=0' cannot work"),
        ("data=-2", "'data=-2' cannot work"),
        ("data=--1", "'data=--1' cannot work"),
        ("data=²", "'data=²' cannot work"),
        ("data=2,data=4", "'data=4' cannot work"),
        ("data=-1,fsdp=-1", "only one axis can take the rest, not data and fsdp"),
        ("data=3", "is of 3 devices, but there are 8: choose sizes that multiply to 8"),
        ("data=3,fsdp=-1", "is of 3 devices or a multiple, but there are 8"),
        ("data=16", "is of 16 devices, but there are 8"),
    ],
)
def test_words_that_cannot_work(words, message):
    with pytest.raises(ValueError, match=message):
        meshes.parse(words, 8)


def test_a_mesh_of_one_device():
    mesh = meshes.build()
    assert dict(mesh.shape) == sizes() and meshes.rows(mesh.shape) == 1 and meshes.share(mesh) == (0, 1, (0,))


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


class Mesh:
    """As much of a mesh as `share` reads: devices in rows, columns and so on, each of a process."""

    def __init__(self, processes, **named):
        self.shape = sizes(**named)
        self.devices = np.array([Device(process) for process in processes]).reshape(tuple(self.shape.values()))


@pytest.mark.parametrize(
    ("mesh", "shares"),
    [
        (Mesh([0, 0, 1, 1], data=4), [(0, 2, (0, 1)), (1, 2, (2, 3))]),
        (Mesh([0, 0, 1, 1], data=2, tensor=2), [(0, 2, (0,)), (1, 2, (1,))]),
        (Mesh([0, 0, 1, 1], tensor=4), [(0, 1, (0,)), (0, 1, (0,))]),  # both need every row
        (Mesh([0, 1, 2, 3], fsdp=2, sequence=2), [(0, 2, (0,)), (0, 2, (0,)), (1, 2, (1,)), (1, 2, (1,))]),
        (Mesh([0, 1, 0, 1], data=4), [(0, 2, (0, 2)), (1, 2, (1, 3))]),  # apart, as a torus may have it
    ],
)
def test_processes_need_the_rows_of_their_devices(mesh, shares, monkeypatch):
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert meshes.share(mesh) == share


def test_rows_that_some_processes_share_and_others_do_not_are_refused():
    with pytest.raises(ValueError, match="mesh data=3, tensor=2: processes share some rows and not others"):
        meshes.share(Mesh([0, 0, 0, 1, 1, 1], data=3, tensor=2))
