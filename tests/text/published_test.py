import json
import pickle

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies
from tokenizers import models

from tests.text import cases
from transformer import text
from transformer.text.special import Special

TOKENIZERS = {
    "wordpiece": text.Published(cases.wordpiece(), special=Special(sep="[SEP]", cls="[CLS]", pad="[PAD]")),
    "unigram": text.Published(cases.unigram(), special=Special(eos="</s>", pad="<pad>", unk="<unk>"), clean=True),
    "fallback": text.Published(cases.fallback(), special=Special(bos="<s>", eos="</s>", unk="<unk>")),
}
everyone = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@pytest.mark.parametrize(
    ("name", "begin", "end", "pad"),
    [("wordpiece", "[CLS]", "[SEP]", "[PAD]"), ("unigram", None, "</s>", "<pad>"), ("fallback", "<s>", "</s>", None)],
)
def test_special_ids(name, begin, end, pad):
    tokenizer = TOKENIZERS[name]
    ids = [None if one is None else tokenizer.spellings.index(one.encode()) for one in (begin, end, pad)]
    assert [tokenizer.begin, tokenizer.end, tokenizer.pad] == ids
    assert tokenizer.opening == (ids[1] if begin is None else ids[0])
    assert (tokenizer.kind, tokenizer.size) == ("published", len(tokenizer.spellings))


@pytest.mark.parametrize(("name", "before", "after"), [("wordpiece", 1, 1), ("unigram", 0, 1), ("fallback", 1, 0)])
@pytest.mark.parametrize("string", cases.STRINGS)
def test_what_is_put_around(name, before, after, string):
    tokenizer = TOKENIZERS[name]
    plain = tokenizer.encode(string)
    ids = [tokenizer.begin] * before + plain.tolist() + [tokenizer.end] * after
    assert tokenizer.encode(string, special=True).tolist() == ids
    assert plain.dtype == tokenizer.encode(string, special=True).dtype == np.int32
    assert tokenizer.decode(ids) == tokenizer.decode(plain)


def spelt(name, names):
    """What tokens say together, by the rules of each scheme."""
    if name == "wordpiece":
        first, *others = names or [""]
        return first + "".join(one.removeprefix("##") if one.startswith("##") else f" {one}" for one in others)
    if name == "unigram":
        first, *others = names or [""]
        return first.replace("▁", "") + "".join(others).replace("▁", " ")
    out, run = "", b""
    for one in [*names, ""]:
        if one.startswith("<0x"):
            run += bytes([int(one[3:5], 16)])
            continue
        try:
            out += run.decode()
        except UnicodeDecodeError:
            out += "\ufffd" * len(run)
        out, run = out + one.replace("▁", " "), b""
    return out.removeprefix(" ")


@everyone
@hypothesis.given(strategies.data())
def test_any_ids_decode_by_the_rules_of_the_scheme(tokenizer, data):
    (name,) = (name for name, other in TOKENIZERS.items() if other is tokenizer)
    special = [
        index
        for index, one in enumerate(tokenizer.spellings)
        if one.startswith((b"[", b"</s", b"<s", b"<unk", b"<pad"))
    ]
    marks = [index for index, one in enumerate(tokenizer.spellings) if set(one) & set(b".,'!?") and one[:1] != b"<"]
    plain = sorted(set(range(tokenizer.size)) - set(special) - set(marks))
    ids = data.draw(strategies.lists(strategies.sampled_from(plain + special)))
    shown = [tokenizer.spellings[index].decode() for index in ids if index not in special]
    assert tokenizer.decode(ids) == spelt(name, shown)
    assert tokenizer.spell(ids) == tokenizer.decode(ids).encode()


@hypothesis.given(strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_bytes_for_unknown_characters_lose_nothing(string):
    tokenizer = TOKENIZERS["fallback"]
    assert tokenizer.decode(tokenizer.encode(string)) == string


@everyone
def test_a_batch_is_encode_of_each(tokenizer):
    strings = cases.STRINGS * 3
    batch = tokenizer.encode_batch(strings)
    for ids, string in zip(batch, strings, strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(string))


@everyone
def test_strings_and_ids_are_checked(tokenizer):
    with pytest.raises(ValueError, match="text must be a string, not bytes"):
        tokenizer.encode(b"abc", special=True)
    for special in (False, True):
        with pytest.raises(ValueError, match=r"text\[1\] is '\\ud800', a lone surrogate"):
            tokenizer.encode("a\ud800", special=special)
    for call in (tokenizer.decode, tokenizer.spell):
        with pytest.raises(ValueError, match=rf"ids\[1\]={tokenizer.size} is not one of this tokenizer's"):
            call([0, tokenizer.size])


@everyone
def test_the_end_is_shown_when_asked(tokenizer):
    ids = tokenizer.encode("the cat", special=True)
    shown = tokenizer.decode([*ids, tokenizer.end], keep_end=True)
    assert tokenizer.spellings[tokenizer.end].decode() in shown
    assert tokenizer.decode([*ids, tokenizer.end]) == "the cat"


@everyone
def test_saving_and_pickling_change_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for other in (text.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(other, text.Published)
        assert (other.fingerprint, other.spellings, other.clean) == (
            tokenizer.fingerprint,
            tokenizer.spellings,
            tokenizer.clean,
        )
        assert (other.begin, other.end, other.pad) == (tokenizer.begin, tokenizer.end, tokenizer.pad)
        for string in (*cases.STRINGS, "</s> [SEP] the"):
            ids = tokenizer.encode(string, special=True)
            np.testing.assert_array_equal(other.encode(string, special=True), ids)
            np.testing.assert_array_equal(other.encode(string), tokenizer.encode(string))
            assert other.decode(ids) == tokenizer.decode(ids)


def test_fingerprints_tell_tables_apart():
    lower = cases.wordpiece()
    lower.normalizer = None
    bare = cases.wordpiece()
    bare.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
    roles = Special(sep="[SEP]", cls="[CLS]", pad="[PAD]")
    others = [text.Published(lower, special=roles), text.Published(bare, special=roles)]
    others.append(text.Published(cases.wordpiece(), special=Special(sep="[SEP]", pad="[PAD]")))
    tokenizers_ = [*TOKENIZERS.values(), *others]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers_}) == len(tokenizers_)


def test_the_last_bit_of_a_score_does_not_change_the_fingerprint(tmp_path):
    score = -3.6614859091703122  # the library reads it back as another number
    tokenizer = text.Published(tokenizers.Tokenizer(models.Unigram([("h", score)])), special=Special())
    tokenizer.save(tmp_path)
    loaded = text.load(tmp_path)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "tokenizer.json").read_text() != (tmp_path / "again" / "tokenizer.json").read_text()
    assert loaded.fingerprint == tokenizer.fingerprint


def test_spaces_are_cleaned_where_the_settings_say_so(tmp_path):
    folder = cases.save(cases.unigram(), tmp_path, eos_token="</s>", clean_up_tokenization_spaces=True)
    cleaned = text.load(folder)
    ids = cleaned.encode("the cat , the hat .")
    assert cleaned.decode(ids) == "the cat, the hat."
    cases.save(cases.unigram(), tmp_path, eos_token="</s>")
    assert text.load(folder).decode(ids) == "the cat , the hat ."
    cases.save(cases.unigram(), tmp_path, clean_up_tokenization_spaces="yes")
    with pytest.raises(ValueError, match=r"clean_up_tokenization_spaces='yes' must be true or false"):
        text.load(folder)


def test_spaces_of_bpe_are_its_own():
    special = Special(bos="<s>", eos="</s>")
    tokenizer = text.Published(cases.fallback(), special=special, clean=True)
    assert tokenizer.decode(tokenizer.encode("the cat , a hat .")) == "the cat , a hat ."


def test_padding_and_truncation_are_not_ours(tmp_path):
    table = cases.wordpiece()
    expected = text.Published(cases.wordpiece(), special=Special(sep="[SEP]", cls="[CLS]", pad="[PAD]"))
    table.enable_padding(length=50, pad_token="[PAD]")
    table.enable_truncation(max_length=5)
    tokenizer = text.load(cases.save(table, tmp_path))
    for string in ("the", "the cat sat on the mat"):
        np.testing.assert_array_equal(tokenizer.encode(string, special=True), expected.encode(string, special=True))


def test_ids_may_have_gaps(tmp_path):
    table = tokenizers.Tokenizer(models.WordLevel({"a": 0, "c": 2}, unk_token="a"))
    tokenizer = text.load(cases.save(table, tmp_path))
    assert (tokenizer.size, tokenizer.spellings, tokenizer.end) == (3, (b"a", b"", b"c"), None)
    assert tokenizer.decode([0, 1, 2]) == "a c"


def test_two_tokens_of_one_id_are_refused(tmp_path):
    content = json.loads(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str())
    content["model"]["vocab"]["b"] = 0
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read .* must be 0 to 1, each once"):
        text.load(cases.write(tmp_path, tokenizer__json=content))


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
@everyone
def test_a_truncated_file_is_named(tokenizer, tmp_path, position):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = path.read_bytes()
    path.write_bytes(content[: int(position * len(content))])
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)
