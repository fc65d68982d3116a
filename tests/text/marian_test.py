import json
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from tests.text import cases
from transformer import text

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .wig:DeprecationWarning")  # of the package's import


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cases.marian(tmp_path_factory.mktemp("marian"), source_lang="en", target_lang="fr")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return text.load(folder)


def readers(folder):
    package = pytest.importorskip("sentencepiece")
    out = []
    for name in ("source.spm", "target.spm"):
        out.append(package.SentencePieceProcessor())
        out[-1].LoadFromSerializedProto((folder / name).read_bytes())
    return out


@hypothesis.given(string=strategies.text(strategies.sampled_from("the cat's low Hello é日<>")))
def test_pieces_of_the_source_are_looked_up(folder, tokenizer, string):
    hypothesis.assume(not string.startswith(">>"))
    source, target = readers(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    ids = [vocabulary.get(piece, vocabulary["<unk>"]) for piece in source.encode(string, out_type=str)]
    assert tokenizer.encode(string).tolist() == ids
    assert tokenizer.encode(string, special=True).tolist() == [*ids, vocabulary["</s>"]]
    names = {index: piece for piece, index in vocabulary.items()}
    known = [names[index] for index in ids if index != vocabulary["<unk>"]]
    assert tokenizer.decode(ids) == target.decode_pieces(known).replace("▁", " ").strip()


def test_the_case_has_pieces_that_are_not_in_the_vocabulary(folder):
    source, _ = readers(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert not {source.id_to_piece(index) for index in range(source.get_piece_size())} <= set(vocabulary)


def test_pieces_of_the_source_alone_are_decoded_too(folder, tokenizer):
    source, target = readers(folder)
    known = {target.id_to_piece(index) for index in range(target.get_piece_size())}
    vocabulary = json.loads((folder / "vocab.json").read_text())
    alone = [piece for piece in vocabulary if piece.startswith("▁") and piece not in known]
    assert alone and source.piece_to_id(alone[0]) != source.unk_id()
    assert tokenizer.decode([vocabulary[alone[0]]] * 2) == " ".join([alone[0].removeprefix("▁")] * 2)


def test_special_ids(folder, tokenizer):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == (None, vocabulary["</s>"], vocabulary["<pad>"])
    assert (tokenizer.opening, tokenizer.size, tokenizer.kind) == (tokenizer.end, len(vocabulary), "marian")
    assert tokenizer.end not in tokenizer.encode("</s>")
    assert tokenizer.decode([*tokenizer.encode(" cat"), tokenizer.end], keep_end=True) == "cat</s>"


def test_a_language_is_read_at_the_beginning_only(folder, tokenizer):
    code = json.loads((folder / "vocab.json").read_text())[">>fr<<"]
    plain = tokenizer.encode("the cat").tolist()
    for string in (">>fr<< the cat", ">>fr<<the cat"):
        assert tokenizer.encode(string).tolist() == [code, *plain]
    for string in ("the >>fr<< cat", ">>de<< the cat", ">>fr the cat", ">>fr <<the cat"):
        assert code not in tokenizer.encode(string)
    assert tokenizer.encode(">>de<< the cat").tolist()[-len(plain) :] == plain


@hypothesis.given(data=strategies.data(), keep_end=strategies.booleans())
def test_pieces_join_to_decode_of_everything(tokenizer, data, keep_end):
    ids = data.draw(strategies.lists(strategies.integers(0, tokenizer.size - 1)))
    decoder = text.StreamDecoder(tokenizer, keep_end=keep_end)
    pieces = [decoder.feed(index) for index in ids] + [decoder.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, keep_end=keep_end)


def test_saving_and_pickling_change_nothing(folder, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["source_lang"], settings["target_lang"]) == ("en", "fr")
    for other in (text.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(other, text.Marian)
        assert (other.fingerprint, other.spellings) == (tokenizer.fingerprint, tokenizer.spellings)
        for string in cases.STRINGS:
            ids = tokenizer.encode(string, special=True)
            np.testing.assert_array_equal(other.encode(string, special=True), ids)
            assert other.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        ({}, "the unk token '<unk>' is not in the vocabulary"),
        ({"<unk>": 0}, "the end token '</s>' is not in the vocabulary of 1"),
        ({"<unk>": 0, "</s>": 0, "<pad>": 1}, "the ids of the vocabulary must be 0 to 2, each once"),
        ({"<unk>": "a"}, "it must hold an id for each piece"),
        ({"<unk>": -1}, "it must hold an id for each piece"),
        ([], "it holds no JSON object"),
    ],
)
def test_a_damaged_vocabulary_is_named(folder, tmp_path, vocabulary, reason):
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=rf"vocab\.json cannot be read as a tokenizer \({reason}") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["source.spm", "target.spm"])
def test_a_damaged_model_is_named(tmp_path, name):
    folder = cases.marian(tmp_path)
    (folder / name).write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a tokenizer"):
        text.load(folder)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"separate_vocabs": True}, "separate_vocabs=true, but only one vocabulary for both languages can be read"),
        ({"tokenizer_class": "M2M100Tokenizer"}, r"source\.spm can be read only as one of MarianTokenizer"),
    ],
)
def test_other_settings_are_refused(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=reason):
        text.load(cases.marian(tmp_path, **settings))
