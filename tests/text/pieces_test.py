import pytest

from transformer.text.pieces import BytePieces, TextPieces


def spaced(ids):
    """A decoder that puts spaces between letters, as WordPiece does between words."""
    return " ".join("abcdefghij"[index] for index in ids)


def test_text_follows_what_was_shown():
    pieces = TextPieces(spaced, open=())
    assert [pieces.feed([0, 1]), pieces.feed([]), pieces.feed([2]), pieces.flush()] == ["a b", "", " c", ""]
    assert pieces.feed([3]) == "d"  # anew


def test_open_ids_wait_for_one_that_is_not():
    pieces = TextPieces(spaced, open={1, 2})
    assert [pieces.feed([0]), pieces.feed([1, 2]), pieces.feed([3]), pieces.feed([1])] == ["a", "", " b c d", ""]
    assert pieces.flush() == " b"


def test_ids_without_a_text_do_not_hide_the_beginning():
    pieces = TextPieces(lambda ids: "".join(" x" if index else " " for index in ids).removeprefix(" "), open=())
    assert [pieces.feed([index]) for index in (0, 0, 1, 0, 1)] == ["", " ", " x", " ", " x"]


@pytest.mark.parametrize("ending", ["\ufffd", ""])
def test_half_a_character_waits(ending):
    texts = {(): "", (0,): f"a{ending}", (0, 1): "aé"}
    pieces = TextPieces(lambda ids: texts[tuple(ids)], open=())
    assert pieces.feed([0]) == ("" if ending else "a")
    assert pieces.flush() == ("a\ufffd" if ending else "")


def test_cleaning_reaches_over_pieces():
    pieces = TextPieces(lambda ids: "".join((" do", " n't", " .", " x")[index] for index in ids), (), clean=True)
    assert [pieces.feed([index]) for index in (0, 1, 2, 3)] == [" do", "", "", "n't. x"]
    assert pieces.feed([2]) + pieces.flush() == "."


def test_bytes_become_characters_when_all_are_there():
    pieces = BytePieces((b"\xc3", b"\xa9a"), "replace")
    assert [pieces.feed([0]), pieces.feed([1]), pieces.feed([0]), pieces.flush()] == ["", "éa", "", "\ufffd"]
