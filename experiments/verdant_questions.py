"""What a verdant sentence asks of a noun's vector, with the answers that are right, as arrays.

Two things have to be known where a noun stands, since the next word may depend on either: the sense that the topic
fixes, and the manners that go with the adjectives. A question is one of them at one noun, together with the same
sentence in another context, where another answer is right.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.verdant_grammar import Sentence, sample, vocabulary
from experiments.verdant_lexicon import ENGLISH, Lexicon, Words
from transformer.text import END


class Question(NamedTuple):
    """One question in words; positions count words from 0.

    Attributes:
      words: the sentence up to the noun.
      sources: where the words stand that decide.
      others: what stands there in the other context.
      answers: the words of each answer that come next if it is right.
      right, other: which answer is right, and which one is in the other context.
      group: questions of one group have the same answers.
    """

    words: Words
    sources: tuple[int, ...]
    others: Words
    answers: tuple[Words, ...]
    right: int
    other: int
    group: str


class Questions(NamedTuple):
    """Questions as arrays, answers of one with fewer than the others filled up with impossible ones.

    Attributes:
      tokens: `[N, T]` ids, END first and behind the noun.
      others: `[N, T]`, the same in the other context.
      noun: `[N]`, where it stands.
      sources: `[N, T]` booleans, the words that decide.
      answers: `[N, C, V]` booleans, the words of each answer.
      right, other: `[N]`, which answer.
      group: `[N]` strings.
    """

    tokens: np.ndarray
    others: np.ndarray
    noun: np.ndarray
    sources: np.ndarray
    answers: np.ndarray
    right: np.ndarray
    other: np.ndarray
    group: np.ndarray


def numbers(lexicon: Lexicon = ENGLISH) -> dict[str, int]:
    """The id of every word; 0 is END, which opens a sentence and ends it."""
    return {word: index for index, word in enumerate((END, *vocabulary(lexicon)))}


def encode(sentences: Sequence[Sequence[str]], ids: Mapping[str, int], length: int) -> np.ndarray:
    """Sentences of at most `length - 1` words behind END, filled up with END: ids `[N, length]`."""
    tokens = np.full((len(sentences), length), ids[END], np.int32)
    for row, words in zip(tokens, sentences, strict=True):
        row[1 : 1 + len(words)] = [ids[word] for word in words]
    return tokens


def collect(kind: Callable[..., Iterator[Question]], count: int, generator: random.Random, lexicon: Lexicon = ENGLISH):
    """So many questions of a kind, `senses` or `manners`, about sentences that are drawn until there are enough."""
    drawn = (kind(sample(generator, lexicon), generator, lexicon) for _ in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(drawn), count))


def senses(sentence: Sentence, generator: random.Random, lexicon: Lexicon = ENGLISH) -> Iterator[Question]:
    """Which sense an ambiguous noun has; place and person belong to another topic in the other context."""
    for noun, word in enumerate(sentence):
        if word.sense is not None:
            meanings = lexicon.ambiguous[word.text]
            topics = list(meanings)
            right = [meaning.name for meaning in meanings.values()].index(word.sense)
            other = _another(right, len(topics), generator)
            here, there = (lexicon.topics[topics[index]] for index in (right, other))
            lists = {text: new for old, new in zip(here, there, strict=True) for text in old}
            others = tuple(generator.choice(lists[sentence[place].text]) for place in word.because)
            answers = tuple(meaning.verbs for meaning in meanings.values())
            yield Question(_until(sentence, noun), word.because, others, answers, right, other, word.text)


def manners(sentence: Sentence, generator: random.Random, lexicon: Lexicon = ENGLISH) -> Iterator[Question]:
    """Which manner goes with an adjective of a noun; that adjective is one of another manner in the other context."""
    tables = {"texture": lexicon.textures, "colour": lexicon.colours}
    for noun, word in enumerate(sentence):
        for place in word.adjectives:
            adjective = sentence[place].text
            group, table = next((name, table) for name, table in tables.items() if adjective in table)
            known = tuple(dict.fromkeys(table.values()))
            right = known.index(table[adjective])
            other = _another(right, len(known), generator)
            others = generator.choice([text for text, manner in table.items() if manner == known[other]])
            answers = tuple((manner,) for manner in known)
            yield Question(_until(sentence, noun), (place,), (others,), answers, right, other, group)


def pack(questions: Sequence[Question], ids: Mapping[str, int], length: int) -> Questions:
    """Questions as arrays of T = `length`; `ids` as from `numbers`."""
    rows = range(len(questions))
    tokens = encode([question.words for question in questions], ids, length)
    others, sources = tokens.copy(), np.zeros(tokens.shape, bool)
    most = max(len(question.answers) for question in questions)
    answers = np.zeros((len(questions), most, len(ids)), bool)
    for row, question in zip(rows, questions, strict=True):
        places = np.asarray(question.sources) + 1
        sources[row, places] = True
        others[row, places] = [ids[word] for word in question.others]
        for index, words in enumerate(question.answers):
            answers[row, index, [ids[word] for word in words]] = True
    noun = np.asarray([len(question.words) for question in questions])
    right, other, group = (
        np.asarray([getattr(question, name) for question in questions]) for name in ("right", "other", "group")
    )
    return Questions(tokens, others, noun, sources, answers, right, other, group)


def _until(sentence: Sentence, noun: int) -> Words:
    return tuple(word.text for word in sentence[: noun + 1])


def _another(index: int, count: int, generator: random.Random) -> int:
    """One of so many indices, but not this one."""
    return (index + generator.randrange(1, count)) % count
