"""Questions and their other contexts, against the lexicon and against what the grammar says next."""

import itertools
import random

import numpy as np

from experiments import verdant_grammar as grammar
from experiments import verdant_questions as questions
from experiments.verdant_lexicon import ENGLISH

IDS = questions.numbers()


def collect(kind, count, seed=0):
    return questions.collect(kind, count, random.Random(seed))


def test_the_other_context_of_a_sense_is_one_of_another_topic_throughout():
    topics = {word: name for name, topic in ENGLISH.topics.items() for word in (*topic.places, *topic.people)}
    places = {place for topic in ENGLISH.topics.values() for place in topic.places}
    several = 0
    for question in collect(questions.senses, 300):
        noun = question.words[-1]
        here, there = (
            {topics[question.words[place]] for place in question.sources},
            set(map(topics.get, question.others)),
        )
        several += len(question.sources) > 1
        for names, answer in ((here, question.right), (there, question.other)):
            (name,) = names
            assert question.answers[answer] == ENGLISH.ambiguous[noun][name].verbs
        assert here != there and question.group == noun
        kinds = [
            [word in places for word in words]
            for words in (map(question.words.__getitem__, question.sources), question.others)
        ]
        assert kinds[0] == kinds[1]
    assert several > 20


def test_the_other_context_of_a_manner_has_another_adjective_of_the_same_kind():
    groups = {"texture": ENGLISH.textures, "colour": ENGLISH.colours}
    for question in collect(questions.manners, 300):
        table, (place,), (other,) = groups[question.group], question.sources, question.others
        assert question.answers[question.right] == (table[question.words[place]],)
        assert question.answers[question.other] == (table[other],) and question.other != question.right
        assert len(question.answers) == 4 and 1 <= len(question.words) - 1 - place <= 2


def test_answers_are_what_the_grammar_says_next():
    for kind, part in ((questions.senses, "verb"), (questions.manners, "adverb")):
        generator = random.Random(5)
        sentences = [grammar.sample(generator) for _ in range(200)]
        for sentence in sentences:
            for question in kind(sentence, generator):
                following = sentence[len(question.words)].options
                possible = {word for word in following.words if following.parts[word] == part}
                right = set(question.answers[question.right])
                assert right == possible if part == "verb" else right <= possible
                wrong = set(itertools.chain(*question.answers)) - right
                assert not wrong & possible


def test_questions_are_packed_as_they_are():
    names = list(IDS)
    listed = collect(questions.senses, 30)
    packed = questions.pack(listed, IDS, 28)
    assert packed.tokens.shape == packed.others.shape == packed.sources.shape == (30, 28)
    for row, question in enumerate(listed):
        words = [names[token] for token in packed.tokens[row]]
        assert words[1 : packed.noun[row] + 1] == list(question.words)
        assert {words[0], *words[packed.noun[row] + 1 :]} == {names[0]}
        differs = np.flatnonzero(packed.tokens[row] != packed.others[row])
        assert (
            differs.tolist()
            == [place + 1 for place in question.sources]
            == np.flatnonzero(packed.sources[row]).tolist()
        )
        assert [names[packed.others[row, place]] for place in differs] == list(question.others)
        for index, answer in enumerate(packed.answers[row]):
            words = question.answers[index] if index < len(question.answers) else ()
            assert {names[token] for token in np.flatnonzero(answer)} == set(words)
