"""What objectives need of a tokenizer: trained ones have it, others are refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from tests.text import cases
from transformer import data, text
from transformer.data import preparing
from transformer.data.spans import span_corruption, span_lengths
from transformer.text.special import Special

TEXTS = ["some text of nothing " * 40]
ROLES = {
    "wordpiece": Special(sep="[SEP]", cls="[CLS]", pad="[PAD]", mask="[MASK]"),
    "unigram": Special(eos="</s>", pad="<pad>", unk="<unk>"),
    "fallback": Special(bos="<s>", eos="</s>", unk="<unk>"),
}


def config(kind, **changes):
    objective = data.Objective(kind, **changes.pop("options", {}))
    path = "a,b" if kind == "pairs" else "a"
    return data.Data(path=path, objective=objective, tokenizer=data.Tokenizer(vocab=400), **changes)


def published(name):
    return text.Published(getattr(cases, name)(), special=ROLES[name])


def trained(kind, **changes):
    return preparing.train_tokenizer(config(kind, **changes), TEXTS, [])


def error(wanted, tokenizer):
    with pytest.raises(ValueError) as caught:
        preparing.check_tokenizer(wanted, tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_trained_tokenizer_has_a_mask_where_tokens_are_masked():
    for kind in ("masked", "causal", "prefix", "pairs", "spans"):
        tokenizer = trained(kind, length=16)
        assert (tokenizer.mask is not None) == (kind == "masked")
        assert bool(tokenizer.sentinels) == (kind == "spans")
    masked = trained("masked")
    assert masked.spellings[masked.mask] == preparing.MASK.encode() and masked.mask in masked.special
    assert masked.mask not in masked.encode("what [MASK] hides")


@pytest.mark.parametrize("options", [{}, {"rate": 0.5, "span": 1.0}, {"rate": 0.3, "span": 20.0}])
@pytest.mark.parametrize("length", [3, 16, 57, 256])
def test_a_trained_tokenizer_has_a_sentinel_for_each_span_of_the_longest_row(length, options):
    wanted = config("spans", length=length, options=options)
    names = preparing.special_tokens(wanted.objective, length)
    assert names == tuple(f"<extra_id_{index}>" for index in range(len(names)))
    random, objective = np.random.default_rng(0), wanted.objective
    longest, targets = span_lengths(length, rate=objective.rate, span=objective.span)
    special = {"start": 0, "end": 0, "rate": objective.rate, "span": objective.span}
    for tokens in range(2, longest + 1):
        span_corruption(np.arange(tokens), random, sentinels=range(1000, 1000 + len(names)), **special)
    example = span_corruption(np.arange(longest), random, sentinels=range(1000, 2000), **special)
    assert len(example["targets"]) == targets
    assert sum(token >= 1000 for token in example["source"].tolist()) == len(names)  # and none is left over


def test_sentinels_are_no_text():
    tokenizer = trained("spans", length=64)
    assert len(tokenizer.sentinels) == preparing.most_spans(data.Objective("spans"), 64) > 1
    assert not set(tokenizer.sentinels) & set(tokenizer.encode("an <extra_id_0> of text").tolist())


def test_the_validation_side_teaches_a_table_of_characters_alone():
    train, everything = ["abab" * 40], ["abab" * 40, "xyxy" * 40]
    bpe = preparing.train_tokenizer(config("causal"), train, everything)
    assert b"ab" in bpe.spellings and b"xy" not in bpe.spellings
    table = data.Data(path="a", tokenizer=data.Tokenizer("characters", fallback=False))
    assert set(preparing.train_tokenizer(table, train, everything).spellings) == {b"a", b"b", b"x", b"y"}


@pytest.mark.parametrize("kind", data.config.OBJECTIVES)
def test_a_trained_tokenizer_is_enough(kind):
    for segments in (False, True):
        preparing.check_tokenizer(config(kind, length=32, segments=segments), trained(kind, length=32))


@pytest.mark.parametrize(
    ("kind", "tokenizer", "message"),
    [
        ("masked", text.Bytes(), "'masked' needs a mask token, and the tokenizer of kind 'bytes' has none: choose"),
        ("masked", published("unigram"), "'masked' needs a mask token, and the tokenizer of kind 'published' has none"),
        # By hand: of 284 tokens 43 are noise in 14 spans, so the source has 284 - 43 + 14 + 1 = 256; of 285, 257.
        ("spans", text.Bytes(), "'spans' needs 14 sentinels at data.length=256, and the tokenizer of kind 'bytes' has"),
        ("spans", text.Characters.train(["abc"]), "'spans' needs a token that ends texts, and the tokenizer of kind "),
        ("pairs", text.Characters.train(["abc"]), "has none: set data.tokenizer.end=True"),
    ],
)
def test_refuses_a_tokenizer_that_lacks_what_the_objective_needs(kind, tokenizer, message):
    said = error(config(kind), tokenizer)
    assert said.startswith(f"data.objective.kind='{kind}' ") and message in said


def test_only_where_it_helps_is_an_end_token_proposed():
    assert "let tokenizer.kind='bpe' be trained" in error(config("spans"), text.Characters.train(["abc"]))


def test_refuses_one_sentinel_too_few_and_says_what_would_do():
    wanted = config("spans", length=256)
    names = preparing.special_tokens(wanted.objective, 256)
    few, enough = (text.BPE.train(TEXTS, 400, special=some) for some in (names[:-1], names))
    said = error(wanted, few)
    assert "needs 14 sentinels at data.length=256, and the tokenizer of kind 'bpe' has 13: " in said
    assert said.endswith("or lower data.length")
    preparing.check_tokenizer(wanted, enough)
    preparing.check_tokenizer(config("spans", length=200), few)


def test_refuses_documents_that_nothing_opens():
    table = text.Characters.train(["abc"])
    for kind in ("causal", "prefix", "masked", "spans"):
        said = error(config(kind, segments=True), table)
        assert said.startswith("data.segments=True needs a token that opens documents, and the tokenizer of kind 'char")
    ended = text.Characters.train(["abc"], end=True)
    preparing.check_tokenizer(config("prefix", segments=True), ended)
    preparing.check_tokenizer(config("pairs", segments=True), ended)  # pairs are apart without one


def test_published_tokenizers_serve_what_they_were_made_for():
    preparing.check_tokenizer(config("masked", segments=True), published("wordpiece"))
    for name in ROLES:
        preparing.check_tokenizer(config("pairs"), published(name))


@pytest.mark.filterwarnings("ignore:builtin type .wig:DeprecationWarning")  # of the package's import
def test_refuses_pairs_by_a_tokenizer_of_sources_alone(tmp_path):
    marian = text.load(cases.marian(tmp_path / "marian", source_lang="en", target_lang="fr"))
    assert "the tokenizer of kind 'marian' spells source texts alone" in error(config("pairs"), marian)


def test_a_decoder_begins_with_padding_if_there_is_some_and_else_with_the_end():
    # T5's decoder begins with <pad>; where no model has begun with anything, the end closes the text before.
    padded, plain = published("unigram"), published("fallback")
    assert data.begins_with(padded) == padded.pad != padded.end
    assert data.begins_with(plain) == plain.end != plain.begin
    assert data.begins_with(text.Bytes()) == text.Bytes().end
    assert data.begins_with(text.Characters.train(["abc"])) is None
