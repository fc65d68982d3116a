"""What holds for every kind of tokenizer."""

import hashlib
import json
import pickle

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from transformer import text

CORPUS = ["Der Zug fährt um 8:15 Uhr.\r\n", "def f(x):\n    return x ** 2\n", "naïve café, 日本語, 🙂"]
TOKENIZERS = {
    "bytes": text.Bytes(),
    "characters": text.Characters.train(CORPUS, fallback=True, end=True),
    "characters without end": text.Characters.train(CORPUS),
    "bpe": text.BPE.train(CORPUS, 300),
}
CORNERS = [
    "",
    "\x00\x00",
    "👩‍👩‍👧",
    "e\u0301 é",
    "a\r\n\r b\n",
    "\ufeff\ufffd\U0010ffff",
    "<|endoftext|>",
    "  \t x  . ' s",
]
SURROGATES = ["\ud800", "\ud83d\ude00", "a\udfffb"]

everyone = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
any_text = strategies.text(strategies.characters(exclude_categories=["Cs"]))


@everyone
@hypothesis.given(any_text)
def test_round_trip(tokenizer, string):
    ids = tokenizer.encode(string)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == string


@everyone
@pytest.mark.parametrize("string", CORNERS)
def test_round_trip_of_corner_cases(tokenizer, string):
    assert tokenizer.decode(tokenizer.encode(string)) == string


@pytest.mark.parametrize("string", SURROGATES)
@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_round_trip_of_lone_surrogates(kind, string):
    assert TOKENIZERS[kind].decode(TOKENIZERS[kind].encode(string)) == string


@everyone
def test_text_never_encodes_to_the_end(tokenizer):
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.end not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


@everyone
@hypothesis.given(strategies.data())
def test_any_ids_decode_as_the_bytes_they_stand_for(tokenizer, data):
    ids = data.draw(strategies.lists(strategies.integers(0, tokenizer.size - 1)))
    decoded = tokenizer.decode(ids, keep_end=True)
    joined = b"".join(tokenizer.spellings[i] for i in ids)
    # Three bytes that spell a surrogate are one character to the kinds that can, and three U+FFFD to Python.
    if not any(0xD800 <= ord(character) <= 0xDFFF for character in decoded):
        assert decoded == joined.decode("utf-8", "replace")


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_end_is_left_out_unless_kept(kind):
    tokenizer = TOKENIZERS[kind]
    ids = [*tokenizer.encode("fahrt").tolist(), tokenizer.end, *tokenizer.encode("Uhr").tolist()]
    assert tokenizer.end == tokenizer.size - 1
    assert tokenizer.decode(ids) == "fahrtUhr"
    assert tokenizer.decode(ids, keep_end=True) == "fahrt<|endoftext|>Uhr"


@everyone
def test_decode_takes_lists_tuples_numpy_and_jax(tokenizer):
    ids = tokenizer.encode("x = 8 é")
    others = [
        ids.tolist(),
        tuple(ids.tolist()),
        list(ids),
        ids.astype(np.uint16),
        jnp.asarray(ids),
        list(jnp.asarray(ids)),
    ]
    assert [tokenizer.decode(other) for other in others] == ["x = 8 é"] * len(others)
    assert tokenizer.decode([]) == tokenizer.decode(np.array([], np.int32)) == ""


@everyone
@pytest.mark.parametrize("wrong", [-1, 10**6, 2**63, 2**80, 1.0, 1.5, True, None, "a", [1]])
def test_decode_names_the_wrong_id(tokenizer, wrong):
    with pytest.raises(ValueError) as raised:
        tokenizer.decode([3, 4, wrong])
    message = str(raised.value)
    assert "ids[2]" in message and repr(wrong) in message and f"0 to {tokenizer.size - 1}" in message


@everyone
@pytest.mark.parametrize("array", [np.array([3, -1]), jnp.array([3, 10**6]), np.array([3, 2**63], np.uint64)])
def test_decode_names_the_wrong_id_in_arrays(tokenizer, array):
    with pytest.raises(ValueError, match=r"ids\[1\]=" + str(int(array[1]))):
        tokenizer.decode(array)


@pytest.mark.parametrize("array", [np.array([1.0]), jnp.array([1.0]), jnp.array([1.0], jnp.bfloat16), np.array([True])])
def test_decode_refuses_arrays_of_other_types(array):
    with pytest.raises(ValueError, match=r"ids\[0\]="):
        text.Bytes().decode(array)


@pytest.mark.parametrize("ids", [np.zeros((2, 3), int), jnp.array(3), 3, [[1, 2], [3, 4]]])
def test_decode_wants_one_dimension(ids):
    with pytest.raises(ValueError, match="one-dimensional"):
        text.Bytes().decode(ids)


@everyone
def test_encode_batch_is_encode_of_each(tokenizer):
    strings = [*CORNERS, *CORPUS, "x" * 5000] * 3
    batch = tokenizer.encode_batch(strings)
    assert len(batch) == len(strings)
    for ids, string in zip(batch, strings, strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(string))
    assert tokenizer.encode_batch([]) == []


@everyone
def test_encode_wants_strings(tokenizer):
    with pytest.raises(ValueError, match="text must be a string, not bytes"):
        tokenizer.encode(b"abc")
    with pytest.raises(ValueError, match=r"texts\[1\] must be a string, not NoneType"):
        tokenizer.encode_batch(["a", None])
    with pytest.raises(ValueError, match="not one string"):
        tokenizer.encode_batch("abc")


@everyone
def test_loading_gives_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = text.load(tmp_path / "new" / "folder")
    assert type(loaded) is type(tokenizer)
    assert (loaded.fingerprint, loaded.end, loaded.spellings) == (
        tokenizer.fingerprint,
        tokenizer.end,
        tokenizer.spellings,
    )
    string = "Der Zug <|endoftext|> für 日本"
    np.testing.assert_array_equal(loaded.encode(string), tokenizer.encode(string))


@everyone
def test_pickling_changes_nothing(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(copy.encode("a<|endoftext|>b"), tokenizer.encode("a<|endoftext|>b"))


def test_fingerprints_tell_tables_apart():
    others = [
        text.Characters.train([*CORPUS, "ß"]),
        text.Characters.train(CORPUS, fallback=False),
        text.BPE.train(CORPUS, 290),
        text.BPE.train(["other words, many other words"], 300),
    ]
    fingerprints = {tokenizer.fingerprint for tokenizer in [*TOKENIZERS.values(), *others]}
    assert len(fingerprints) == len(TOKENIZERS) + len(others)
    assert text.Bytes().fingerprint == hashlib.sha256(json.dumps(["bytes", []]).encode()).hexdigest()


@everyone
def test_what_is_trained_here_opens_a_text_as_documents_begin(tokenizer):
    string = "Der Zug fährt, naïve 日本語"
    opening = [] if tokenizer.end is None else [tokenizer.end]
    whole = tokenizer.with_opening().encode(string, special=True)
    np.testing.assert_array_equal(whole, [*opening, *tokenizer.encode(string)])
    assert whole.dtype == np.int32
    assert tokenizer.encode(string, special=True).dtype == np.int32
    assert (tokenizer.begin, tokenizer.pad, tokenizer.opening) == (None, None, tokenizer.end)


def test_the_beginning_opens_where_there_is_one():
    tokenizer = text.Bytes()
    tokenizer.begin = 7
    assert (tokenizer.opening, tokenizer.end) == (7, 256)
