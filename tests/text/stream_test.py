import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from transformer import text

CORPUS = ["Grüße an 日本 🙂 and the rest of the world"]
TOKENIZERS = {
    "bytes": text.Bytes(),
    "characters": text.Characters.train(CORPUS, end=True),
    "bpe": text.BPE.train(CORPUS, 280),
}
everyone = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@everyone
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
