import hypothesis
import pytest
from hypothesis import strategies

from transformer.text import spelling


@hypothesis.given(strategies.text(strategies.characters(categories=None)))
def test_every_string_survives(string):
    assert spelling.utf8(string).decode("utf-8", spelling.SURROGATES) == string


@hypothesis.given(strategies.binary())
def test_any_bytes_can_be_read(content):
    read = content.decode("utf-8", spelling.SURROGATES)
    # Written without its surrogates, it is what Python's own replacement gives.
    assert read.encode("utf-8", "surrogatepass").decode("utf-8", "replace") == content.decode("utf-8", "replace")


def test_a_surrogate_is_one_character_and_half_of_one_is_broken():
    assert b"\xed\xa0\x80".decode("utf-8", spelling.SURROGATES) == "\ud800"
    assert b"\xed\xa0a".decode("utf-8", spelling.SURROGATES) == "\ufffd\ufffda"


def test_what_is_no_unicode_is_named():
    assert spelling.check_unicode("a\U0001f642") == "a\U0001f642"
    with pytest.raises(ValueError, match=r"text\[1\] is '\\ud83d', a lone surrogate"):
        spelling.check_unicode("a\ud83d")
