import io

import pytest

from experiments import inputs


def test_lines_of_standard_input_come_without_their_ends(monkeypatch):
    monkeypatch.setattr(inputs, "open", lambda *_, **options: io.BytesIO(b"one\ntwo"), raising=False)
    assert [line for line in inputs.arriving() if line is not None] == [b"one", b"two"]


def test_what_cannot_be_read_any_more_is_an_error_and_no_end(monkeypatch):
    class Hung(io.BytesIO):
        def __next__(self):
            if line := self.readline():
                return line
            raise OSError(5, "Input/output error")

    for opened in (lambda: Hung(b"one\n"), lambda: Hung().__next__()):
        monkeypatch.setattr(inputs, "open", lambda *_, opened=opened, **options: opened(), raising=False)
        with pytest.raises(ValueError, match=r"standard input cannot be read \(Input/output error\): name a file"):
            list(inputs.arriving())


def test_a_mark_is_no_text_and_ends_of_lines_are_none(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo\n")
    read = [inputs.spelt("a", number, line) for number, line in enumerate(inputs.lines(path, "text"), start=1)]
    assert read == ["one", "\ufefftwo"]
    path.write_bytes(b"\xef\xbb\xbf\n")
    with pytest.raises(ValueError, match=r"in\.txt is empty: give a file with one text a line"):
        inputs.lines(path, "text")
    with pytest.raises(ValueError, match=r"line 3 is not UTF-8 \(byte 1\)"):
        inputs.spelt("line 3", 3, b"a\xff")
