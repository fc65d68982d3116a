from __future__ import annotations

import pytest

from transformer.inspection.explorer import CHARACTERS, Reading, Session
from transformer.inspection.explorer.intervene import Change, intervene


@pytest.fixture(scope="module")
def sessions(described):
    """A session with a decoder and one with an encoder-decoder, which read one token a letter, and what they read."""
    asked = []

    def read(text, source):
        asked.append((text, source))
        if "?" in text:
            raise ValueError("text holds a ?\nwhich nobody can spell")
        ids = lambda text: tuple(ord(letter) % 11 for letter in text)  # noqa: E731
        return Reading(text, ids(text), source, None if source is None else ids(source))

    one, both = (Session(described(kind).subject, read) for kind in ("rotary", "both norms"))
    return one, both, asked


def test_texts_are_described_and_remembered(sessions):
    one, both, asked = sessions
    data = first = one.texts({"texts": ["abcde", "edcba"]})
    assert [text["text"] for text in data["texts"]] == ["abcde", "edcba"] and data["title"] == "abcde"
    assert [token["id"] for token in data["texts"][1]["sides"]["decoder"]["tokens"]] == [ord(c) % 11 for c in "edcba"]
    data = both.texts({"texts": ["abcde"], "sources": ["fedcbag"]})
    assert data["texts"][0]["source"] == "fedcbag" and len(data["texts"][0]["sides"]["encoder"]["tokens"]) == 7
    asked.clear()
    assert one.texts({"texts": ["abcde", "edcba"]}) == first
    assert one._look.cache_info()[:2] == (2, 2)  # hits, misses
    one.detail({"text": "abcde", "attention": "decoder", "layer": 1})
    assert asked == []  # it was read before
    for number in range(20):
        one.reading(f"text {number}")
    assert len(asked) == 20
    one.reading("abcde")
    assert asked[-1] == ("abcde", None)  # the oldest are forgotten


def test_a_detail_is_that_of_the_page(sessions):
    one, both, _ = sessions
    page = one.texts({"texts": ["abcde"]})["texts"][0]
    asked = one.detail({"text": "abcde", "attention": "decoder", "layer": 1})
    names = asked.pop("names")
    there = page["attentions"][0]["detail"]["1"]
    assert {name: part and part.get("s") for name, part in asked.items()} == {
        name: part and part.get("s") for name, part in there.items()
    }
    assert asked["query"] == there["query"] and names.items() <= page["next"]["names"].items()
    cross = both.detail({"text": "abcde", "source": "fedcbag", "attention": "decoder/cross", "layer": 1})
    assert cross["key"]["s"] == [7, 2, 6] and cross["query"]["s"] == [5, 4, 6]


def test_interventions_are_read_from_json(sessions):
    one, both, _ = sessions
    patches = [
        {"attention": "decoder", "layer": 0, "head": None, "position": 2, "action": "scale", "value": 2},
        {"attention": "decoder", "layer": 1, "head": 1, "position": None, "action": "patch", "other": "edcba"},
        {"attention": "decoder", "layer": 1, "head": 2, "action": "zero", "value": None},
    ]
    changes = [
        Change("decoder", 0, "scale", position=2, value=2.0),
        Change("decoder", 1, "patch", head=1, other=one.reading("edcba")),
        Change("decoder", 1, "zero", head=2),
    ]
    found = one.intervene({"text": "abcde", "patches": patches, "position": 3})
    assert found == intervene(one._subject, one.reading("abcde"), changes, 3)
    last = one.intervene({"text": "abcde", "patches": []})
    assert last["before"] == last["after"] == intervene(one._subject, one.reading("abcde"), [], 4)["before"]
    other = {"attention": "encoder", "layer": 0, "action": "patch", "other": "abcde", "other_source": "gfedcba"}
    assert both.intervene({"text": "abcde", "source": "fedcbag", "patches": [other]})["kl"] > 0


def test_requests_that_make_no_sense_are_refused(sessions):
    one, both, _ = sessions
    zero = {"attention": "decoder", "layer": 0, "action": "zero"}
    for ask, request, said in (
        (one.texts, {}, "texts must be of kind list, not NoneType"),
        (one.texts, {"texts": "abc"}, "texts must be of kind list, not str"),
        (one.texts, {"texts": []}, "texts has 0 entries: give 1 to 3"),
        (one.texts, {"texts": ["a"] * 4}, "texts has 4 entries"),
        (one.texts, {"texts": [1]}, "text must be a string, not int"),
        (one.texts, {"texts": ["a" * (CHARACTERS + 1)]}, "text has 4001 characters: give at most 4000"),
        (one.texts, {"texts": ["a" * 600]}, "has 600 tokens; the explorer shows 1 to 512"),
        (one.texts, {"texts": ["a?"]}, "nobody can spell"),
        (one.texts, {"texts": ["a"], "sources": ["b", "c"]}, "sources has 2 entries for 1 texts"),
        (one.texts, {"texts": ["a"], "sources": ["b"]}, "an encoder-decoder reads one beside each text"),
        (both.texts, {"texts": ["a"]}, "an encoder-decoder reads one beside each text"),
        (one.detail, {"text": "a", "attention": "encoder", "layer": 0}, "the model has no such layer"),
        (one.detail, {"text": "a", "attention": "decoder", "layer": 2}, "the model has no such layer"),
        (one.detail, {"text": "a", "attention": "decoder", "layer": True}, "layer must be of kind int, not bool"),
        (one.detail, {"text": "a", "attention": "decoder", "layer": 1.0}, "layer must be of kind int, not float"),
        (one.detail, {"text": None, "attention": "decoder", "layer": 1}, "text must be of kind str"),
        (one.intervene, {"text": "a", "patches": [zero] * 65}, "patches has 65 entries: give at most 64"),
        (one.intervene, {"text": "a", "patches": ["zero"]}, "patches must be objects, not str"),
        (one.intervene, {"text": "a", "patches": [{**zero, "action": "scale"}]}, "value must be of kind int or float"),
        (
            one.intervene,
            {"text": "a", "patches": [{**zero, "action": "scale", "value": 10**400}]},
            "value must be a number of ordinary size",
        ),
        (one.intervene, {"text": "a", "patches": [{**zero, "action": "patch"}]}, "other must be of kind str"),
        (one.intervene, {"text": "a", "patches": [{**zero, "head": "1"}]}, "head must be of kind int, not str"),
        (one.intervene, {"text": "a", "patches": [zero], "position": 1}, "position=1 is out of range"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(request)
