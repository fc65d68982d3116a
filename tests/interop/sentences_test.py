"""Vectors of sentences against NumPy, and folders that pool in another way."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop import folders
from transformer import interop, text

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "mole", "dug", "a", "hole", "of", "carbon", "one", "."]
SENTENCES = ["the mole dug a hole .", "", "hole " * 40, "a " * 14]
LENGTH = 32  # that the model has positions for
TRANSFORMER, POOLING, NORMALIZE = (
    {"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A small BERT with its words, and nothing that says how sentences are pooled."""
    folder = folders.write(tmp_path_factory.mktemp("bert"), "bert-pooler")
    words = WORDS + [f"word{number}" for number in range(60 - len(WORDS))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture
def folder(plain, tmp_path):
    """As `plain`, to add files to."""
    for path in plain.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def put(folder, name: str, content) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture(scope="module")
def means(plain):
    """Each sentence by itself, without padding, and the mean in float64: `[N, D]`."""
    model, params, tokenizer = interop.load(plain)
    rows = []
    for sentence in SENTENCES:
        ids = [2, *tokenizer.encode(sentence).tolist(), 3]
        ids = ids if len(ids) <= LENGTH else [*ids[: LENGTH - 1], 3]
        hidden = model.apply({"params": params}, jnp.asarray([ids]), method="encode")
        rows.append(np.asarray(hidden, np.float64)[0].mean(axis=0))
    return np.stack(rows)


def test_the_mean_over_real_tokens_and_nothing_more(folder, means):
    put(folder, "modules.json", [TRANSFORMER, POOLING])
    encoder = interop.sentence_encoder(folder)
    assert not encoder.normalize
    # Float32, with sums over padding that is nought.
    np.testing.assert_allclose(encoder(SENTENCES), means, atol=2e-5)


def test_vectors_of_length_one(folder, means):
    put(folder, "modules.json", [TRANSFORMER, POOLING, NORMALIZE])
    put(folder, "1_Pooling/config.json", {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True})
    encoder = interop.sentence_encoder(folder)
    assert encoder.normalize
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    got = encoder(SENTENCES)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(encoder(SENTENCES, batch_size=2), got, atol=1e-6)  # padded to other lengths


def test_a_long_sentence_loses_its_middle_but_not_its_last_token(folder):
    put(folder, "sentence_bert_config.json", {"max_seq_length": 8, "do_lower_case": False})
    encoder = interop.sentence_encoder(folder)
    assert encoder.length == 8
    ids, mask = encoder.tokens(["hole mole " * 10, "mole"])
    assert ids.tolist() == [[2, 9, 6, 9, 6, 9, 6, 3], [2, 6, 3, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 8, [True] * 3 + [False] * 5]


def test_lengths_are_rounded_up_so_that_batches_share_programs(plain):
    encoder = interop.sentence_encoder(plain)
    assert [encoder.tokens(["mole " * count])[0].shape for count in (0, 14, 15, 100)] == [
        (1, 16),
        (1, 16),
        (1, 32),
        (1, 32),
    ]


@pytest.mark.parametrize(("asked", "length"), [(None, 32), (20, 20), (512, 32)])
def test_no_more_is_read_than_the_model_has_positions(folder, asked, length):
    put(folder, "sentence_bert_config.json", {"max_seq_length": asked})
    assert interop.sentence_encoder(folder).length == length


def test_no_sentences_have_no_vectors_and_one_string_is_a_mistake(plain):
    encoder = interop.sentence_encoder(plain)
    assert encoder([]).shape == (0, 24)
    with pytest.raises(ValueError, match=r"sentences must be a list of strings, not one string: pass \[sentence\]"):
        encoder("the mole")


def test_a_sentence_without_any_token_has_a_vector_of_noughts(plain):
    class Bare:
        pad = None

        def encode(self, text, special):
            return np.zeros(0, np.int32)

    encoder = interop.sentence_encoder(plain)
    bare = interop.SentenceEncoder(encoder.model, encoder.params, Bare(), 32, True)
    np.testing.assert_array_equal(bare(["", ""]), np.zeros((2, 24)))


MEAN = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    "content", [MEAN, MEAN | {"pooling_mode_cls_token": False, "include_prompt": True}, {"pooling_mode": "mean"}]
)
def test_the_mean_may_be_asked_for_in_several_ways(folder, content):
    put(folder, "1_Pooling/config.json", content)
    interop.sentence_encoder(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "asks for pooling_mode_cls_token; only the mean"),
        ("1_Pooling/config.json", MEAN | {"pooling_mode_max_tokens": True}, "mean_tokens, pooling_mode_max_tokens;"),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}, "asks for pooling_mode; only the mean"),
        ("1_Pooling/config.json", {}, "asks for no pooling; only the mean over tokens is known"),
        ("1_Pooling/config.json", [], "holds no JSON object"),
        ("modules.json", [TRANSFORMER, POOLING, {"type": "sentence_transformers.models.Dense"}],
         "chains Transformer, Pooling, Dense; Transformer, Pooling and, at the end, Normalize are known"),
        ("modules.json", [TRANSFORMER, NORMALIZE, POOLING], "chains Transformer, Normalize, Pooling"),
        ("modules.json", [], "chains ;"),
        ("modules.json", [1, None], "chains , ;"),
        ("modules.json", {}, "holds no JSON list"),
        ("modules.json", "[" * 100_000, "cannot be read as JSON"),
        ("modules.json", "{", "cannot be read as JSON"),
        ("sentence_bert_config.json", [], "holds no JSON object"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, "max_seq_length='256' is of the wrong type"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length=0 cannot work"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case=True has no counterpart"),
        ("sentence_bert_config.json", {"prompt": "x"}, "the field prompt='x' is not known"),
    ],
)  # fmt: skip
def test_what_pools_in_another_way_is_refused(folder, name, content, words):
    put(folder, name, content)
    with pytest.raises(ValueError, match=f"{name}.*{words}") as error:
        interop.sentence_encoder(folder)
    assert "\n" not in str(error.value)


def test_a_model_of_another_kind_is_refused(folder, tmp_path):
    decoder = folders.write(tmp_path / "gpt2", "gpt2")
    text.Bytes().save(decoder)
    (folder / "vocab.txt").unlink()
    for path in (decoder, folder):  # one has no encoder, one has no tokenizer
        with pytest.raises(ValueError, match="is no sentence encoder: an encoder alone and its tokenizer are needed"):
            interop.sentence_encoder(path)
