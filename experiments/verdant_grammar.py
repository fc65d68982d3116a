"""Sentences in the spirit of "a fluffy blue creature roamed the verdant forest", with the truth about every word.

    beside the meadow , my ranger said that before dawn , a fluffy blue mole softly dug the golden burrow .

A place or a person gives a topic away, near the noun or far from it; the topic fixes the sense of an ambiguous noun,
and its verb depends on the sense; the object depends on the verb. Adjectives stand before their noun and tell nothing
of its sense; the manner that may follow the noun depends on one of them.

Every choice is a word that is said, so what may come next is a function of the words so far: the probabilities that a
word was drawn with are those that the best possible model gives it, and their entropy is the best possible loss.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

from experiments.verdant_lexicon import ENGLISH, Lexicon, Words


class Group(NamedTuple):
    """Words of one part of speech that may stand in one place, each as likely as the others."""

    part: str
    words: Words


PLACING, TELLING = Group("preposition", ("near", "beside")), Group("possessive", ("our", "my"))
DETERMINER, THE = Group("determiner", ("the", "a", "one")), Group("determiner", ("the",))
SAID, THAT = Group("verb", ("said",)), Group("conjunction", ("that",))
COMMA, STOP = Group("mark", (",",)), Group("mark", (".",))
CONSTANT = (PLACING, TELLING, DETERMINER, SAID, THAT, COMMA, STOP)


class Options(NamedTuple):
    """What may stand in one place.

    Attributes:
      words: distinct ones.
      parts: of speech, by word.
      probabilities: by word.
      cumulative: sums of the probabilities up to each word.
    """

    words: Words
    parts: dict[str, str]
    probabilities: dict[str, float]
    cumulative: tuple[float, ...]

    @property
    def entropy(self) -> float:
        """-sum p log p in nats: what the best possible model loses here on average."""
        return -math.fsum(p * math.log(p) for p in self.probabilities.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """A word of a sentence and the truth about it; positions count words from 0.

    Attributes:
      text: how it is written.
      part: its part of speech.
      options: what could have stood here after the words before it.
      adjectives: of a noun, where its adjectives stand.
      sense: of an ambiguous noun.
      because: the earlier words that fix the sense of an ambiguous noun, or the adjective that fixes a manner.
    """

    text: str
    part: str
    options: Options = dataclasses.field(repr=False)
    adjectives: tuple[int, ...] = ()
    sense: str | None = None
    because: tuple[int, ...] = ()


Sentence = tuple[Word, ...]


def vocabulary(lexicon: Lexicon = ENGLISH) -> Words:
    """Every word that a sentence may hold, once."""
    return tuple(dict.fromkeys((*(word for group in CONSTANT for word in group.words), *lexicon.words())))


def longest(lexicon: Lexicon = ENGLISH) -> int:
    """How many words a sentence has at most."""
    place, person, time = 4, 4, 1 + max(len(phrase) for phrase in lexicon.times)
    described = 5  # determiner, texture, colour, noun, manner
    return place + person + time + described + 1 + described + 1


def sample(generator: random.Random, lexicon: Lexicon = ENGLISH) -> Sentence:
    """A sentence, as often as its words' probabilities say."""
    return tell(lambda options: generator.choices(options.words, cum_weights=options.cumulative)[0], lexicon)


def tell(choose: Callable[[Options], str], lexicon: Lexicon = ENGLISH) -> Sentence:
    """The sentence that a series of choices makes.

    Args:
      choose: from options to one of their words; asked wherever there are two or more.
    """
    teller = Teller(choose, lexicon)
    because, topic = teller.opening()
    subject = teller.phrase(Group("noun", lexicon.subjects(topic)))
    noun = teller.words[subject].text
    if noun in lexicon.ambiguous:
        teller.mark(sense=lexicon.ambiguous[noun][topic].name, because=because)
    verb = teller.after(subject, Group("verb", lexicon.verbs(noun, topic)))
    teller.say(DETERMINER)
    teller.after(teller.phrase(Group("noun", lexicon.objects[verb])), STOP)
    return tuple(teller.words)


class Teller:
    """Says a sentence word by word; each method begins where the one before it ended."""

    def __init__(self, choose: Callable[[Options], str], lexicon: Lexicon):
        self.choose, self.lexicon, self.words = choose, lexicon, []
        self.texture = Group("adjective", tuple(lexicon.textures))
        self.colour = Group("adjective", tuple(lexicon.colours))

    def say(self, *groups: Group) -> str:
        """Adds a word of one of the groups, each of which is as likely as the others."""
        options = mixture(groups)
        text = options.words[0] if len(options.words) == 1 else self.choose(options)
        self.words.append(Word(text, options.parts[text], options))
        return text

    def mark(self, **truth) -> int:
        """Adds to the truth about the last word; returns where it stands."""
        self.words[-1] = dataclasses.replace(self.words[-1], **truth)
        return len(self.words) - 1

    def opening(self) -> tuple[tuple[int, ...], str | None]:
        """Place, person and time, some of them or none, and the subject's determiner.

        Returns:
          Where the words stand that give a topic away, and the topic.
        """
        topics, because, topic = self.lexicon.topics, (), None
        times = Group("preposition", tuple(phrase[0][0] for phrase in self.lexicon.times))
        word = self.say(PLACING, TELLING, DETERMINER)
        if word in PLACING.words:
            self.say(THE)
            place = self.say(Group("noun", tuple(place for each in topics.values() for place in each.places)))
            topic = next(name for name, each in topics.items() if place in each.places)
            because = (self.mark(),)
            self.say(COMMA)
            word = self.say(TELLING, times, DETERMINER)
        if word in TELLING.words:
            known = topics.values() if topic is None else (topics[topic],)
            person = self.say(Group("noun", tuple(person for each in known for person in each.people)))
            topic = next(name for name, each in topics.items() if person in each.people)
            because = (*because, self.mark())
            self.say(SAID)
            self.say(THAT)
            word = self.say(times, DETERMINER)
        if word in times.words:
            self.time(word)
            self.say(DETERMINER)
        return because, topic

    def time(self, first: str) -> None:
        """The rest of a phrase that tells nothing."""
        phrase = next(phrase for phrase in self.lexicon.times if phrase[0][0] == first)
        for word, part in phrase[1:]:
            self.say(Group(part, (word,)))
        self.say(COMMA)

    def phrase(self, noun: Group) -> int:
        """No adjective, one or two, and a noun; returns where the noun stands."""
        start = len(self.words)
        word = self.say(self.texture, self.colour, noun)
        if word in self.texture.words:
            word = self.say(self.colour, noun)
        if word in self.colour.words:
            self.say(noun)
        return self.mark(adjectives=tuple(range(start, len(self.words) - 1)))

    def after(self, noun: int, following: Group) -> str:
        """Perhaps a manner that goes with an adjective of the noun, and what follows, which is returned."""
        manners = {self.manner(place): place for place in self.words[noun].adjectives}
        word = self.say(following, *(Group("adverb", (manner,)) for manner in manners))
        if word in manners:
            self.mark(because=(manners[word],))
            word = self.say(following)
        return word

    def manner(self, adjective: int) -> str:
        """What the adjective that stands somewhere leads to."""
        text = self.words[adjective].text
        return (self.lexicon.textures if text in self.lexicon.textures else self.lexicon.colours)[text]


@functools.lru_cache(maxsize=2**16)
def mixture(groups: tuple[Group, ...]) -> Options:
    """The words of groups, each of which is as likely as the others."""
    probabilities: dict[str, float] = {}
    for group in groups:
        for word in group.words:
            probabilities[word] = probabilities.get(word, 0.0) + 1 / (len(groups) * len(group.words))
    parts = {word: group.part for group in groups for word in group.words}
    return Options(tuple(probabilities), parts, probabilities, tuple(itertools.accumulate(probabilities.values())))
