"""Searches over many sources, with the search itself replaced by a table; and what is measured of outputs."""

import dataclasses
import math
import types

import numpy as np
import pytest

from experiments import loading, scores, translation
from transformer import data, decoding, models
from transformer.decoding import Hypotheses

END, START = 7, 6


@pytest.fixture
def trained(paired):
    """The model's vocabulary has 8 entries, its tokenizer the letters a to d and the end."""
    return dataclasses.replace(loading.load(paired.workdir / "run"), start=START, stop=(END,), banned=(5,))


@pytest.fixture
def asked(monkeypatch):
    """What the search was asked for. It finds a source, and second-best the same without the first."""
    calls = []

    def search(model, params, prompt, *, source, length, count, **options):
        calls.append({"prompt": prompt, "source": source, "length": length, "count": count, **options})
        shape = (len(source), count)
        tokens = np.zeros((*shape, length + 3), np.int32)  # the cache has more places than are asked for
        lengths, values = np.zeros(shape, np.int32), np.full(shape, -np.inf, np.float32)
        for row, ids in enumerate(source):
            for rank in range(min(count, 2)):
                found = [*ids[rank:-1], 5, END]  # the tokenizer does not have them
                tokens[row, rank, : len(found)], lengths[row, rank] = found, len(found)
                values[row, rank] = -len(ids) - rank
        return Hypotheses(tokens, lengths, 2 * values, values)

    monkeypatch.setattr(decoding, "beam_search", search)
    return calls


LENGTHS = (40, 3, 33, 1, 32, 31, 3, 20, 41)


def sources(trained):
    """The letter of each source is its own, with its end."""
    return [[index % 4] * (length - 1) + [trained.tokenizer.end] for index, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_outputs_come_in_the_order_of_their_sources_whatever_is_searched_together(trained, asked, size):
    outputs = translation.translate(trained, sources(trained), translation.Search(batch_size=size, count=3))
    for index, (length, row) in enumerate(zip(LENGTHS, outputs, strict=True)):
        letters = "abcd"[index % 4] * (length - 1)
        assert [output.text for output in row] == [letters, letters[1:]]  # and not the third, whose score is -inf
        values = [(-length - rank, 2 * (length + rank)) for rank in (0, 1)]
        assert [(output.score, output.nats) for output in row] == values
    # Two programs are compiled, for six sources of up to 32 tokens and for three of up to 64, without rows for nothing.
    shapes = [min(size, count) for count in (6, 3) for _ in range(-(-count // size))]
    assert [len(call["source"]) for call in asked] == [len(call["prompt"]) for call in asked] == shapes


def test_how_long_an_output_may_become_is_a_matter_of_its_source_alone(trained, asked):
    allowed = {}
    for size in (1, 3, 64):
        asked.clear()
        translation.translate(trained, sources(trained), translation.Search(batch_size=size))
        for call in asked:
            for ids in call["source"]:
                assert call["length"] >= len(ids) + translation.LONGER and call["capacity"] >= call["length"]
                allowed.setdefault(tuple(ids), set()).add(call["length"])
    assert all(len(lengths) == 1 for lengths in allowed.values()) and len(set.union(*allowed.values())) == 2


def test_the_search_gets_what_was_chosen_and_what_the_model_needs(trained, asked):
    search = translation.Search(beams=5, length_penalty=0.25, coverage=0.5, ratio=1.5, count=2)
    translation.translate(trained, [[0, 1]], search)
    (call,) = asked
    chosen = {"beams": 5, "length_penalty": 0.25, "coverage": 0.5, "ratio": 1.5, "count": 2}
    assert {name: call[name] for name in chosen} == chosen
    assert (call["prompt"], call["source"], call["stop"], call["banned"]) == ([[START]], [[0, 1]], (END,), (5,))


def test_a_learned_table_of_positions_ends_outputs(trained, asked):
    config = trained.model.config
    learned = dataclasses.replace(config.decoder, position=models.Position("learned"))
    model = models.Transformer(dataclasses.replace(config, decoder=learned, length=64))
    translation.translate(dataclasses.replace(trained, model=model), [[0] * 40], translation.Search())
    assert (asked[0]["length"], asked[0]["capacity"]) == (64, 64)


def test_nothing_is_translated_without_a_source_or_a_first_token(trained):
    alone = models.Transformer(dataclasses.replace(trained.model.config, encoder=None))
    with pytest.raises(ValueError, match="step 3 is no encoder with a decoder, so it has no source to read"):
        translation.translate(dataclasses.replace(trained, model=alone), [[1]], translation.Search())
    with pytest.raises(ValueError, match="names no decoder_start_token_id"):
        translation.translate(dataclasses.replace(trained, start=None), [[1]], translation.Search())
    assert translation.translate(trained, [], translation.Search()) == []
    with pytest.raises(ValueError, match="ratio=-1: it must be a positive number"):
        translation.check(trained, translation.Search(ratio=-1))
    with pytest.raises(ValueError, match="--count=3 exceeds --beams=2: raise the latter"):
        translation.Search(beams=2, count=3).check()


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_a_model_out_of_its_range_gives_no_empty_translations(trained, monkeypatch, number):
    def search(model, params, prompt, *, source, length, count, **options):
        scored = np.full((len(source), count), [[-1.0]] * (len(source) - 1) + [[number]])
        tokens = np.zeros((len(source), count, length), np.int32)
        return Hypotheses(tokens, tokens[..., 0], scored, scored)

    monkeypatch.setattr(decoding, "beam_search", search)
    with pytest.raises(ValueError, match="step 3 gives scores that are not finite"):
        translation.translate(trained, [[0, 1], [1, 0]], translation.Search())


def test_texts_become_sources_and_are_refused_by_name(trained):
    end = trained.tokenizer.end
    assert translation.longest(trained) == 41
    named = [("a", "ab"), ("b", "d" * 40)]
    assert translation.sources_of(trained, named) == [[0, 1, end], [3] * 40 + [end]]
    for text in ("", " \t"):
        with pytest.raises(ValueError, match="line 7 is empty: take it out, or give it some text"):
            translation.sources_of(trained, [*named, ("line 7", text)], truncate=True)
    with pytest.raises(ValueError, match=r"^line 7: text\[1\] is 'H'"):
        translation.sources_of(trained, [*named, ("line 7", "aHb")])
    long = ("line 8", "ad" * 21)
    with pytest.raises(ValueError, match="line 8 has 43 tokens with its end, and step 3 reads at most 41: shorten it"):
        translation.sources_of(trained, [*named, long])
    assert translation.sources_of(trained, [long], truncate=True) == [[0, 3] * 20 + [end]]
    folder = dataclasses.replace(trained, experiment=None)  # such as a Marian model, whose table of positions says it
    assert translation.longest(folder) == trained.model.config.length == 64


def test_validation_pairs_are_those_that_were_held_out(trained, paired):
    ids, targets = translation.held_out(trained, data.load(paired.workdir / "run" / "data"))
    assert all(row[-1] == trained.tokenizer.end for row in ids) and len(ids) > 1
    texts = [trained.tokenizer.decode(row) for row in ids]
    assert set(texts) <= set(paired.text.split()) and [text[::-1] for text in texts] == targets


def test_references_that_are_not_the_whole_truth_are_said_to_be_so(trained, monkeypatch):
    def said(cut, left_out):
        counts = {"cut": cut, "left_out": left_out}
        return translation.reservations(trained, types.SimpleNamespace(counts={"validation": counts}))

    assert said(0, 0) == ""
    assert said(1200, 3) == "of the references 1,200 are cut, 3 more are left out: --pairs measures on whole ones"
    assert said(0, 3) == "of the references 3 more are left out: --pairs measures on whole ones"
    monkeypatch.setattr(trained.tokenizer, "kind", "wordpiece", raising=False)
    assert said(0, 0) == "of the references all are as the tokenizer spells them: --pairs measures on whole ones"


def output(text):
    return [translation.Output(text, 0.0, 0.0)]


def test_tasks_are_right_or_wrong_and_translations_are_scored():
    references = ["abc def ghi jkl", "one two three four five", "x"]
    outputs = [output("abc def ghi jkl"), output("one two three five"), []]
    exact = translation.measure(outputs, references, "task:copy:1-9", "13a")
    assert exact == {"exact": pytest.approx(1 / 3), "sequences": 3}
    assert translation.spoken(exact) == "33.33% of 3 sequences right"
    noted = translation.spoken(exact | {"note": "half of it"})
    assert noted == "33.33% of 3 sequences right\nnote: half of it"
    measured = translation.measure(outputs, references, "a,b", "none")
    texts = [references[0], "one two three five", ""]
    assert measured["bleu"] == scores.bleu(texts, references, "none").value
    assert measured["chrf"] == scores.chrf(texts, references).value
    assert "tok:none" in measured["bleu_signature"] and not math.isclose(measured["bleu"], measured["chrf"])
    lines = translation.spoken(measured).splitlines()
    assert lines[0].startswith(f"BLEU {measured['bleu']:.2f} (nrefs:1|") and lines[1].startswith("chrF2 ")
