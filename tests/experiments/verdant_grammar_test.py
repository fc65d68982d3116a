"""The truth about sentences: against all sentences of a tiny grammar, and against what English ones say themselves."""

import itertools
import math
import random
from collections import Counter, defaultdict

import pytest

from experiments import verdant_grammar as grammar
from experiments.verdant_lexicon import ENGLISH, Lexicon, Sense, Topic

TINY = Lexicon(
    topics={"wild": Topic(("cave",), ("farmer",)), "clinic": Topic(("ward",), ("nurse",))},
    ambiguous={"mole": {"wild": Sense("animal", ("dug", "bit")), "clinic": Sense("skin", ("itched",))}},
    plain={"ghost": ("bit",)},
    objects={"dug": ("burrow",), "bit": ("worm",), "itched": ("arm",)},
    textures={"fluffy": "softly"},
    colours={"blue": "calmly"},
    times=((("before", "preposition"), ("dawn", "noun")),),
)


def every(lexicon):
    """All sentences, by giving every series of choices."""
    pending = [()]
    while pending:
        script = pending.pop()
        ahead = iter(script)

        def choose(options, ahead=ahead, script=script):
            if (choice := next(ahead, None)) is None:
                pending.extend((*script, word) for word in options.words)
                raise StopIteration
            return choice

        try:
            yield grammar.tell(choose, lexicon)
        except StopIteration:
            continue


@pytest.fixture(scope="module")
def tiny_and_drawn():
    """All sentences of the tiny grammar with the product of their words' probabilities, and how many were drawn."""
    few = {"PLACING": ("near", "beside"), "TELLING": ("my",), "DETERMINER": ("the",)}
    with pytest.MonkeyPatch.context() as patch:
        for name, words in few.items():
            patch.setattr(grammar, name, getattr(grammar, name)._replace(words=words))
        known = [(told, math.prod(word.options.probabilities[word.text] for word in told)) for told in every(TINY)]
        generator = random.Random(1)
        return known, Counter(texts(grammar.sample(generator, TINY)) for _ in range(10_000))


@pytest.fixture(scope="module")
def tiny(tiny_and_drawn):
    return tiny_and_drawn[0]


@pytest.fixture(scope="module")
def english():
    generator = random.Random(0)
    return [grammar.sample(generator) for _ in range(5000)]


def texts(sentence):
    return tuple(word.text for word in sentence)


def test_no_two_series_of_choices_make_one_sentence_and_their_probabilities_sum_to_1(tiny):
    assert len({texts(sentence) for sentence, _ in tiny}) == len(tiny) > 1000
    assert math.fsum(probability for _, probability in tiny) == pytest.approx(1, rel=1e-12)


def test_options_are_what_all_sentences_say_of_the_next_word(tiny):
    following = defaultdict(Counter)
    for sentence, probability in tiny:
        for place, word in enumerate(sentence):
            following[texts(sentence[:place])][word.text] += probability
    seen = {texts(sentence[:place]): word.options for sentence, _ in tiny for place, word in enumerate(sentence)}
    assert seen.keys() == following.keys()
    for before, counted in following.items():
        total = counted.total()
        wanted = {text: probability / total for text, probability in counted.items()}
        assert seen[before].probabilities.keys() == wanted.keys()
        for text, probability in seen[before].probabilities.items():
            assert math.isclose(probability, wanted[text], rel_tol=1e-9), (before, text)


def test_entropies_of_words_add_up_to_that_of_sentences(tiny):
    by_words = math.fsum(p * math.fsum(word.options.entropy for word in sentence) for sentence, p in tiny)
    assert by_words == pytest.approx(-math.fsum(p * math.log(p) for _, p in tiny), rel=1e-12)


def test_sentences_are_drawn_as_often_as_they_are_likely(tiny_and_drawn):
    known, drawn = tiny_and_drawn
    probabilities = {texts(sentence): probability for sentence, probability in known}
    assert drawn.keys() <= probabilities.keys()
    for text, probability in sorted(probabilities.items(), key=lambda item: -item[1])[:100]:
        expected = drawn.total() * probability
        assert abs(drawn[text] - expected) < 5 * math.sqrt(expected), text  # standard deviations, of a hundred


def test_the_longest_sentence_is_as_long_as_is_said(tiny, english):
    assert max(len(sentence) for sentence, _ in tiny) == grammar.longest(TINY)
    assert max(map(len, english)) <= grammar.longest() == 27


def test_sentences_are_a_function_of_the_seed():
    one, same, other = (
        [texts(grammar.sample(generator)) for _ in range(50)] for generator in map(random.Random, (3, 3, 4))
    )
    assert one == same != other


def test_the_topic_fixes_the_sense_and_the_sense_the_verb_and_the_verb_the_object(english):
    senses, distances = Counter(), set()
    for sentence in english:
        said = texts(sentence)
        place = next(place for place, word in enumerate(sentence) if said[place] in ENGLISH.objects)
        verb = said[place]
        noun = next(index for index in range(place, -1, -1) if sentence[index].part == "noun")
        assert (
            next(word for word in said[place:] if word in ENGLISH.objects[verb])
            == said[place + 1 :][[word.part for word in sentence[place + 1 :]].index("noun")]
        )
        topics = {name for name, topic in ENGLISH.topics.items() if set(said[:noun]) & {*topic.places, *topic.people}}
        word = sentence[noun]
        assert (word.sense is not None) == (said[noun] in ENGLISH.ambiguous)
        if word.sense is None:
            assert verb in ENGLISH.plain[said[noun]] and not word.because
            continue
        sense = ENGLISH.ambiguous[said[noun]][topics.pop()]
        assert not topics and sense.name == word.sense and verb in sense.verbs
        told = [
            index
            for index in range(noun)
            if any(said[index] in (*t.places, *t.people) for t in ENGLISH.topics.values())
        ]
        assert list(word.because) == told
        senses[said[noun], word.sense] += 1
        distances.add(noun - told[-1])
    assert len(senses) == 24 and min(senses.values()) > 20
    assert len(distances) >= 10


def test_every_adjective_stands_right_before_its_noun_and_tells_nothing_of_the_sense(english):
    counts, by_sense = Counter(), defaultdict(Counter)
    for sentence in english:
        owned = [place for word in sentence for place in word.adjectives]
        assert owned == [place for place, word in enumerate(sentence) if word.part == "adjective"]
        for noun, word in enumerate(sentence):
            assert word.adjectives == tuple(range(noun - len(word.adjectives), noun))
            counts[len(word.adjectives)] += word.part == "noun"
            by_sense[word.text, word.sense][len(word.adjectives)] += word.sense is not None
        assert all(sentence[place].part == "adjective" for place in owned)
    assert set(counts) == {0, 1, 2}
    for noun, senses in ENGLISH.ambiguous.items():
        for sense in senses.values():
            lengths = by_sense[noun, sense.name]
            # Each number of adjectives has probability 1/3; standard deviations, of some seventy.
            share = lengths.total() / 3
            assert all(abs(lengths[number] - share) < 5 * math.sqrt(share) for number in range(3)), (noun, sense)


def test_a_manner_follows_a_noun_whose_adjective_goes_with_it(english):
    manners = {**ENGLISH.textures, **ENGLISH.colours}
    number = 0
    for sentence in english:
        for place, word in enumerate(sentence):
            if word.text in manners.values():
                (adjective,) = word.because
                assert adjective in sentence[place - 1].adjectives
                assert manners[sentence[adjective].text] == word.text
                number += 1
            elif word.sense is None:
                assert not word.because
    assert number > 1000


def test_every_word_is_in_the_vocabulary_once_and_has_one_part_of_speech(english):
    vocabulary, parts = grammar.vocabulary(), defaultdict(set)
    assert len(set(vocabulary)) == len(vocabulary)
    for word in itertools.chain.from_iterable(english):
        parts[word.text].add(word.part)
    assert parts.keys() == set(vocabulary)
    assert all(len(found) == 1 for found in parts.values())


def test_senses_of_a_noun_share_no_verb_and_every_topic_has_words_of_its_own():
    for senses in ENGLISH.ambiguous.values():
        verbs = [verb for sense in senses.values() for verb in sense.verbs]
        assert len(set(verbs)) == len(verbs) and len({sense.name for sense in senses.values()}) == len(senses) >= 2
    words = [word for topic in ENGLISH.topics.values() for word in (*topic.places, *topic.people)]
    assert len(set(words)) == len(words)
