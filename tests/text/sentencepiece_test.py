import json
import pickle
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from tests.text import cases
from transformer import text

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .wig:DeprecationWarning")  # of the package's import

KINDS = {"t5": cases.t5, "llama": cases.llama, "gemma": cases.gemma}
FILES = {"t5": "spiece.model", "llama": "tokenizer.model", "gemma": "tokenizer.model"}
everyone = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One of each kind, and the package's reader of its model."""
    package = pytest.importorskip("sentencepiece")
    out = {}
    for name, make in KINDS.items():
        folder = make(tmp_path_factory.mktemp(name))
        reader = package.SentencePieceProcessor()
        reader.LoadFromSerializedProto((folder / FILES[name]).read_bytes())
        out[name] = text.load(folder), reader
    return out


@everyone
@hypothesis.given(
    string=strategies.text(strategies.characters(exclude_categories=["Cs"]) | strategies.sampled_from("the é"))
)
def test_ids_and_text_are_the_package_s(tokenizers, name, string):
    tokenizer, reader = tokenizers[name]
    ids = reader.encode(string)
    assert tokenizer.encode(string).tolist() == ids
    if reader.unk_id() not in ids:
        assert tokenizer.decode(ids) == reader.decode(ids)


@pytest.mark.parametrize(
    ("name", "begin", "end", "pad", "before", "after"),
    [("t5", None, 1, 0, [], [1]), ("llama", 1, 2, None, [1], []), ("gemma", 2, 1, 0, [2], [])],
)
def test_special_ids(tokenizers, name, begin, end, pad, before, after):
    tokenizer, reader = tokenizers[name]
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == (begin, end, pad)
    ids = tokenizer.encode("the cat", special=True)
    assert ids.tolist() == [*before, *reader.encode("the cat"), *after] and ids.dtype == np.int32
    assert tokenizer.decode([*ids, end]) == "the cat"
    assert reader.id_to_piece(end) in tokenizer.decode([*ids, end], keep_end=True)
    assert tokenizer.size == reader.get_piece_size() + (100 if name == "t5" else 0)


@everyone
def test_names_of_special_tokens_are_text_unless_asked(tokenizers, name):
    tokenizer, reader = tokenizers[name]
    string = f"the{reader.id_to_piece(tokenizer.end)}cat"
    assert tokenizer.encode(string).tolist() == reader.encode(string)
    assert tokenizer.end not in tokenizer.encode(string)
    inside = [*reader.encode("the"), tokenizer.end, *reader.encode("cat")]
    ids = tokenizer.encode(string, special=True).tolist()
    assert [index for index in ids if index != tokenizer.begin][: len(inside)] == inside


def test_sentinels_count_down_from_the_last_id(tokenizers):
    tokenizer, reader = tokenizers["t5"]
    last = reader.get_piece_size() + 99
    ids = tokenizer.encode("the<extra_id_0> cat<extra_id_99>", special=True).tolist()
    assert ids == [*reader.encode("the"), last, *reader.encode("cat"), last - 99, 1]
    assert tokenizer.decode(ids) == "the cat"
    assert tokenizer.decode(ids, keep_end=True) == "the<extra_id_0> cat<extra_id_99></s>"
    assert last not in tokenizer.encode("<extra_id_0>")


def test_settings_of_llama(tmp_path):
    folder = cases.llama(tmp_path, add_bos_token=False, add_eos_token=True, pad_token="</s>")
    tokenizer = text.load(folder)
    plain = tokenizer.encode("the cat").tolist()
    assert tokenizer.encode("the cat", special=True).tolist() == [*plain, 2]
    assert (tokenizer.begin, tokenizer.pad, tokenizer.opening) == (1, 2, 1)


def test_added_tokens_are_kept(tmp_path):
    size = text.load(cases.llama(tmp_path / "plain")).size
    added = {str(size): {"content": "<|user|>", "special": True}, str(size + 1): {"content": "<tool>"}}
    tokenizer = text.load(cases.llama(tmp_path / "more", added_tokens_decoder=added))
    tokenizer.save(tmp_path / "saved")
    for one in (tokenizer, text.load(tmp_path / "saved")):
        assert one.size == size + 2
        assert size in one.encode("the <|user|>", special=True) and size not in one.encode("the <|user|>")
        assert size + 1 in one.encode("the<tool>")
        assert one.decode([size, size + 1]) == "<tool>"


def test_ids_between_added_tokens_may_have_no_name(tmp_path):
    size = text.load(cases.llama(tmp_path / "plain")).size
    added = {str(size + 2): {"content": "<t"}, str(size + 4): {"content": "<tool>"}}
    tokenizer = text.load(cases.llama(tmp_path / "more", added_tokens_decoder=added))
    assert (tokenizer.size, tokenizer.spellings[size : size + 3]) == (size + 5, (b"", b"", b"<t"))
    assert tokenizer.encode("<tool><t").tolist() == [size + 4, size + 2]  # the longer name first
    ids = tokenizer.encode("the cat").tolist()
    assert tokenizer.decode([*ids, size, size + 4]) == "the cat<tool>"


def test_control_pieces_are_no_text(tmp_path):
    model = cases.piece_model(vocab_size=120, model_type="unigram", control_symbols=["<turn>"])
    tokenizer = text.load(cases.write(tmp_path, tokenizer__model=model))
    turn = tokenizer.spellings.index(b"<turn>")
    assert turn not in tokenizer.encode("the<turn>")
    ids = tokenizer.encode("the<turn>", special=True).tolist()
    assert ids[-1] == turn and tokenizer.decode(ids) == "the"
    assert tokenizer.decode([turn], keep_end=True) == "<turn>"


@everyone
@hypothesis.given(data=strategies.data(), keep_end=strategies.booleans())
def test_pieces_join_to_decode_of_everything(tokenizers, name, data, keep_end):
    tokenizer, _ = tokenizers[name]
    ids = strategies.integers(0, tokenizer.size - 1)
    blocks = data.draw(strategies.lists(strategies.lists(ids, max_size=6)))
    decoder = text.StreamDecoder(tokenizer, keep_end=keep_end)
    pieces = [decoder.feed(block) for block in blocks] + [decoder.flush()]
    everything = [index for block in blocks for index in block]
    assert "".join(pieces) == tokenizer.decode(everything, keep_end=keep_end)


def test_no_half_character_is_shown(tokenizers):
    tokenizer, _ = tokenizers["llama"]
    decoder = text.StreamDecoder(tokenizer)
    pieces = [decoder.feed(index) for index in tokenizer.encode("a 日本 🙂 the cat")] + [decoder.flush()]
    assert "".join(pieces) == "a 日本 🙂 the cat"
    assert "日本" in "".join(pieces[:-2]) and not any("\ufffd" in piece for piece in pieces)


@everyone
def test_saving_and_pickling_change_nothing(tokenizers, name, tmp_path):
    tokenizer, reader = tokenizers[name]
    tokenizer.save(tmp_path)
    assert (tmp_path / FILES[name]).read_bytes() == reader.serialized_model_proto()
    for other in (text.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(other, text.SentencePiece)
        assert (other.fingerprint, other.spellings) == (tokenizer.fingerprint, tokenizer.spellings)
        assert (other.begin, other.end, other.pad) == (tokenizer.begin, tokenizer.end, tokenizer.pad)
        for string in cases.STRINGS:
            ids = tokenizer.encode(string, special=True)
            np.testing.assert_array_equal(other.encode(string, special=True), ids)
            assert other.decode(ids) == tokenizer.decode(ids)


def test_fingerprints_tell_settings_apart(tmp_path):
    settings = [{}, {"add_bos_token": False}, {"add_eos_token": True}, {"eos_token": "<s>"}]
    settings.append({"added_tokens_decoder": {"500": {"content": "<x>"}}})
    folders = [cases.llama(tmp_path / str(index), **each) for index, each in enumerate(settings)]
    folders.append(cases.gemma(tmp_path / "gemma"))
    assert len({text.load(folder).fingerprint for folder in folders}) == len(folders)


def test_strings_are_checked(tokenizers):
    tokenizer, _ = tokenizers["t5"]
    with pytest.raises(ValueError, match="text must be a string, not bytes"):
        tokenizer.encode(b"abc")
    with pytest.raises(ValueError, match=r"text\[1\] is '\\ud800', a lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ValueError, match=rf"ids\[0\]={tokenizer.size} is not one of"):
        tokenizer.decode([tokenizer.size])


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 1\n", b"\xff\x00"])
def test_a_damaged_model_is_named(tmp_path, name, content):
    pytest.importorskip("sentencepiece")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a tokenizer") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"eos_token": "<nothing>"}, r"spiece\.model .*the end token '<nothing>' is not in the vocabulary of"),
        ({"extra_ids": -1}, r"tokenizer_config\.json .*extra_ids=-1 must be a number of tokens"),
        ({"extra_ids": True}, r"tokenizer_config\.json .*extra_ids=True must be"),
        (
            {"tokenizer_class": "PegasusTokenizer"},
            "'PegasusTokenizer', but spiece.model can be read only as one of MT5",
        ),
        ({"added_tokens_decoder": {"9999999": {"content": "x"}}}, r"spiece\.model .*'x' has the id 9999999, far from"),
    ],
)
def test_damaged_settings_are_named(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        text.load(cases.t5(tmp_path, **settings))
    assert "\n" not in str(raised.value)


def test_flags_of_llama_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"add_bos_token=1 must be true or false"):
        text.load(cases.llama(tmp_path, add_bos_token=1))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLNetTokenizer"}))
    with pytest.raises(ValueError, match=r"tokenizer\.model can be read only as one of CodeLlamaTokenizer"):
        text.load(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install 'transformer-research\[sentencepiece\]'") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)
