"""BLEU and chrF against loops of their own, and what surrounds a score."""

import logging
import math
import sys

import numpy as np
import pytest

from experiments import scores

HYPOTHESES = [
    "a man in a blue shirt is standing on a ladder cleaning a window .",
    "two dogs are playing in the the the snow .",
    "a woman is reading a book",
    "people",
    "",
]
REFERENCES = [
    "a man in a blue shirt is standing on a ladder and cleans the window .",
    "two dogs play in the snow together .",
    "a woman reads a book in the park .",
    "some people wait for the train .",
    "nobody is here .",
]


def grams(sequence, n):
    counts = {}
    for start in range(len(sequence) - n + 1):
        gram = tuple(sequence[start : start + n])
        counts[gram] = counts.get(gram, 0) + 1
    return counts


def matches(hypothesis, reference, n):
    ours, theirs = grams(hypothesis, n), grams(reference, n)
    return sum(min(count, theirs.get(gram, 0)) for gram, count in ours.items())


def plain_bleu(hypotheses, references):
    """Of lists of tokens; every order must have a match somewhere, so that nothing is smoothed."""
    pairs = list(zip(hypotheses, references, strict=True))
    product = 1.0
    for n in range(1, 5):
        total = sum(max(len(hypothesis) - n + 1, 0) for hypothesis, _ in pairs)
        product *= sum(matches(hypothesis, reference, n) for hypothesis, reference in pairs) / total
    ours, theirs = (sum(map(len, side)) for side in (hypotheses, references))
    brevity = math.exp(1 - theirs / ours) if ours < theirs else 1.0
    return 100 * brevity * product**0.25


def plain_chrf(hypotheses, references):
    pairs = [("".join(a.split()), "".join(b.split())) for a, b in zip(hypotheses, references, strict=True)]
    precisions, recalls = [], []
    for n in range(1, 7):
        found = sum(matches(hypothesis, reference, n) for hypothesis, reference in pairs)
        precisions.append(found / sum(max(len(hypothesis) - n + 1, 0) for hypothesis, _ in pairs))
        recalls.append(found / sum(max(len(reference) - n + 1, 0) for _, reference in pairs))
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


@pytest.mark.parametrize("order", [1, -1])  # hypotheses that are shorter than the references, and longer ones
def test_bleu_of_tokens_is_that_of_a_plain_loop(order):
    ours, theirs = (HYPOTHESES, REFERENCES)[::order]
    expected = plain_bleu([text.split() for text in ours], [text.split() for text in theirs])
    # Both are float64; the order of products and logarithms differs.
    assert scores.bleu(ours, theirs, tokenize="none").value == pytest.approx(expected, rel=1e-9)
    assert 10 < expected < 90


def test_bleu_cuts_marks_off_words_unless_told_otherwise():
    ours, theirs = ["the cat sat, on the mat."], ["the cat sat on the mat."]
    cut = [["the", "cat", "sat", ",", "on", "the", "mat", "."]], [["the", "cat", "sat", "on", "the", "mat", "."]]
    assert scores.bleu(ours, theirs).value == pytest.approx(plain_bleu(*cut), rel=1e-9)
    assert scores.bleu(ours, theirs, "none").value < scores.bleu(ours, theirs).value


def test_chrf_is_that_of_a_plain_loop():
    ours, theirs = HYPOTHESES[:3], REFERENCES[:3]  # shorter references have no 6-grams, which have a rule of their own
    expected = plain_chrf(ours, theirs)
    assert scores.chrf(ours, theirs).value == pytest.approx(expected, rel=1e-9)
    assert 10 < expected < 90


def test_extremes():
    for score in (scores.bleu, scores.chrf):
        assert score(REFERENCES, REFERENCES).value == pytest.approx(100, rel=1e-9)
        assert score([""] * 5, REFERENCES).value == 0


def test_a_signature_says_how():
    sacrebleu = sys.modules["sacrebleu"]
    for tokenize in scores.TOKENIZE:
        score = scores.bleu(HYPOTHESES, REFERENCES, tokenize)
        parts = score.signature.split("|")
        assert {f"tok:{tokenize}", f"version:{sacrebleu.__version__}", "case:mixed", "nrefs:1"} <= set(parts)
    assert str(score) == f"{score.value:.2f} ({score.signature})"
    parts = scores.chrf(HYPOTHESES, REFERENCES).signature.split("|")
    assert {"nc:6", "nw:0", f"version:{sacrebleu.__version__}"} <= set(parts)


def test_tokenised_text_brings_a_warning_only_where_it_is_not_expected(caplog):
    lines = ["a b c d ."] * 100
    with caplog.at_level(logging.WARNING):
        scores.bleu(lines, lines, tokenize="none")
        scores.chrf(lines, lines)
        assert caplog.text == ""
        scores.bleu(lines, lines)
    assert "forgot to detokenize" in caplog.text


def test_exact_counts_whole_sequences():
    assert scores.exact(["ab", "ba", "", "a"], ["ab", "ab", "", "ab"]) == 0.5
    assert scores.exact([[1, 2], [3]], [np.array([1, 2]), np.array([3, 4])]) == 0.5
    assert scores.exact([(1,)], [[1]]) == 1.0


@pytest.mark.parametrize("score", [scores.bleu, scores.chrf, scores.exact])
def test_what_cannot_be_scored_is_refused(score):
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="are empty"):
        score([], [])
    with pytest.raises(ValueError, match="not one string"):
        score("a", ["a"])


def test_other_mistakes_are_one_line(monkeypatch):
    with pytest.raises(ValueError, match=r"hypotheses\[1\] must be a string, not list"):
        scores.bleu(["a", [1]], ["a", "b"])
    with pytest.raises(ValueError, match=r"references\[0\] must be a string, not NoneType"):
        scores.chrf(["a"], [None])
    with pytest.raises(ValueError, match=r"tokenize='words' is not known: choose one of 13a, .*none"):
        scores.bleu(["a"], ["a"], tokenize="words")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"sacrebleu is not installed: pip install .*\[translate\]'"):
        scores.bleu(["a"], ["a"])
