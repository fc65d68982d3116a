"""How good translations are: BLEU and chrF as sacrebleu counts them, each with its signature, and the share right."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

TOKENIZE = ("13a", "intl", "zh", "char", "none")  # those of sacrebleu that need nothing else installed


class Score(NamedTuple):
    """A score from 0 to 100, and what another paper needs to know to compute the same (Post 2018)."""

    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.signature})"


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Score:
    """Corpus BLEU up to 4-grams: `100 * brevity * (p1 p2 p3 p4) ** (1/4)`.

    `p_n` is the share of the hypotheses' n-grams that are in their reference, each counted at most as often as there,
    over the whole corpus; `brevity` is `exp(1 - reference length / hypothesis length)` where the hypotheses are shorter
    and 1 where not (Papineni et al. 2002, section 2). sacrebleu warns on stderr where the text looks as if it was cut
    into tokens already, which "none" expects.

    Args:
      hypotheses: one text for each reference.
      references: the texts to compare with.
      tokenize: how sacrebleu cuts text into tokens: one of `TOKENIZE`. Text that comes in tokens, with spaces between
        them, as data sets in lower case do: "none".

    Raises:
      ValueError: if there are no texts, not as many of either, or one is no string; `tokenize` is unknown; or
        sacrebleu is not installed.
    """
    if tokenize not in TOKENIZE:
        raise ValueError(f"tokenize={tokenize!r} is not known: choose one of {', '.join(TOKENIZE)}")
    return _score(sacrebleu().metrics.BLEU(tokenize=tokenize, force=tokenize == "none"), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """Corpus chrF2: `100 * 5 P R / (4 P + R)`, of precision and recall of characters, without spaces.

    P and R are means over n = 1 to 6 of the shares of the hypotheses' and the references' n-grams that match
    (Popović 2015, section 2, with beta = 2 as in Popović 2016). Nothing depends on tokens.

    Args:
      hypotheses: one text for each reference.
      references: the texts to compare with.

    Raises:
      ValueError: as `bleu`.
    """
    return _score(sacrebleu().metrics.CHRF(), hypotheses, references)


def exact(hypotheses: Sequence[Sequence[str | int]], references: Sequence[Sequence[str | int]]) -> float:
    """The share of hypotheses, texts or rows of ids, that equal their reference in every element.

    Raises:
      ValueError: if there are none, or not as many of either.
    """
    _check_lengths(hypotheses, references)
    pairs = zip(hypotheses, references, strict=True)
    return sum(list(hypothesis) == list(reference) for hypothesis, reference in pairs) / len(references)


def _score(metric, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    _check_lengths(hypotheses, references)
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{index}] must be a string, not {type(text).__name__}: decode it first")
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return Score(value, str(metric.get_signature()))


def _check_lengths(hypotheses: Sequence, references: Sequence) -> None:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("hypotheses and references must be lists, not one string: put a single text into a list")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"there are {len(hypotheses)} hypotheses for {len(references)} references: give one for each, in order"
        )
    if not len(references):
        raise ValueError("hypotheses and references are empty: no score is defined without any")


def sacrebleu() -> ModuleType:
    """The library; raises ValueError if it is not installed."""
    try:
        import sacrebleu
    except ImportError:
        raise ValueError("sacrebleu is not installed: pip install 'transformer-research[translate]'") from None
    return sacrebleu
