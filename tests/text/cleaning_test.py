import hypothesis
import pytest
from hypothesis import strategies

from transformer.text import cleaning


@pytest.mark.parametrize(
    ("string", "clean"),
    [
        ("Is it so ? Yes , it is !", "Is it so? Yes, it is!"),
        ("I do n't .", "I don't."),
        ("I do n ' t", "I don't"),
        ("I 'm , it 's , we 've , you 're", "I'm, it's, we've, you're"),
        ("a  . b", "a . b"),
        ("the n't", "then't"),
        ("", ""),
    ],
)
def test_spaces_before_marks_and_endings_go(string, clean):
    assert cleaning.clean(string) == clean


@hypothesis.given(
    strategies.text(strategies.sampled_from(" .'ntsax")), strategies.text(strategies.sampled_from(" .'ntsax"))
)
def test_what_is_settled_is_cleaned_by_itself(string, rest):
    count = cleaning.settled(string)
    parts = cleaning.clean(string[:count]) + cleaning.clean(string[count:] + rest)
    assert parts == cleaning.clean(string + rest)


def test_only_what_may_change_is_held_back():
    assert cleaning.settled("the cat") == len("the cat")
    assert cleaning.settled("the cat ") == len("the cat")
    assert cleaning.settled("do n ' t") == len("do")
    assert cleaning.settled("do n ' times") == len("do n ' times")
