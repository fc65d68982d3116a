import pytest

from transformer.interop import files


def test_an_object_or_a_list_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"naïve": [1]}', encoding="utf-8")
    (tmp_path / "b.json").write_text("[1]")
    assert files.read(tmp_path / "a.json") == {"naïve": [1]}
    assert files.read(tmp_path / "b.json", list) == [1]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b""])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json cannot be read as JSON .*: fetch it again"):
        files.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "kind", "said"), [("[1]", dict, "object"), ("{}", list, "list"), ("3", dict, "object")]
)
def test_another_kind_of_content_is_named(tmp_path, content, kind, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=rf"a\.json holds no JSON {said}"):
        files.read(tmp_path / "a.json", kind)
