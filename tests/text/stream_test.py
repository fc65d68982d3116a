import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from tests.text import cases
from transformer import text
from transformer.text.special import Special

CORPUS = ["Grüße an 日本 🙂 and the rest of the world"]
TOKENIZERS = {
    "bytes": text.Bytes(),
    "characters": text.Characters.train(CORPUS, end=True),
    "bpe": text.BPE.train(CORPUS, 280),
}
WORDS = Special(sep="[SEP]", cls="[CLS]", unk="[UNK]")
PUBLISHED = {
    "wordpiece": text.Published(cases.wordpiece(), special=WORDS),
    "wordpiece, cleaned": text.Published(cases.wordpiece(), special=WORDS, clean=True),
    "unigram": text.Published(cases.unigram(), special=Special(eos="</s>")),
    "unigram, cleaned": text.Published(cases.unigram(), special=Special(eos="</s>"), clean=True),
    "fallback": text.Published(cases.fallback(), special=Special(bos="<s>", eos="</s>")),
    "byte level": text.Published(cases.byte_level(["<s>"]), special=Special(eos="<s>")),
}
everyone = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS.values(), *PUBLISHED.values()], ids=[*TOKENIZERS, *PUBLISHED])
@hypothesis.given(strategies.data(), strategies.booleans())
def test_pieces_join_to_decode_of_everything(tokenizer, data, keep_end):
    ids = strategies.integers(0, tokenizer.size - 1)
    blocks = data.draw(strategies.lists(strategies.lists(ids, max_size=6)))
    decoder = text.StreamDecoder(tokenizer, keep_end=keep_end)
    pieces = [decoder.feed(block) for block in blocks] + [decoder.flush()]
    everything = [index for block in blocks for index in block]
    assert "".join(pieces) == tokenizer.decode(everything, keep_end=keep_end)


@everyone
@hypothesis.given(strategies.text(strategies.characters(exclude_categories=["Cs"]) | strategies.sampled_from("é日🙂")))
def test_one_by_one_no_character_is_split(tokenizer, string):
    decoder = text.StreamDecoder(tokenizer)
    shown = ""
    for index in tokenizer.encode(string):
        shown += decoder.feed(index)
        assert string.startswith(shown)
    assert shown == string
    assert decoder.flush() == ""


@pytest.mark.parametrize("tokenizer", PUBLISHED.values(), ids=PUBLISHED)
@hypothesis.given(strategies.lists(strategies.sampled_from(["the", " cat", " é", "日", "🙂", " .", " 's", "\n", "  "])))
def test_what_was_shown_stays(tokenizer, parts):
    ids = tokenizer.encode("".join(parts), special=True).tolist()
    decoder = text.StreamDecoder(tokenizer)
    whole, shown = tokenizer.decode(ids), ""
    for index in ids:
        shown += decoder.feed(index)
        assert whole.startswith(shown)
        assert "\ufffd" not in shown
    assert shown + decoder.flush() == whole


def test_bytes_of_one_character_are_shown_together():
    tokenizer = PUBLISHED["fallback"]
    decoder = text.StreamDecoder(tokenizer)
    ids = tokenizer.encode("a日t", special=True)
    assert [tokenizer.spellings[index] for index in ids[-4:]] == [b"<0xE6>", b"<0x97>", b"<0xA5>", b"t"]
    assert [decoder.feed(index) for index in ids][-4:] == ["", "", "", "日t"]
    # One byte more than a character has makes all of them unreadable, which a stream cannot know before.
    broken = [*ids[-4:-1].tolist(), ids[-2]]
    assert [decoder.feed(index) for index in broken] == [""] * 4
    assert decoder.flush() == "\ufffd" * 4


def test_a_word_is_held_back_while_it_may_be_joined():
    tokenizer = PUBLISHED["wordpiece, cleaned"]
    decoder = text.StreamDecoder(tokenizer)
    pieces = [decoder.feed(index) for index in tokenizer.encode("it ' s the cat")]
    assert pieces[0].startswith("i") and "".join(pieces) + decoder.flush() == "it's the cat"
    assert not any(piece.endswith(" ") for piece in pieces)


def test_a_long_stream_costs_no_more_for_an_id_than_a_short_one():
    calls = []

    class Counting(text.Published):
        def _decode(self, ids):
            calls.append(len(ids))
            return super()._decode(ids)

    tokenizer = Counting(cases.wordpiece(), special=WORDS)
    decoder = text.StreamDecoder(tokenizer)
    for index in tokenizer.encode("the cat sat " * 200):
        decoder.feed(index)
    assert max(calls) < 10


def test_a_character_is_held_back_until_it_is_whole():
    decoder = text.StreamDecoder(text.Bytes())
    assert [decoder.feed(byte) for byte in "a🙂".encode()] == ["a", "", "", "", "🙂"]
    assert [decoder.feed(byte) for byte in b"\xe2\x82"] == ["", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.feed([0x82, 0x61]) == "\ufffda"


def test_lone_surrogates_pass_byte_by_byte():
    decoder = text.StreamDecoder(text.Bytes())
    assert [decoder.feed(byte) for byte in (0xED, 0xA0, 0x80)] == ["", "", "\ud800"]


def test_the_end_is_shown_when_asked():
    assert text.StreamDecoder(text.Bytes()).feed(256) == ""
    assert text.StreamDecoder(text.Bytes(), keep_end=True).feed(np.int32(256)) == "<|endoftext|>"


def test_a_wrong_id_leaves_the_stream_as_it_was():
    decoder = text.StreamDecoder(text.Bytes())
    assert decoder.feed([0xC3]) == ""
    with pytest.raises(ValueError, match=r"ids\[1\]=257"):
        decoder.feed([0x61, 257])
    assert decoder.feed([0xA9]) == "é"


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS.values(), *PUBLISHED.values()], ids=[*TOKENIZERS, *PUBLISHED])
@hypothesis.given(strategies.data())
def test_pieces_after_a_prompt_are_the_rest_of_the_whole(tokenizer, data):
    words = strategies.lists(strategies.sampled_from(["and", "the", "world", "rest"]), min_size=1, max_size=4)
    prompt, rest = (tokenizer.encode(" ".join(data.draw(words))).tolist() for _ in range(2))
    stream = text.StreamDecoder(tokenizer, after=prompt)
    written = "".join(stream.feed(index) for index in rest) + stream.flush()
    if not getattr(tokenizer, "clean", False):  # which may still change the prompt's end
        assert tokenizer.decode(prompt) + written == tokenizer.decode(prompt + rest)


def test_a_space_comes_before_a_word_that_follows_a_prompt():
    tokenizer = PUBLISHED["fallback"]
    prompt, word = (tokenizer.encode(each).tolist() for each in ("the", "world"))
    assert tokenizer.decode(word) == "world"
    stream = text.StreamDecoder(tokenizer, after=prompt)
    assert "".join(stream.feed(word)) + stream.flush() == " world"
