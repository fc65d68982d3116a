import numpy as np
import pytest

from transformer import text


def test_ids_are_utf8():
    np.testing.assert_array_equal(text.Bytes().encode("aé€🙂\x00"), list("aé€🙂\x00".encode()))
    assert (text.Bytes().size, text.Bytes().end, text.Bytes().kind) == (257, 256, "bytes")


def test_broken_utf8_becomes_replacement_characters():
    assert text.Bytes().decode([0x61, 0xFF, 0xE2, 0x82, 0x61, 0xC3]) == "a\ufffd\ufffda\ufffd"


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "by', '{"kind": "characters"}', "\xff"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bytes.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"bytes\.json cannot be read") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)
