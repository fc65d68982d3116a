"""Questions against the grammar, measures against plain loops on a random model, and the script; marked slow, that a
trained model tells senses apart by the heads that are found."""

import importlib.util
import itertools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import generated, loading, verdant_measures, verdant_report
from experiments import verdant_grammar as grammar
from experiments import verdant_questions as questions
from experiments.experiment import Experiment
from experiments.verdant_lexicon import ENGLISH
from transformer import inspection, models
from transformer.models import Attention, Init, ModelConfig, Stack

VERDANT = "experiments.verdant"
QUICK = (
    "--config.model.width=16",
    "--config.model.decoder.mlp.width=16",
    "--config.training.batch_size=8",
    "--config.training.optimizer.warmup=0",
    "--config.training.checkpoint_every=10",
    "--questions=500",
)


@pytest.fixture(scope="module")
def verdant():
    """The script's functions, without its flags being defined twice."""
    from absl import flags

    spec = importlib.util.find_spec(VERDANT)
    module = importlib.util.module_from_spec(spec)
    known = set(flags.FLAGS)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def experiment(verdant):
    """The recipe as it is."""
    spec = importlib.util.spec_from_file_location("recipe", verdant.RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Experiment.build(module.get_config())


@pytest.fixture(scope="module")
def small():
    """A random model whose heads all matter, and its parameters."""
    stack = Stack(depth=2, attention=Attention(heads=3, head_width=4))
    init = Init(scale=0.5, output=1.0, embedding=1.0)
    model = models.Transformer(
        ModelConfig(vocab=len(questions.numbers()), width=8, length=28, decoder=stack, init=init)
    )
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def collect(kind, count=24, seed=0):
    return questions.collect(kind, count, random.Random(seed))


@pytest.fixture(scope="module", params=["senses", "manners"])
def asked(request):
    """A few questions of each kind, packed."""
    return questions.pack(collect(getattr(questions, request.param)), questions.numbers())


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
    ids = questions.numbers()
    names = list(ids)
    listed = collect(questions.senses)
    packed = questions.pack(listed, ids)
    assert packed.tokens.shape[1] == 1 + max(len(question.words) for question in listed)
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


def test_a_batch_is_sentences_and_a_function_of_seed_and_step(verdant):
    ids = list(questions.numbers())
    one, same, step, seed = (verdant.batch_at(*which, 4, length=28) for which in ((5, 6), (5, 6), (5, 7), (6, 6)))
    assert {name: array.dtype for name, array in one.items()} == {
        "inputs": np.int32, "targets": np.int32, "weights": np.float32,
    }  # fmt: skip
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert (step["inputs"] != one["inputs"]).any() and (seed["inputs"] != one["inputs"]).any()
    for inputs, targets, weights in zip(*one.values(), strict=True):
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        stop = next(place for place, token in enumerate(targets) if ids[token] == ".")
        assert inputs[0] == 0 and not targets[stop + 1 :].any()
        np.testing.assert_array_equal(weights, np.arange(28) <= stop + 1)


def logits_of(small, tokens):
    model, params = small
    return np.asarray(jax.jit(model.apply)({"params": params}, tokens), np.float64)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_nats_are_those_of_a_float64_softmax(small, verdant):
    batch = verdant.batch_at(0, 0, 3, length=28)
    log_p = log_softmax(logits_of(small, batch["inputs"]))
    expected = [
        [-log_p[row, place, target] * batch["weights"][row, place] for place, target in enumerate(targets)]
        for row, targets in enumerate(batch["targets"])
    ]
    np.testing.assert_allclose(verdant_measures.nats(*small, batch), expected, rtol=1e-5, atol=1e-5)


def test_the_nearest_centroid_counts_ties_as_guesses():
    known, labels = np.array([[0.0, 0], [2, 0], [0, 4], [0, 6]]), np.array([7, 7, 9, 9])  # means (1, 0) and (0, 5)
    hits = verdant_measures.nearest_centroid(known, labels, np.array([[1.0, 1], [1, 1], [0, 9]]), np.array([7, 9, 9]))
    assert hits.tolist() == [1, 0, 1]
    alike = verdant_measures.nearest_centroid(
        np.full((6, 2), 0.1), np.arange(6) % 3, np.full((2, 2), 0.1), np.array([0, 2])
    )
    assert alike == pytest.approx([1 / 3, 1 / 3])


def test_a_noun_enters_as_one_vector_that_tells_no_sense(small):
    packed = questions.pack(collect(questions.senses, 400), questions.numbers())
    vectors = verdant_measures.vectors(*small, packed)
    assert list(vectors) == [
        "decoder/embedding",
        *(f"decoder/{layer}/residual_{half}" for layer in (0, 1) for half in ("mid", "post")),
        "decoder/final_norm",
    ]
    nouns = packed.tokens[np.arange(400), packed.noun]
    table = np.asarray(small[1]["embedding"]["table"], np.float64)
    np.testing.assert_array_equal(vectors["decoder/embedding"], table[nouns])
    assert verdant_measures.spread(vectors["decoder/embedding"], nouns) == 0
    assert verdant_measures.spread(vectors["decoder/final_norm"], nouns) > 0.1
    chance = np.mean([1 / len(ENGLISH.ambiguous[noun]) for noun in packed.group[200:]])
    assert verdant_measures.accuracy(vectors["decoder/embedding"], packed) == pytest.approx(chance)


def test_accuracy_is_within_groups_and_of_the_second_half(small):
    packed = questions.pack(collect(questions.senses, 400), questions.numbers())
    told = np.stack([packed.right, packed.right], axis=-1).astype(np.float64)
    assert verdant_measures.accuracy(told, packed) == 1
    told[200:] = (told[200:] + 1) % 2  # the second half says the wrong thing, or nothing like it
    wrong = verdant_measures.accuracy(told, packed)
    assert wrong == np.mean([right == 2 and False for right in packed.right[200:]])


def loop(small, packed, patch):
    """Scores `[L, H, N, C]` with one head of one row replaced at a time by `patch(row, layer, head)`, `[K]`."""
    model, params = small
    stack = model.config.decoder
    scores = np.zeros((stack.depth, stack.attention.heads, *packed.answers.shape[:2]))
    for layer, head, row in np.ndindex(scores.shape[:3]):
        noun = int(packed.noun[row])
        change = inspection.Patch(f"decoder/{layer}/mixed", patch(row, layer, head), head=head, position=noun)
        logits, _ = inspection.run(model, params, packed.tokens[row : row + 1], patches=change)
        scores[layer, head, row] = score(np.asarray(logits[0, noun], np.float64), packed.answers[row])
    return scores


def score(logits, answers):
    with np.errstate(divide="ignore"):
        totals = np.log([np.exp(logits)[words].sum() for words in answers])
    return totals - np.log(np.exp(totals).sum())


def test_heads_are_ablated_and_exchanged_one_by_one_as_in_a_plain_loop(small, asked):
    model, params = small
    found = verdant_measures.carriers(model, params, asked)
    heads = [
        np.asarray(inspection.run(model, params, tokens, capture="decoder/*/mixed")[1]["decoder/*/mixed"])
        for tokens in (asked.tokens, asked.others)
    ]  # [L, N, T, H, K]
    rows = range(len(asked.noun))
    mean = np.mean([heads[0][:, row, asked.noun[row]] for row in rows], axis=0)  # [L, H, K]
    ablated = loop(small, asked, lambda row, layer, head: mean[layer, head])
    exchanged = loop(small, asked, lambda row, layer, head: heads[1][layer, row, asked.noun[row], head])
    half = len(rows) // 2
    for scores, effect in ((ablated, found.ablated), (exchanged, found.exchanged)):
        for layer, head in np.ndindex(2, 3):
            rest = [scores[layer, head, row] for row in rows[half:]]
            own = [row[right] for row, right in zip(rest, asked.right[half:], strict=True)]
            other = [row[wrong] for row, wrong in zip(rest, asked.other[half:], strict=True)]
            close = {"rtol": 1e-4, "atol": 1e-4}  # float32, and another order of sums in batches of one
            np.testing.assert_allclose(effect.nats[layer, head], -np.mean(own), **close)
            np.testing.assert_allclose(effect.odds[layer, head], np.mean(other) - np.mean(own), **close)
            best = np.argmax(rest, axis=-1)
            assert effect.right[layer, head] == np.mean(best == asked.right[half:])
            assert effect.followed[layer, head] == np.mean(best == asked.other[half:])
