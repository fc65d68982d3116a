import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from tests.text import cases
from transformer import text
from transformer.text import library
from transformer.text.special import Special


def test_each_id_has_its_name():
    assert library.spellings({"b": 2, "a": 0}) == ["a", "", "b"]
    for vocabulary in ({"a": 0, "b": 0}, {"a": 0, "b": 2**32 - 1}):
        with pytest.raises(ValueError, match="must be 0 to 1, each once"):
            library.spellings(vocabulary)


@pytest.mark.parametrize(
    ("make", "special"),
    [
        (cases.wordpiece, Special(sep="[SEP]", cls="[CLS]", unk="[UNK]", mask="[MASK]")),
        (cases.unigram, Special(eos="</s>", unk="<unk>", pad="<pad>")),
        (cases.fallback, Special(bos="<s>", eos="</s>", unk="<unk>")),
        (lambda: cases.byte_level(["<s>", "</s>"]), Special(bos="<s>", eos="</s>")),
        (lambda: cases.byte_level(["<s>", "</s>"], ignore_merges=True), Special(bos="<s>", eos="</s>")),
        (lambda: spaced(["[UNK]", "[SEP]", "a", "##b"]), Special(sep="[SEP]", unk="[UNK]")),
    ],
)
def test_no_text_encodes_to_a_special_token(make, special):
    tokenizer = text.Published(make(), special=special)
    ids = {name: tokenizer.spellings.index(name.encode()) for name in special.names if name != special.unk}
    for name, index in ids.items():
        for string in (name, f"a{name}a", f"the {name} cat", name * 2):
            assert index not in tokenizer.encode(string)
            assert index not in tokenizer.encode_batch(["a", string])[1]
        assert index in tokenizer.encode(f"the {name} cat", special=True)


def spaced(words):
    """WordPiece over words between spaces, among them the names of special tokens."""
    vocabulary = {word: index for index, word in enumerate(words)}
    table = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return table


def test_text_with_the_name_of_a_special_token_is_not_lost():
    tokenizer = text.Published(cases.unigram(), special=Special(eos="</s>"))
    string = "the cat</s>the hat"
    ids = tokenizer.encode(string)
    assert tokenizer.decode(ids).startswith("the cat") and tokenizer.decode(ids).endswith("the hat")


def test_a_special_token_may_be_one_character():
    tokenizer = text.BPE(cases.byte_level(["日"]), end="日")
    assert tokenizer.encode("a日", special=True)[-1] == tokenizer.end
    assert tokenizer.end not in tokenizer.encode("a日") and tokenizer.decode(tokenizer.encode("a日")) == "a日"


def test_what_cannot_be_spelt_is_an_error():
    table = tokenizers.Tokenizer(models.Unigram([("a", -1.0)]))
    tokenizer = text.Published(table, special=Special())
    assert tokenizer.encode("aa").tolist() == [0, 0]
    for special in (False, True):
        with pytest.raises(
            ValueError, match=r"text holds what this tokenizer cannot spell \(.*unk_id.*\): leave it out"
        ):
            tokenizer.encode("ab", special=special)


@pytest.mark.parametrize("role", ["bos", "eos", "pad", "cls", "sep"])
def test_a_special_token_must_be_there(role):
    with pytest.raises(ValueError, match=r"the (begin|end|pad) token '\[X\]' is not in the vocabulary of 1"):
        text.Published(tokenizers.Tokenizer(models.Unigram([("a", -1.0)])), special=Special(**{role: "[X]"}))


def test_special_tokens_that_are_not_there_have_no_role(tmp_path):
    tokenizer = text.Published(cases.unigram(), special=Special(eos="</s>", mask="<nothing>"))
    tokenizer.save(tmp_path)
    assert '"mask_token": null' in (tmp_path / "tokenizer_config.json").read_text()
    assert text.load(tmp_path).size == tokenizer.size


def test_the_fingerprint_knows_what_opens_a_document():
    names = ["<s>", "</s>"]
    ends = [text.BPE(cases.byte_level(names), end="</s>", special=Special(bos=bos)) for bos in (None, "<s>", "</s>")]
    assert [tokenizer.opening for tokenizer in ends] == [1, 0, 1]
    assert ends[0].fingerprint == ends[2].fingerprint != ends[1].fingerprint


def test_words_found_before_merges_change_the_fingerprint():
    ordinary, first = (text.BPE(cases.byte_level(ignore_merges=ignore), end=None) for ignore in (False, True))
    assert ordinary.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("tokenizer", "opening"),
    [
        (lambda: text.BPE.train(["one two three"], 258), 257),
        (lambda: text.BPE(cases.byte_level(["<s>", "</s>"]), end="</s>", special=Special(bos="<s>")), 0),
        (lambda: text.Published(cases.fallback(), special=Special(bos="<s>", eos="</s>", unk="<unk>")), None),
    ],
)
def test_a_published_form_opens_texts_as_training_does(tmp_path, tokenizer, opening):
    before = tokenizer()
    after = before.with_opening()
    assert before.opening == after.opening == (before.begin if opening is None else opening)
    after.save(tmp_path)
    for each in (after, text.load(tmp_path)):
        assert each.encode("two", special=True).tolist() == [after.opening, *before.encode("two")]
        assert each.encode("two").tolist() == before.encode("two").tolist()
        assert each.with_opening() is each
    assert before.encode("two", special=True).tolist() in (
        before.encode("two").tolist(),
        after.encode("two", special=True).tolist(),
    )


def test_what_has_no_files_of_others_stays_as_it_is():
    for tokenizer in (text.Bytes(), text.Characters(["abc"])):
        assert tokenizer.with_opening() is tokenizer
