"""Beam search against plain loops over sequences, scored by whole passes without a cache."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Hypotheses, beam_search, generate, hypotheses, stream
from transformer.models.config import Attention, Mlp, ModelConfig, Position, Readout, Stack
from transformer.models.transformer import Transformer
from transformer.nn.tap import Tap

VOCAB, STOP = 5, 1
PROMPTS = ([3, 2, 4], [0])
SOURCES = ([4, 2, 2, 3, 1], [3, 1])
# Shapes that all tests share, so that they share programs; outputs of passes over the whole sequences, 32 at once.
SHAPES = {"capacity": 12, "stop": STOP, "pad": -1}
ROWS, WIDTH, SOURCE_WIDTH = 32, 12, 6


def stack(kind):
    attention = Attention(heads=2, kv_heads=1)
    return Stack(depth=2, attention=attention, mlp=Mlp(width=16), position=Position(kind))


@cache
def build(name):
    """A model whose likeliest tokens depend on the whole context, and its parameters."""
    encoder = stack("sinusoidal") if name == "joined" else None
    model = Transformer(ModelConfig(VOCAB, 8, encoder, stack("sinusoidal"), readout=Readout(tied=False)))
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, source=tokens if encoder else None))
    random = np.random.default_rng(19)

    def fill(path, leaf):
        mean, deviation = {"scale": (1.0, 0.1), "table": (0.0, 1.0)}.get(path[-1].key, (0.0, 0.6))
        return jnp.asarray(random.normal(mean, deviation, leaf.shape), leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(fill, shapes["params"])


@partial(jax.jit, static_argnames="model")
def whole_pass(model, params, tokens, source, source_mask, prefix):
    tap = Tap(() if source is None else ["decoder/1/cross/pattern"])
    logits = model.apply(
        {"params": params}, tokens, source=source, source_mask=source_mask, prefix=prefix, tap=tap
    )  # fmt: skip
    return logits, None if source is None else tap.taps()["decoder/1/cross/pattern"]


class Reference:
    """What follows a prompt of one row, by passes over whole sequences and sums in float64."""

    def __init__(self, name, prompt, source=None, *, prefix=False, banned=()):
        self.model, self.params = build(name)
        self.prompt, self.source, self.prefix, self.banned = tuple(prompt), source, prefix, list(banned)

    def next(self, outputs):
        """After each of some outputs: log-probabilities `[n, V]`, attention at each step so far `[n, steps, S]`."""
        outputs, steps = list(outputs), len(outputs[0]) + 1
        tokens = np.zeros((ROWS, WIDTH), np.int32)
        for row, output in enumerate(outputs):
            tokens[row, : len(self.prompt) + len(output)] = self.prompt + tuple(output)
        source = mask = None
        if self.source is not None:
            source = np.zeros((ROWS, SOURCE_WIDTH), np.int32)
            source[:, : len(self.source)] = self.source
            mask = np.broadcast_to(np.arange(SOURCE_WIDTH) < len(self.source), source.shape)
        prefix = np.broadcast_to(np.arange(WIDTH) < len(self.prompt), tokens.shape) if self.prefix else None
        logits, pattern = whole_pass(self.model, self.params, tokens, source, mask, prefix)
        begin = len(self.prompt) - 1
        logits = np.asarray(logits, np.float64)[: len(outputs), begin + steps - 1]
        log_probabilities = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        log_probabilities[:, self.banned] = -np.inf
        if pattern is not None:
            pattern = np.asarray(pattern, np.float64)[: len(outputs), :, begin : begin + steps, : len(self.source)]
            pattern = pattern.mean(axis=1)
        return log_probabilities, pattern

    def extensions(self, hypotheses):
        """Each hypothesis, (output, log-probability, attention `[steps, S]`), and each token that may follow."""
        found = []
        for chunk in (hypotheses[start : start + ROWS] for start in range(0, len(hypotheses), ROWS)):
            rows, patterns = self.next([output for output, _, _ in chunk])
            for row, (output, before, _) in enumerate(chunk):
                attention = None if patterns is None else patterns[row]
                found += [((*output, token), before + rows[row, token], attention) for token in range(VOCAB)]
        return [extension for extension in found if extension[1] > -np.inf]


def score(hypothesis, penalty, coverage):
    """Wu et al. 2016, equation 14."""
    output, log_probability, attention = hypothesis
    value = log_probability / ((5 + len(output)) / 6) ** penalty
    if coverage:
        value += coverage * sum(np.log(min(attention[:, i].sum(), 1)) for i in range(attention.shape[1]))
    return value


def every_sequence(reference, length, stop=(STOP,)):
    """All outputs that end with their only stop token, or have `length` tokens without one."""
    alive, finished = [((), 0.0, None)], []
    for _ in range(length):
        extensions = reference.extensions(alive)
        finished += [extension for extension in extensions if extension[0][-1] in stop]
        alive = [extension for extension in extensions if extension[0][-1] not in stop]
    return finished + alive


def plain_beam_search(reference, length, beams, penalty, coverage, stop=(STOP,)):
    """The convention of `beam_search` for one row, in lists."""
    alive, finished = [((), 0.0, None)], []
    best = lambda several: sorted(several, key=lambda h: -score(h, penalty, coverage))[:beams]  # noqa: E731
    for step in range(1, length + 1):
        ranked, alive = sorted(reference.extensions(alive), key=lambda h: -h[1]), []
        for rank, extension in enumerate(ranked):
            if extension[0][-1] not in stop:
                alive = [*alive, extension][:beams]
            elif rank < beams:
                finished = best([*finished, extension])
        if len(finished) == beams and step < length:
            return finished
    return best(finished + alive)


def assert_found(found, row, expected, penalty=0.6, coverage=0.0):
    """The hypotheses of a row are the expected ones, best first, then those of probability zero."""
    expected = sorted(expected, key=lambda h: -score(h, penalty, coverage))[: found.scores.shape[1]]
    real = len(expected)
    tokens = [tuple(ids[:n].tolist()) for ids, n in zip(found.tokens[row], found.lengths[row], strict=True)]
    assert tokens == [output for output, _, _ in expected] + [()] * (len(tokens) - real)
    for ids, output in itertools.zip_longest(np.asarray(found.tokens[row]), tokens):
        assert np.all(ids[len(output) :] == -1)
    # Sums in float32 of logits that another order of additions gives.
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(found.log_probabilities[row, :real], [h[1] for h in expected])
    close(found.scores[row, :real], [score(h, penalty, coverage) for h in expected])
    assert np.all(np.asarray(found.scores)[row, real:] == -np.inf)
    assert np.all(np.asarray(found.log_probabilities)[row, real:] == -np.inf)


def search(name, **options):
    """Beam search of the shared prompts and sources, on the host."""
    inputs = {"prompt": PROMPTS, **({"source": SOURCES} if name == "joined" else {})}
    return jax.device_get(beam_search(*build(name), **{**inputs, **SHAPES, **options}))


def references(name, **options):
    sources = SOURCES if name == "joined" else (None, None)
    return [Reference(name, *pair, **options) for pair in zip(PROMPTS, sources, strict=True)]


@pytest.mark.parametrize(
    ("name", "coverage"), [("alone", 0.0), ("joined", 0.0), ("joined", 0.7)], ids=["alone", "joined", "coverage"]
)
def test_enough_beams_find_the_best_of_all_sequences(name, coverage):
    every = [every_sequence(reference, 3) for reference in references(name)]
    assert len(every[0]) == 85
    orders = []
    for penalty in (0.0, 0.6, 4.0):
        options = {"length": 3, "beams": 125, "count": 90, "length_penalty": penalty, "coverage": coverage}
        found = search(name, **options)
        for row, expected in enumerate(every):
            assert_found(found, row, expected, penalty, coverage)
        orders.append(found.tokens.tolist())
    assert orders[0] != orders[-1], "a penalty that changed nothing would not be noticed"


@pytest.mark.parametrize(
    ("name", "penalty", "coverage"),
    [("alone", 0.0, 0.0), ("alone", 1.5, 0.0), ("joined", 0.6, 0.0), ("joined", 0.6, 2.0)],
)
def test_few_beams_find_what_a_plain_beam_search_finds(name, penalty, coverage):
    found = search(name, length=8, beams=3, count=3, length_penalty=penalty, coverage=coverage)
    for row, reference in enumerate(references(name)):
        assert_found(found, row, plain_beam_search(reference, 8, 3, penalty, coverage), penalty, coverage)
    assert np.all(np.diff(found.scores) <= 0)
    assert np.all(found.scores > -np.inf)


def test_several_stop_tokens_leave_enough_beams_to_go_on():
    stop = (0, STOP, 2, 3)
    found = search("alone", length=6, beams=2, count=2, stop=stop)
    for row, reference in enumerate(references("alone")):
        assert_found(found, row, plain_beam_search(reference, 6, 2, 0.6, 0.0, stop))
    assert np.any(found.lengths > 1)


@pytest.mark.parametrize("name", ["alone", "joined"])
def test_one_beam_is_greedy(name):
    inputs = {"prompt": [[3, 2, 4], [0], [4, 4], [2]], **SHAPES, "length": 9}
    if name == "joined":
        inputs["source"] = [*SOURCES, [2, 2], [4, 3, 2]]
    ends = []
    for stop in (STOP, 3):
        greedy = np.asarray(generate(*build(name), **{**inputs, "stop": stop}))
        ends += np.any(greedy == -1, axis=1).tolist()
        for penalty in (0.0, 3.0):
            found = beam_search(*build(name), **{**inputs, "stop": stop}, beams=1, length_penalty=penalty)
            np.testing.assert_array_equal(found.tokens[:, 0], greedy)
            np.testing.assert_array_equal(found.lengths[:, 0], np.sum(greedy != -1, axis=1))
    assert {True, False} == set(ends), "some rows should stop, and some run to the end"


def test_log_probabilities_are_those_of_one_pass_over_each_hypothesis():
    found = search("joined", length=8, beams=3, count=3)
    for row, reference in enumerate(references("joined")):
        for ids, length, total in zip(found.tokens[row], found.lengths[row], found.log_probabilities[row], strict=True):
            rows = [reference.next([ids[:step].tolist()])[0][0, ids[step]] for step in range(length)]
            np.testing.assert_allclose(total, sum(rows), rtol=1e-4, atol=1e-4)


def test_coverage_is_that_of_the_steps_that_chose_the_output():
    found = search("joined", length=8, beams=3, count=3, length_penalty=0.0, coverage=2.0)
    clipped = False
    for row, reference in enumerate(references("joined")):
        for best in range(3):
            output = found.tokens[row, best, : found.lengths[row, best]].tolist()
            received = reference.next([output[:-1]])[1][0].sum(axis=0)  # [S]: the last token's own pass is not run
            assert received.sum() == pytest.approx(len(output), rel=1e-5)
            expected = 2.0 * np.log(np.minimum(received, 1)).sum()
            difference = found.scores[row, best] - found.log_probabilities[row, best]
            # Sums in float32.
            np.testing.assert_allclose(difference, expected, rtol=1e-4, atol=1e-4)
            clipped |= bool(np.any(received > 1) and np.any(received < 1))
    assert clipped, "no source token was attended to more than once"


def test_a_ratio_limits_each_row_by_its_own_source():
    lengths = []
    for ratio, limits in ((1.3, (6, 2)), (0.4, (2, 1)), (100.0, (8, 8))):
        found = search("joined", length=8, beams=3, count=3, ratio=ratio)
        for row, (reference, limit) in enumerate(zip(references("joined"), limits, strict=True)):
            assert_found(found, row, plain_beam_search(reference, limit, 3, 0.6, 0.0))
        lengths.append(found.lengths.max(axis=1).tolist())
    assert lengths[1] == [2, 1]
    assert lengths[2][0] > 2


@pytest.mark.parametrize("coverage", [0.0, 2.0])
def test_a_row_depends_on_its_own_prompt_and_real_source(coverage):
    options = {"length": 8, "beams": 3, "count": 3, "coverage": coverage, "ratio": 1.5}
    together = search("joined", **options)
    swapped = search("joined", prompt=PROMPTS[::-1], source=SOURCES[::-1], **options)
    others = search("joined", prompt=[PROMPTS[0], [2, 2]], source=[SOURCES[0], [2, 3, 4, 2, 3, 4, 2]], **options)
    padded, mask = np.full((2, 9), 2), np.zeros((2, 9), bool)
    for row, source in enumerate(SOURCES):
        padded[row, : len(source)], mask[row, : len(source)] = source, True
    masked = search("joined", source=padded, source_mask=mask, **options)
    for name in Hypotheses._fields:
        expected, close = getattr(together, name), partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        close(getattr(swapped, name)[::-1], expected)
        close(getattr(others, name)[0], expected[0])
        close(getattr(masked, name), expected)
    assert np.any(others.tokens[1] != together.tokens[1])
    unmasked = search("joined", source=padded, **options)
    assert np.any(unmasked.scores != together.scores)


def test_a_row_alone_and_one_among_others_get_the_same():
    options = {"length": 8, "beams": 3, "count": 2}
    together, alone = search("alone", **options), search("alone", prompt=PROMPTS[1], **options)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])
    # Products of other shapes may add in another order.
    np.testing.assert_allclose(alone.scores[0], together.scores[1], rtol=1e-5)


def test_what_is_beyond_a_prompts_length_is_not_read():
    padded = [[3, 2, 4, 2], [0, 3, 3, 3]]
    found = search("alone", length=8, beams=3, prompt=padded, lengths=[3, 1])
    np.testing.assert_array_equal(found.tokens, search("alone", length=8, beams=3).tokens)


def test_banned_tokens_are_never_chosen_and_leave_the_others_as_likely():
    free, found = search("alone", length=8, beams=3), search("alone", length=8, beams=3, count=3, banned=[2, 3])
    for row, reference in enumerate(references("alone", banned=[2, 3])):
        assert_found(found, row, plain_beam_search(reference, 8, 3, 0.6, 0.0))
    assert np.any(np.isin(free.tokens, [2, 3]))


def test_where_few_hypotheses_are_possible_the_others_have_probability_zero():
    found = search("alone", length=3, beams=125, count=125, banned=[0, 2, 3])  # 4 or the stop token: 1, 41, 441, 444
    for row, reference in enumerate(references("alone", banned=[0, 2, 3])):
        every = every_sequence(reference, 3)
        assert len(every) == 4
        assert_found(found, row, every)
    only = search("alone", length=3, beams=3, count=3, banned=[0, 2, 3, 4])
    assert only.lengths.tolist() == [[1, 0, 0]] * 2
    assert only.tokens[:, 0].tolist() == [[STOP, -1, -1]] * 2
    assert np.all(only.scores[:, 1:] == -np.inf)


def test_a_prefix_is_read_from_both_sides():
    inputs = {"prompt": PROMPTS, **SHAPES, "length": 8, "stop": 0}
    found = search("alone", length=8, beams=3, count=3, prefix=True)
    for row, reference in enumerate(references("alone", prefix=True)):
        assert_found(found, row, plain_beam_search(reference, 8, 3, 0.6, 0.0))
    model, params = build("alone")
    greedy = np.asarray(generate(model, params, **inputs, prefix=True))
    for row, reference in enumerate(references("alone", prefix=True)):
        assert_found(
            beam_search(model, params, **inputs, beams=1, prefix=True),
            row,
            plain_beam_search(reference, 8, 1, 0.6, 0.0, (0,)),
        )
    np.testing.assert_array_equal(beam_search(model, params, **inputs, beams=1, prefix=True).tokens[:, 0], greedy)
    streamed = np.concatenate(list(stream(model, params, **inputs, prefix=True)), axis=1)
    np.testing.assert_array_equal(streamed, greedy[:, : streamed.shape[1]])
    assert np.any(found.log_probabilities[0] != search("alone", length=8, beams=3, count=3).log_probabilities[0])


def test_lengths_penalties_and_tokens_share_programs():
    search("joined", length=8, beams=3)
    sizes = hypotheses.begin._cache_size(), hypotheses.advance._cache_size()
    search("joined", length=5, beams=3, count=3, length_penalty=1.1, stop=3, pad=0, ratio=0.9, prompt=[[2], [3, 3]])
    assert (hypotheses.begin._cache_size(), hypotheses.advance._cache_size()) == sizes


ERRORS = {
    "no beams": ({"beams": 0}, "beams=0: it must be a whole number"),
    "half a beam": ({"beams": 1.5}, "beams=1.5"),
    "boolean beams": ({"beams": True}, "beams=True"),
    "no hypothesis": ({"count": 0}, "count=0"),
    "more than beams": ({"beams": 3, "count": 4}, "count=4: a search with beams=3"),
    "no length": ({"length": 0}, "length=0"),
    "half a length": ({"length": 2.5}, "length=2.5"),
    "negative penalty": ({"length_penalty": -0.1}, "length_penalty=-0.1"),
    "penalty in words": ({"length_penalty": "long"}, "length_penalty='long'"),
    "infinite penalty": ({"length_penalty": float("inf")}, "length_penalty=inf"),
    "negative coverage": ({"coverage": -1}, "coverage=-1"),
    "a penalty without scores": ({"length_penalty": 1000}, "length_penalty=1000: it must be a number from 0 to 10"),
    "coverage alone": ({"coverage": 1e39}, "coverage=1e[+]39: it must be a number from 0 to 1000"),
    "too many beams": ({"beams": 10**11}, f"beams=100000000000: at most {(2**31 - 1) // VOCAB} can be ranked over"),
    "no padding": ({"pad": None}, "pad=None must be a whole number of 32 bits"),
    "wide padding": ({"pad": 2**40}, f"pad={2**40} must be a whole number"),
    "coverage without a source": ({"coverage": 0.2}, "coverage=0.2: only a model with an encoder"),
    "ratio without a source": ({"ratio": 1.5}, "ratio=1.5: only a model with an encoder"),
    "no ratio": ({"ratio": 0.0}, "ratio=0.0: it must be a positive"),
    "not a ratio": ({"ratio": float("nan")}, "ratio=nan"),
    "half a stop": ({"stop": 1.5}, "stop=1.5 must be a token's id"),
    "stop": ({"stop": 9}, "stop holds 9"),
    "all banned": ({"banned": range(VOCAB)}, f"banned holds all {VOCAB}"),
    "capacity": ({"capacity": 3, "length": 4}, "capacity=3 .*use 6"),
    "source": ({"source": [[1]]}, "no encoder"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refuses_what_does_not_fit(name):
    options, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as caught:
        beam_search(*build("alone"), **{"prompt": [[1, 2, 3]], **options})
    assert "\n" not in str(caught.value)


def test_refuses_an_encoder_and_a_missing_source():
    with pytest.raises(ValueError, match="no decoder"):
        beam_search(Transformer(ModelConfig(VOCAB, 8, encoder=stack("rotary"))), {}, [[1]])
    with pytest.raises(ValueError, match="pass source"):
        beam_search(*build("joined"), [[1]])
