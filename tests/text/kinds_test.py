import pytest

from tests.text import cases
from transformer import text

CORPUS = ["the cat sat on the mat", "the dog sat on the cat"]


def test_train_makes_each_kind():
    assert isinstance(text.train("bytes", CORPUS, 300), text.Bytes)
    assert text.train("characters", CORPUS, 300).fingerprint == text.Characters.train(CORPUS).fingerprint
    assert text.train("bpe", CORPUS, 260).fingerprint == text.BPE.train(CORPUS, 260).fingerprint


def test_train_passes_options_on():
    tokenizer = text.train("characters", CORPUS, 300, fallback=False, end=True)
    assert (tokenizer.fallback, tokenizer.end) == (False, len(set("".join(CORPUS))))


def test_train_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"kind='words' .* bytes, characters, bpe"):
        text.train("words", CORPUS, 300)
    with pytest.raises(ValueError, match="fallback is no option of 'bpe'"):
        text.train("bpe", CORPUS, 300, fallback=True)
    with pytest.raises(ValueError, match="lower is no option of 'characters', which has fallback and end"):
        text.train("characters", CORPUS, 300, lower=True)


def test_load_says_what_is_there_and_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        text.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"holds nothing, .* expected one of .*tokenizer\.json"):
        text.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds vocab\.json, .* vocab\.json with merges\.txt") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="is a file"):
        text.load(tmp_path / "vocab.json")


def test_load_refuses_two_kinds(tmp_path):
    text.Bytes().save(tmp_path)
    (tmp_path / "characters.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds bytes\.json and characters\.json"):
        text.load(str(tmp_path))


def test_load_reads_the_files_of_published_models(tmp_path):
    assert isinstance(text.load(cases.save(cases.wordpiece(), tmp_path / "wordpiece")), text.Published)
    assert isinstance(text.load(cases.save(cases.byte_level(), tmp_path / "byte level")), text.BPE)
    assert isinstance(text.load(cases.words(tmp_path / "words")), text.Published)
    assert isinstance(text.load(cases.pair(tmp_path / "pair")), text.BPE)


def test_load_expects_any_of_many_files(tmp_path):
    (tmp_path / "source.spm").write_text("")
    with pytest.raises(FileNotFoundError) as raised:
        text.load(tmp_path)
    for name in ("source.spm with target.spm with vocab.json", "spiece.model", "tokenizer.model", "vocab.txt"):
        assert name in str(raised.value).split("expected one of")[1]


def test_the_tokenizer_of_the_library_counts_before_other_files(tmp_path):
    cases.words(cases.pair(tmp_path))
    for name in ("spiece.model", "tokenizer.model", "source.spm", "target.spm"):
        (tmp_path / name).write_bytes(b"damaged")
    cases.save(cases.unigram(), tmp_path)
    assert isinstance(text.load(tmp_path), text.Published)
    assert text.load(tmp_path).spellings[:3] == (b"<pad>", b"</s>", b"<unk>")


def test_models_of_sentencepiece_count_before_vocabularies(tmp_path):
    assert isinstance(text.load(cases.words(cases.t5(tmp_path / "t5"))), text.SentencePiece)
    assert isinstance(text.load(cases.words(cases.marian(tmp_path / "marian"))), text.Marian)
