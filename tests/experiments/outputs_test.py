"""Files appear whole, where they were meant to, or nothing changes."""

import os
import stat
import sys

import pytest

from experiments import outputs


def fill(path, content="new"):
    with outputs.replacing(str(path)) as temporary:
        temporary.write_text(content)


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / ("x" * 255)  # as long as a name may be
    with outputs.replacing(str(path)) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    path.chmod(0o600)
    with pytest.raises(KeyError), outputs.replacing(str(path)) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "new"
    fill(path, "newer")
    assert path.read_text() == "newer" and list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_leads_to_the_new_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/target")
    for content in ("new", "newer"):
        fill(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "target").read_text() == content


def test_what_cannot_be_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "round").symlink_to("round")
    refused = {
        tmp_path / "pipe": "it is there, and no file",
        tmp_path / "link": "it is there, and no file",
        tmp_path: "it is there, and no file",
        "/dev/null": "it is there, and no file",
        "/proc/self/comm": "it is there, and no file",
        "": "it is there, and no file",
        tmp_path / "round": "Symlink loop|Too many levels",
        tmp_path / "absent" / "x": "No such file or directory",
        "/proc/x": "it is there, and no file",
        tmp_path / ("x" * 256): "File name too long",
        "a\0b": "null (byte|character)",
    }
    for path, reason in refused.items():
        with (
            pytest.raises(ValueError, match=f"(?s)^--output={path} cannot be written .*({reason}).*: name a file"),
            outputs.replacing(str(path)),
        ):
            raise AssertionError("work began")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "round"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_closed_standard_output_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ValueError, match="standard output is closed"):
        outputs.standard()
