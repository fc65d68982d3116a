import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from transformer import text


def test_plain_ids_are_indices_of_sorted_characters():
    corpus = "to be, or not to be\n"
    tokenizer = text.Characters.train([corpus], fallback=False)
    table = sorted(set(corpus))
    np.testing.assert_array_equal(tokenizer.encode(corpus), [table.index(character) for character in corpus])
    assert (tokenizer.size, tokenizer.end) == (len(table), None)


def test_shakespeare_has_65_characters(shared_data):
    path = shared_data / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    corpus = path.read_text(encoding="utf-8")
    tokenizer = text.Characters.train([corpus], fallback=False)
    index = {character: i for i, character in enumerate(sorted(set(corpus)))}
    assert tokenizer.size == 65
    np.testing.assert_array_equal(tokenizer.encode(corpus), [index[character] for character in corpus])


@hypothesis.given(strategies.text(strategies.characters(categories=None) | strategies.sampled_from("abc€")))
def test_unknown_characters_are_spelt_in_bytes(string):
    tokenizer = text.Characters.train(["ab", "b€"], end=True)
    known = "ab€"
    expected = []
    for character in string:
        if character in known:
            expected.append(known.index(character))
        else:
            expected.extend(3 + byte for byte in character.encode("utf-8", "surrogatepass"))
    np.testing.assert_array_equal(tokenizer.encode(string), expected)
    assert tokenizer.decode(expected) == string
    assert (tokenizer.size, tokenizer.end) == (3 + 256 + 1, 259)


@pytest.mark.parametrize(
    ("string", "place"),
    [
        ("ab€a", r"text\[2\] is '€' \(U\+20AC\)"),
        ("a\ud800", r"text\[1\] is '\\ud800' \(U\+D800\)"),
        ("A", r"text\[0\]"),
    ],
)
def test_without_fallback_an_unknown_character_is_named(string, place):
    tokenizer = text.Characters.train(["ab"], fallback=False)
    with pytest.raises(ValueError, match=place + r".* 2 characters .* or with fallback=True"):
        tokenizer.encode(string)


def test_an_iterator_will_do():
    assert text.Characters.train(iter(["ba", "", "c"]), fallback=False).characters == ("a", "b", "c")


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_to_number(texts):
    with pytest.raises(ValueError, match="at least one character"):
        text.Characters.train(texts)


def test_texts_must_be_strings():
    with pytest.raises(ValueError, match="not one string"):
        text.Characters.train("abc")
    with pytest.raises(ValueError, match=r"texts\[1\]"):
        text.Characters.train(["a", b"b"])


def test_adjacent_surrogates_survive_the_file(tmp_path):
    tokenizer = text.Characters.train(["\udbff\udc00a"], fallback=False)
    tokenizer.save(tmp_path)
    assert text.load(tmp_path).characters == ("a", "\udbff", "\udc00")


@pytest.mark.parametrize(
    "change",
    [
        {"characters": None},
        {"characters": []},
        {"characters": ["ab"]},
        {"characters": ["a", "c"]},
        {"fallback": 1},
        {"end": None},
        {"fingerprint": "0"},
    ],
)
def test_a_changed_file_is_named(tmp_path, change):
    text.Characters.train(["ab"]).save(tmp_path)
    path = tmp_path / "characters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"characters\.json cannot be read"):
        text.load(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    text.Characters.train(["ab"]).save(tmp_path)
    path = tmp_path / "characters.json"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"characters\.json cannot be read") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)
