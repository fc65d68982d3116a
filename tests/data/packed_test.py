"""Packed rows: every example whole, once an epoch, apart from its neighbours on both sides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.data import buckets_test
from transformer import data, text
from transformer.data.corpus import Corpus
from transformer.data.packed import of_documents

LENGTH = 48


@pytest.fixture(scope="module")
def tokenizer():
    names = [f"<extra_id_{index}>" for index in range(8)]
    return text.BPE.train(["some text of nothing " * 40], 290, special=names)


def corpus(tokenizer, documents, **objective):
    """Documents of ids, for span corruption."""
    stream = np.concatenate([np.r_[tokenizer.end, ids] for ids in documents]).astype(np.uint16)
    return Corpus(stream, stream, tokenizer, LENGTH, True, {}, {}, data.Objective("spans", **objective))


def documents(seed=0, count=30, longest=80):
    random = np.random.default_rng(seed)
    return [random.integers(60, 90, length) for length in random.integers(2, longest, count)]


def chunks(made, whole):
    """What documents are packed as: by hand, a row's worth of tokens after the other, but no rest of one token."""
    pieces = [ids[first : first + made.stride] for ids in whole for first in range(0, len(ids), made.stride)]
    return Counter(tuple(piece.tolist()) for piece in pieces if len(piece) > 1)


def sides(row):
    """By segment, what a packed row holds of its examples: source, inputs and targets."""
    assert set(row["segments"]) - {0} == set(row["source_segments"]) - {0}
    assert not row["weights"][row["segments"] == 0].any()
    found = []
    for number in range(1, row["segments"].max() + 1):
        here, there = row["segments"] == number, row["source_segments"] == number
        assert row["positions"][here].tolist() == list(range(here.sum()))
        assert row["source_positions"][there].tolist() == list(range(there.sum()))
        if row["weights"][here].any():
            assert row["weights"][here].all()
            found.append(tuple(tuple(row[n][w].tolist()) for n, w in zip(PARTS, (there, here, here), strict=True)))
    return found


PARTS = ("source", "inputs", "targets")


def rows(batch):
    return [{name: array[index] for name, array in batch.items()} for index in range(len(batch["inputs"]))]


def examples(batches):
    return [example for batch in batches for row in rows(batch) for example in sides(row)]


def restored(example, tokenizer):
    """The document that a corrupted one came from."""
    source, inputs, targets = example
    assert source[-1] == targets[-1] == tokenizer.end and inputs == (tokenizer.end, *targets[:-1])
    spans, sentinels = {}, set(tokenizer.sentinels)
    for token in targets[:-1]:
        if token in sentinels:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    return tuple(t for token in source[:-1] for t in (spans[token] if token in sentinels else [token]))


def expected(bitext, start=buckets_test.END, end=buckets_test.END):
    """Every pair as teacher forcing wants it."""
    pairs = [(bitext.train.source[index], bitext.train.target[index]) for index in range(len(bitext.train))]
    return Counter(((*source, end), (start, *target), (*target, end)) for source, target in pairs)


def epoch_after_epoch(pipeline, total, take, epochs=2):
    """The examples of the first epochs, each of which has `total`; `pipeline` has one row in a batch."""
    found = []
    for _ in range(epochs):
        found.append([])
        while len(found[-1]) < total:
            found[-1] += [take(example) for example in examples([next(pipeline)])]
    return found


def test_every_pair_is_packed_whole_and_once_an_epoch():
    bitext = buckets_test.bitext(segments=True)
    wanted = expected(bitext)
    pipeline = data.batches(bitext, batch_size=1, seed=0)
    first, second = epoch_after_epoch(pipeline, len(bitext.train), lambda example: example)
    assert Counter(first) == Counter(second) == wanted and first != second
    assert Counter(examples(data.validation_batches(bitext, batch_size=4))) == wanted


def test_rows_hold_several_pairs_and_no_more_than_fit():
    bitext = buckets_test.bitext(segments=True)
    batches = list(data.validation_batches(bitext, batch_size=4))
    assert {batch[name].shape for batch in batches for name in batch} == {(4, bitext.length)}
    assert max(batch["segments"].max() for batch in batches) > 1
    assert all("mask" not in name for name in batches[0])  # segments say what is padding


def test_every_document_is_packed_whole_and_once_an_epoch(tokenizer):
    whole = documents()
    made = corpus(tokenizer, whole)
    wanted = chunks(made, whole)
    pipeline = data.batches(made, batch_size=1, seed=0)
    first, second = epoch_after_epoch(pipeline, wanted.total(), lambda example: (restored(example, tokenizer), example))
    assert Counter(document for document, _ in first) == Counter(document for document, _ in second) == wanted
    assert len({example for _, example in first} & {example for _, example in second}) < 0.5 * wanted.total()
    validation = list(data.validation_batches(made, batch_size=4))
    assert Counter(restored(example, tokenizer) for example in examples(validation)) == wanted
    assert {batch["source"].shape for batch in validation} == {(4, LENGTH)}


@pytest.mark.parametrize("objective", [{}, {"rate": 0.5, "span": 1.0}, {"rate": 0.8, "span": 1.0}, {"span": 9.0}])
def test_a_document_of_any_length_fits(tokenizer, objective):
    longest = corpus(tokenizer, [[65]], **objective).stride
    made = corpus(tokenizer, [np.full(length, 65) for length in range(2, longest + 1)], **objective)
    packed = of_documents(made.train, made)
    targets, source = packed.lengths.max(axis=0).tolist()
    assert len(packed.lengths) == longest - 1 and packed.capacity == (targets, LENGTH)
    assert source in (LENGTH, LENGTH - 1)  # a token more may make two of a source: itself and its sentinel


def test_spans_are_drawn_anew_and_yet_a_function_of_seed_and_step(tokenizer):
    made = corpus(tokenizer, documents())
    first, again, other = (data.batches(made, batch_size=2, seed=seed) for seed in (0, 0, 1))
    count = len({row["source"].tobytes() for _ in range(30) for row in rows(next(first))})
    assert count > 40  # of 60 visits to fewer rows, most of them corrupted in another way each time
    buckets_test.same(first.batch_at(9), again.batch_at(9))
    assert (first.batch_at(9)["source"] != other.batch_at(9)["source"]).any()


@pytest.mark.parametrize("kind", ["pairs", "documents"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_resuming_and_sharing_change_nothing(tokenizer, kind, count):
    made = buckets_test.bitext(segments=True) if kind == "pairs" else corpus(tokenizer, documents())
    whole = data.batches(made, batch_size=4, seed=3)
    batches = [next(whole) for _ in range(12)]
    shares = [{"batch_size": 4, "process_index": index, "process_count": count} for index in range(count)]
    late = [data.batches(made, seed=3, start=7, **share) for share in shares]
    for batch in batches[7:]:
        buckets_test.same(buckets_test.joined([next(one) for one in late]), batch)
    parts = [data.validation_batches(made, **share) for share in shares]
    for batch, *own in zip(data.validation_batches(made, batch_size=4), *parts, strict=True):
        buckets_test.same(buckets_test.joined(own), batch)


@pytest.mark.parametrize("kind", ["pairs", "documents"])
def test_validation_is_always_the_same_and_fills_up_at_weight_zero(tokenizer, kind):
    made = buckets_test.bitext(segments=True) if kind == "pairs" else corpus(tokenizer, documents())
    count = sum(int(batch["weights"].any()) for batch in data.validation_batches(made, batch_size=1))
    for batch_size in (count - 1, count + 1):  # either leaves places over in its last batch
        first, again = (list(data.validation_batches(made, batch_size=batch_size)) for _ in range(2))
        for one, two in zip(first, again, strict=True):
            buckets_test.same(one, two)
        real = np.concatenate([batch["weights"].any(axis=1) for batch in first])
        assert real.tolist() == [True] * count + [False] * (len(first) * batch_size - count)


@pytest.mark.parametrize("kind", ["pairs", "documents"])
def test_fill_is_the_share_of_places_with_tokens(tokenizer, kind):
    made = buckets_test.bitext(segments=True) if kind == "pairs" else corpus(tokenizer, documents())
    pipeline = data.batches(made, batch_size=1, seed=0)
    total = len(made.train) if kind == "pairs" else chunks(made, documents()).total()
    found, shares = 0, []
    while found < total:
        batch = next(pipeline)
        found += batch["segments"].max()
        shares.append([(batch[name] > 0).mean() for name in ("segments", "source_segments")])
    assert found == total and 0.5 < pipeline.fill <= 1
    assert pipeline.fill == pytest.approx(np.mean(shares))


def test_one_pair_fills_a_batch():
    one = buckets_test.bitext(1, segments=True)
    pipeline = data.batches(one, batch_size=4, seed=0)
    for _ in range(3):
        assert Counter(examples([next(pipeline)])) == Counter({next(iter(expected(one))): 4})
    (batch,) = data.validation_batches(one, batch_size=4)
    assert Counter(examples([batch])) == expected(one)


def test_a_decoder_begins_with_padding_where_there_is_some():
    names = ["<pad>", *(f"<extra_id_{index}>" for index in range(8))]
    padded = text.BPE.train(["some text of nothing " * 40], 290, special=names)
    bitext = buckets_test.bitext(segments=True, tokenizer=padded)
    found = Counter(examples(data.validation_batches(bitext, batch_size=4)))
    assert found == expected(bitext, start=padded.pad, end=padded.end)
    spans = examples(data.validation_batches(corpus(padded, documents()), batch_size=4))
    assert spans and {inputs[0] for _, inputs, _ in spans} == {padded.pad}


def test_documents_too_short_to_corrupt_are_left_out_and_refused_if_there_is_nothing_else(tokenizer):
    made = corpus(tokenizer, [[65], [66, 67, 68], [], [69]])
    assert of_documents(made.train, made).lengths.tolist() == [[3, 4]]
    with pytest.raises(ValueError, match="no document of two tokens"):
        data.batches(corpus(tokenizer, [[65], []]), batch_size=1, seed=0)


def test_a_corpus_whose_documents_are_all_too_short_is_not_made(tmp_path):
    """So that a run ends before it begins, and not at its first evaluation."""
    for name in "abcdefghijklmnopqrstuvwxyz":
        (tmp_path / f"{name}.txt").write_text(name)
    wanted = data.Data(
        path=str(tmp_path), length=8, segments=True, objective=data.Objective("spans"),
        tokenizer=data.Tokenizer(vocab=300),
    )  # fmt: skip
    with pytest.raises(ValueError, match="the train side has no document of two tokens or more") as caught:
        data.prepare(wanted, tmp_path / "corpus")
    assert "\n" not in str(caught.value) and not (tmp_path / "corpus").exists()
    (tmp_path / "long.txt").write_text("of ten words or more that are on one side alone")
    with pytest.raises(ValueError, match=r"the (train|validation) side has (no document of two|\d+ tokens, but one)"):
        data.prepare(wanted, tmp_path / "corpus")
    for number in range(9):
        (tmp_path / f"long{number}.txt").write_text(f"of words {number} or more that are on both sides {number}")
    made = data.prepare(wanted, tmp_path / "corpus")
    assert data.batches(made, batch_size=1, seed=0).fill > 0 and list(data.validation_batches(made, batch_size=1))
