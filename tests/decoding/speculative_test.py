"""Speculation gives the tokens, or the distribution of tokens, that the model has alone, whatever the draft."""

import dataclasses
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Temperature, TopK, generate
from transformer.decoding.speculative import speculate
from transformer.models.config import Attention, Mlp, ModelConfig, Position, Readout, Scaling, Stack
from transformer.models.transformer import Transformer

VOCAB = 61
PROMPTS = ([5, 17, 3, 40, 8], [9], [33, 2, 50])
LENGTH = 14
UNUSED = 60  # in no output below; a stop token that is there from the start keeps the number of programs down


def model_config(vocab=VOCAB, width=16, position="rotary", **fields):
    decoder = Stack(
        depth=1,
        attention=Attention(heads=2, windows=(5,)),
        mlp=Mlp(width=24),
        position=position if isinstance(position, Position) else Position(position),
    )
    return ModelConfig(vocab, width, decoder=decoder, length=24, readout=Readout(tied=False), **fields)


@cache
def build(config, seed=0, deviation=0.5):
    model, random = Transformer(config), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    deviations = {"scale": 0.1, "table": 1.0}

    def fill(path, leaf):
        # Large weights make the likeliest token depend on the whole context.
        noise = random.normal(0, deviations.get(path[-1].key, deviation), leaf.shape)
        return jnp.asarray(noise + (path[-1].key == "scale"), leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)


CONFIG, STRANGER = model_config(), 1
MODEL, PARAMS = build(CONFIG)
DRAFTS = {
    # A mixture of the model and a stranger agrees with the model now and then.
    "near": jax.tree.map(lambda own, other: own + 0.15 * other, PARAMS, build(CONFIG, STRANGER)[1]),
    "stranger": build(CONFIG, STRANGER)[1],
    "itself": PARAMS,
}


@partial(jax.jit, static_argnames="model")
def logits_of(model, params, tokens):
    return model.apply({"params": params}, tokens)


def likeliest(model, params, tokens):
    padded = np.zeros((1, 24), np.int32)
    padded[0, : len(tokens)] = tokens
    return int(np.argmax(logits_of(model, params, padded)[0, len(tokens) - 1]))


def plain_loop(draft_params, prompt, length, proposals, stop):
    """Greedy speculation of one row by whole passes, a token at a time: its rounds, proposals judged and accepted."""
    tokens, (rounds, judged, accepted) = [*prompt, likeliest(MODEL, PARAMS, prompt)], (0, 0, 0)
    going = lambda: len(tokens) < len(prompt) + length and tokens[-1] != stop  # noqa: E731
    while going():
        rounds += 1
        drafted = list(tokens)
        for _ in range(min(proposals, len(prompt) + length - len(tokens))):
            drafted.append(likeliest(MODEL, draft_params, drafted))
        for proposed in [*drafted[len(tokens) :], None]:
            if not going():
                break
            tokens.append(likeliest(MODEL, PARAMS, tokens))
            judged += proposed is not None
            accepted += proposed == tokens[-1]
            if proposed != tokens[-1]:
                break
    return rounds, judged, accepted


@cache
def free():
    """What the model writes alone."""
    out = np.asarray(generate(MODEL, PARAMS, PROMPTS, length=LENGTH, stop=UNUSED))
    assert len(np.unique(out)) > 10, "a model that repeats itself would not notice a wrong cache"
    assert UNUSED not in out
    return out


def run(draft_params, proposals, **options):
    options = {"prompt": PROMPTS, "length": LENGTH, "stop": UNUSED, **options}
    out = speculate(MODEL, PARAMS, MODEL, draft_params, proposals=proposals, **options)
    return np.asarray(out.tokens), np.stack(out[1:], axis=1)


def truncated(tokens, stop):
    after = np.cumsum(tokens == stop, axis=1) - (tokens == stop) > 0
    return np.where(after, -1, tokens)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("proposals", [1, 2, 4])
def test_greedy_tokens_are_those_of_generate_and_counts_those_of_a_plain_loop(proposals, draft):
    inside = int(free()[0, 6])
    for length, stop in ((LENGTH, UNUSED), (LENGTH - 3, inside), (1, UNUSED)):
        tokens, counts = run(DRAFTS[draft], proposals, length=length, stop=stop, pad=-1)
        np.testing.assert_array_equal(tokens, truncated(free()[:, :length], stop))
        expected = [plain_loop(DRAFTS[draft], prompt, length, proposals, stop) for prompt in PROMPTS]
        np.testing.assert_array_equal(counts, expected)


def test_drafts_that_agree_always_now_and_then_and_hardly_ever():
    counts = {name: run(draft_params, 4)[1] for name, draft_params in DRAFTS.items()}
    # 13 tokens after the first: two rounds of 4 and the model's own one, and 3 of the third round's.
    np.testing.assert_array_equal(counts["itself"], [[3, 11, 11]] * 3)
    _, judged, accepted = np.stack([counts["stranger"], counts["near"]]).sum(axis=1).T
    stranger, near = accepted / judged
    assert stranger < 0.1
    assert 0.2 < near < 0.8


def test_prompts_may_be_padded():
    padded = np.full((3, 20), -7)
    for row, prompt in enumerate(PROMPTS):
        padded[row, : len(prompt)] = prompt
    np.testing.assert_array_equal(run(DRAFTS["near"], 4, prompt=padded, lengths=[5, 1, 3])[0], free())


def test_two_architectures_and_learned_positions_used_to_the_last():
    model, params = build(model_config(position="learned"))
    draft, draft_params = build(model_config(width=8, position="learned"), STRANGER)
    prompts = [list(range(1, 16)), [4, 2]]
    out = speculate(model, params, draft, draft_params, prompts, length=10, proposals=5, capacity=24)
    for prompt, new in zip(prompts, np.asarray(out.tokens).tolist(), strict=True):
        assert new == [likeliest(model, params, [*prompt, *new[:count]]) for count in range(10)]


@pytest.mark.parametrize("vocab", [70, 45])
def test_a_draft_may_have_more_or_fewer_logits(vocab):
    draft, params = build(model_config(vocab=vocab))
    same = lambda path, own, drafts: own if own.shape == drafts.shape else widened(own, drafts)  # noqa: E731

    def widened(own, drafts):
        own = own[tuple(slice(0, size) for size in drafts.shape)]
        # What only the draft has would be all that it proposes.
        return jnp.pad(
            own, [(0, more - size) for more, size in zip(drafts.shape, own.shape, strict=True)], constant_values=9.0
        )

    params = jax.tree_util.tree_map_with_path(same, PARAMS, params)
    assert vocab > VOCAB or np.any(free() >= vocab), "a draft that lacks nothing shows nothing"
    out = speculate(MODEL, PARAMS, draft, params, PROMPTS, length=LENGTH, stop=UNUSED, proposals=4)
    np.testing.assert_array_equal(out.tokens, free())
    assert out.accepted.sum() / out.proposed.sum() > (0.99 if vocab > VOCAB else 0.1)


@pytest.mark.parametrize("temperature", [1e-46, pytest.param(1e-12, marks=pytest.mark.slow)])
def test_at_the_lowest_temperature_a_draw_is_greedy(temperature):
    options = {"length": LENGTH, "stop": UNUSED, "method": Temperature(temperature), "key": jax.random.key(0)}
    np.testing.assert_array_equal(generate(MODEL, PARAMS, PROMPTS, **options), free())
    for draft in ("near", "itself"):
        out = speculate(MODEL, PARAMS, MODEL, DRAFTS[draft], PROMPTS, proposals=4, **options)
        np.testing.assert_array_equal(out.tokens, free())


SMALL, SIZE, ROWS = model_config(vocab=5, width=8), 5, 8192
# Weights such that both distributions are far from flat, and from each other.
TARGET, GUESS = build(SMALL, seed=2, deviation=0.35), build(SMALL, seed=3, deviation=0.35)
CASES = {"temperature": (Temperature(1.5), 2, ()), "top k and a banned token": (TopK(3, temperature=2.0), 1, (4,))}
PROMPT = [3, 1]
# With another key a correct rule would exceed this once in three million times: 5 deviations of a normal, on one side.
BOUND = 5.0


def by_formula(method, logits, banned):
    """What a method draws from, `[..., V]`, in float64."""
    logits = np.array(logits, np.float64) / method.temperature
    logits[..., list(banned)] = -np.inf
    if isinstance(method, TopK):
        logits[logits < np.sort(logits, axis=-1)[..., -method.k, None]] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def conditionals(model, params, method, banned):
    """The probabilities `[V, V, 3, V]` of the first, second and third token after each pair of tokens."""
    every = np.array([[*PROMPT, *pair] for pair in itertools.product(range(SIZE), repeat=2)])
    probabilities = by_formula(method, logits_of(model, params, every), banned)[:, len(PROMPT) - 1 :]
    return probabilities.reshape(SIZE, SIZE, 3, SIZE)


def joint(conditional):
    """The probability of every continuation by three tokens, `[V, V, V]`."""
    return conditional[0, 0, 0][:, None, None] * conditional[:, 0, 1][..., None] * conditional[:, :, 2]


def misfit(tokens, expected):
    """Pearson's chi-square as a normal deviate (Wilson and Hilferty 1931); cells of fewer than 5 rows count as one."""
    found = np.bincount(np.ravel_multi_index(tokens.T, expected.shape), minlength=expected.size)
    expected = len(tokens) * expected.ravel()
    rare = expected < 5
    found, expected = (np.append(cells[~rare], cells[rare].sum()) for cells in (found, expected))
    freedom = np.sum(expected > 0) - 1
    square = np.sum((found - expected) ** 2 / np.maximum(expected, 1e-9))
    spread = 2 / (9 * freedom)
    return ((square / freedom) ** (1 / 3) - (1 - spread)) / np.sqrt(spread)


def draw(method, proposals, banned, prompts):
    options = {"method": method, "key": jax.random.key(7), "banned": banned, "capacity": 6}
    return speculate(*TARGET, *GUESS, prompts, length=3, proposals=proposals, **options)


@pytest.mark.parametrize("name", CASES)
def test_tokens_have_the_models_joint_distribution(name):
    method, proposals, banned = CASES[name]
    own, drafts = (conditionals(*pair, method, banned) for pair in (TARGET, GUESS))
    expected = joint(own)
    out = draw(method, proposals, banned, np.tile(PROMPT, (ROWS, 1)))
    tokens = np.asarray(out.tokens)
    assert np.all(expected[tuple(tokens.T)] > 0)
    assert misfit(tokens, expected) < BOUND

    # What other rules give is told from this: the draft alone, and p rather than max(p - q, 0) after a rejection.
    shared = np.minimum(own, drafts)
    mistaken = shared + (1 - shared.sum(axis=-1, keepdims=True)) * own
    for wrong in (joint(drafts), joint(np.where(np.arange(3)[:, None] == 0, own, mistaken))):
        cells = np.random.default_rng(0).choice(wrong.size, ROWS, p=wrong.ravel())
        assert misfit(np.stack(np.unravel_index(cells, wrong.shape), axis=1), expected) > 2 * BOUND


def test_a_row_depends_on_its_key_and_not_on_other_rows():
    case = CASES["temperature"]
    together = draw(*case, np.tile(PROMPT, (ROWS, 1)))
    among_others = draw(*case, np.where(np.arange(ROWS)[:, None] == 0, PROMPT, [2, 4]))
    for one, other in zip(together, among_others, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    assert np.any(together.tokens != among_others.tokens)


ENCODER = Stack(depth=1, attention=Attention(heads=2))
DYNAMIC = Position("rotary", scaling=Scaling("dynamic", factor=2.0, original_length=16))
ERRORS = {
    "proposals": ({"proposals": 0}, "proposals=0: it must be a whole number"),
    "half a proposal": ({"proposals": 1.5}, "proposals=1.5"),
    "length": ({"length": 0}, "length=0"),
    "no key": ({"method": Temperature()}, "jax.random.key"),
    "stop": ({"stop": 61}, "stop holds 61"),
    "capacity": ({"capacity": 3}, "capacity=3 .*use 12"),
    "model with an encoder": ({"model": model_config(encoder=ENCODER)}, "^model has an encoder"),
    "an encoder alone": ({"model": ModelConfig(VOCAB, 16, encoder=ENCODER)}, "^model has an encoder"),
    "draft with an encoder": ({"draft": model_config(encoder=ENCODER)}, "^draft has an encoder"),
    "a draft with nothing to propose": (
        {"draft": model_config(vocab=4), "banned": range(4)},
        "^draft: banned holds all 4 tokens",
    ),
    "a draft with few positions": (
        {"draft": dataclasses.replace(model_config(position="learned"), length=8)},
        "^draft: length=10 after a prompt of 3 needs 12 positions.*config.length=8",
    ),
    "positions that depend on the pass": ({"model": model_config(position=DYNAMIC)}, "dynamic.*beyond 16.*may read 17"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refuses_what_does_not_fit(name):
    options, message = ERRORS[name]
    options = {"model": CONFIG, "draft": CONFIG, "prompt": [[1, 2, 3]], "length": 10, **options}
    model, draft = (Transformer(options.pop(name)) for name in ("model", "draft"))
    with pytest.raises(ValueError, match=message) as caught:
        speculate(model, {}, draft, {}, **options)
    assert "\n" not in str(caught.value)
