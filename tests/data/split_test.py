"""Training and validation text never meet, and the border is where it was said to be."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from transformer.data.config import Data
from transformer.data.sources import Document
from transformer.data.split import divide

texts = strategies.lists(strategies.text(min_size=1, max_size=6), min_size=2, max_size=30)
shares = strategies.floats(0.01, 0.99)


def _documents(drawn):
    return [Document(f"document {index}", text) for index, text in enumerate(drawn)]


@hypothesis.settings(deadline=None)
@hypothesis.given(texts.filter(lambda drawn: len(set(drawn)) > 1), shares)
def test_no_text_is_on_both_sides_and_none_is_lost(drawn, share):
    documents = _documents(drawn)
    train, validation = divide(documents, Data(validation=share))
    assert train
    assert validation
    assert not {text for _, text in train} & {text for _, text in validation}
    assert sorted(train + validation) == sorted(documents)
    assert train == [document for document in documents if document in train]


def test_the_side_of_a_text_depends_on_neither_name_nor_order():
    documents = _documents([f"text {index}" for index in range(200)])
    renamed = [Document(f"other {name}", text) for name, text in reversed(documents)]
    sides = [{text for _, text in divide(found, Data())[1]} for found in (documents, renamed)]
    assert sides[0] == sides[1]


def test_a_text_stays_on_its_side_when_others_come():
    few, more = (_documents([f"text {index}" for index in range(count)]) for count in (500, 1000))
    validation = {text for _, text in divide(few, Data())[1]}
    assert validation == {text for _, text in divide(more, Data())[1]} & {text for _, text in few}


def test_the_share_is_about_what_was_asked_for():
    documents = _documents([f"text {index}" for index in range(2000)])
    # The standard deviation is sqrt(0.2 * 0.8 / 2000) = 0.009: four of them.
    assert len(divide(documents, Data(validation=0.2))[1]) / 2000 == pytest.approx(0.2, abs=0.036)


@hypothesis.settings(deadline=None)
@hypothesis.given(texts, shares)
def test_a_tail_is_the_exact_end_of_all_text(drawn, share):
    whole = "".join(drawn)
    border = int(len(whole) * (1 - share))
    hypothesis.assume(0 < border < len(whole))
    train, validation = divide(_documents(drawn), Data(split="tail", validation=share))
    assert "".join(text for _, text in train) == whole[:border]
    assert "".join(text for _, text in validation) == whole[border:]


def test_a_tail_of_a_tenth_trains_on_nine_tenths_exactly():
    text = "ab\n" * 371_798  # as long as the works of Shakespeare that small models are compared on
    train, validation = divide([Document("input.txt", text)], Data(split="tail"))
    assert (len(train[0].text), len(validation[0].text)) == (int(0.9 * len(text)), len(text) - int(0.9 * len(text)))


def test_refuses_one_document():
    with pytest.raises(ValueError, match=r"two different documents, but 'stdlib' holds 1: use data.split='tail'"):
        divide(_documents(["same", "same"]), Data())


def test_refuses_an_empty_side():
    with pytest.raises(ValueError, match="leaves no training text"):
        divide(_documents(["abc"]), Data(split="tail", validation=0.9))
