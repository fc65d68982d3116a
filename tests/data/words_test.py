"""Words of tokens, against words of the text that was encoded."""

from __future__ import annotations

import re
import string

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies
from tokenizers import models

from tests.text import cases
from transformer import text
from transformer.data import words
from transformer.text.special import Special

BPE = text.BPE.train(cases.CORPUS, 300)
BYTES = {
    "bytes": text.Bytes(),
    "characters": text.Characters.train(cases.CORPUS, end=True),
    "bpe": BPE,
}
WORDPIECE = text.Published(cases.wordpiece(), special=Special(sep="[SEP]", cls="[CLS]", pad="[PAD]", mask="[MASK]"))
NAMED = {
    "wordpiece": WORDPIECE,
    "unigram": text.Published(cases.unigram(), special=Special(eos="</s>", pad="<pad>", unk="<unk>")),
    "fallback": text.Published(cases.fallback(), special=Special(bos="<s>", eos="</s>", unk="<unk>")),
}


def spelt(tokenizer, ids):
    """What the tokens of each word say together."""
    numbers = words.Words(tokenizer).number(np.asarray(ids))
    assert numbers.dtype == np.int32
    parts = [b""] * (int(numbers[-1]) + 1)
    for token, number in zip(ids, numbers, strict=True):
        parts[number] += tokenizer.spellings[token]
    return parts


def by_name(tokenizer, names):
    return [tokenizer.spellings.index(name.encode()) for name in names]


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_letters_stand_together_and_signs_alone(kind):
    ids = BYTES[kind].encode("don't  say Grüße7,x")
    expected = ["don", "'", "t", " ", " ", "say", " ", "Grüße7", ",", "x"]
    assert spelt(BYTES[kind], ids) == [word.encode() for word in expected]


def test_a_space_begins_a_word_of_byte_pairs():
    ids = BPE.encode("the lowest, newer cat's Köln")
    assert max(len(BPE.spellings[token]) for token in ids) > 2  # there are merges
    expected = ["the", " lowest", ",", " newer", " cat", "'s", " ", "Köln"]
    assert spelt(BPE, ids) == [word.encode() for word in expected]


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.text(string.ascii_letters + string.digits + " ,.'\nüßé日🙂", min_size=1))
@pytest.mark.parametrize("kind", BYTES)
def test_no_word_of_the_text_is_split(kind, sample):
    parts = spelt(BYTES[kind], BYTES[kind].encode(sample))
    assert b"".join(parts) == sample.encode()
    words_of = re.compile(rb"[A-Za-z0-9\x80-\xff]+").findall
    found = [words_of(part) for part in parts]
    assert all(len(one) <= 1 for one in found)
    assert [word for one in found for word in one] == words_of(sample.encode())


def test_pieces_of_words():
    ids = by_name(WORDPIECE, ["[CLS]", "the", "c", "##at", "##s", ",", "[MASK]", "##s", "l", "##o", "[SEP]"])
    assert words.Words(WORDPIECE).number(np.array(ids)).tolist() == [0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7]


def test_bytes_and_spaces_in_names():
    tokenizer = NAMED["fallback"]
    names = ["<s>", "▁", "<0x41>", "t", "▁lo", "<0xC3>", "<0xA9>", ",", "a", "<0x2E>", "d", "</s>", "d"]
    numbers = words.Words(tokenizer).number(np.array(by_name(tokenizer, names)))
    assert numbers.tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_words_of_published_tokenizers(kind):
    tokenizer = NAMED[kind]
    sentence = "low lowest, the cat's hat was"
    ids = tokenizer.encode(sentence)
    assert len(ids) > 9  # some words take several tokens
    parts = [part.decode().replace("##", "").strip("▁") for part in spelt(tokenizer, ids)]
    assert parts == ["low", "lowest", ",", "the", "cat", "'", "s", "hat", "was"]


def test_words_of_sentencepiece(tmp_path):
    tokenizer = text.load(cases.t5(tmp_path, tokenizer_class="T5Tokenizer"))
    ids = tokenizer.encode("low lowest, the cat <extra_id_0> hat", special=True)
    parts = [part.decode().strip("▁") for part in spelt(tokenizer, ids)]
    assert [part for part in parts if part] == ["low", "lowest", ",", "the", "cat", "<extra_id_0>", "hat", "</s>"]
    sentinels = [index for index, name in enumerate(tokenizer.spellings) if name.startswith(b"<extra_id_")]
    assert set(words.special_ids(tokenizer)) == {0, 1, 2, *sentinels}


def test_leading_axes_are_rows():
    rows = BPE.encode("the cat sat on the mat, the hat")[:6].reshape(2, 3)
    counter = words.Words(BPE)
    np.testing.assert_array_equal(counter.number(rows), np.stack([counter.number(row) for row in rows]))
    assert counter.number(rows)[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("kind", BYTES)
def test_the_end_is_a_word_and_no_text(kind):
    tokenizer = BYTES[kind]
    assert words.special_ids(tokenizer).tolist() == [tokenizer.end]
    row = np.concatenate([tokenizer.encode("the"), [tokenizer.end, tokenizer.end], tokenizer.encode("the")])
    length = (len(row) - 2) // 2
    numbers = words.Words(tokenizer).number(row)
    assert numbers.tolist() == [0] * length + [1, 2] + [3] * length


def test_special_ids_of_published_tokenizers():
    for tokenizer, names in ((WORDPIECE, cases.BERT), (NAMED["fallback"], ["<unk>", "<s>", "</s>"])):
        assert words.special_ids(tokenizer).tolist() == sorted(by_name(tokenizer, names))
    assert words.special_ids(text.Characters("ab")).tolist() == []


def test_an_id_without_a_name_is_no_text():
    table = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 4}, unk_token="[UNK]"))
    tokenizer = text.Published(table, special=Special(unk="[UNK]"))
    assert words.special_ids(tokenizer).tolist() == [0, 2, 3]


@pytest.mark.parametrize("names", [["a", "b"], ["Ġthe", "Ġ", "##"]])
def test_refuses_a_vocabulary_that_does_not_mark_words(names):
    table = tokenizers.Tokenizer(models.WordLevel({name: index for index, name in enumerate(["?", *names])}, "?"))
    with pytest.raises(ValueError, match=r"kind 'published' does not mark words.*single tokens"):
        words.Words(text.Published(table, special=Special(unk="?")))
