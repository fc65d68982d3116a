"""Cached decoding gives the tokens that whole forward passes would, whatever else is in the batch."""

import dataclasses
from functools import cache, partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Greedy, Temperature, TopK, TopP, generate, loop, stream
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack
from transformer.models.transformer import Transformer
from transformer.nn import cache as caches

VOCAB = 61
PROMPTS = ([5, 17, 3, 40, 8], [9], [33, 2, 50])


def stack(position="rotary", norm_placement="pre", depth=2, **attention):
    return Stack(
        depth=depth,
        attention=Attention(heads=4, **attention),
        mlp=Mlp(width=48),
        norm=Norm("rms"),
        norm_placement=norm_placement,
        position=Position(position),
    )


def model_config(decoder, encoder=None, **fields):
    return ModelConfig(VOCAB, 32, encoder, decoder, length=48, readout=Readout(tied=False), **fields)


@cache
def build(config):
    model, tokens = Transformer(config), jnp.zeros((1, 2), jnp.int32)
    source = {} if config.encoder is None else {"source": tokens}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, **source))["params"]
    random = np.random.default_rng(0)

    def fill(path, leaf):
        # Large weights make the likeliest token depend on the whole context.
        mean, deviation = {"scale": (1.0, 0.1), "table": (0.0, 1.0)}.get(path[-1].key, (0.0, 0.25))
        return jnp.asarray(random.normal(mean, deviation, leaf.shape), leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)


DECODERS = {
    "learned": stack("learned", "post"),
    "sinusoidal": stack("sinusoidal"),
    "rotary": stack("rotary", kv_heads=2, query_key_norm=True),
    "windows": stack("rotary", windows=(4, 0)),
    "relative": stack("relative"),
    "alibi": stack("alibi", kv_heads=1),
    "norms on both sides": stack("rotary", "both", windows=(0, 4)),
    "parallel": dataclasses.replace(stack("rotary", kv_heads=2), parallel=True),
}
BASIC = build(model_config(stack("rotary")))
LEARNED = build(model_config(DECODERS["learned"]))
JOINED = build(model_config(stack("relative"), stack("learned")))
SAMPLING = {"method": TopK(30, temperature=2.0), "key": jax.random.key(4), "repetition_penalty": 1.2}
LENGTH = 10


@partial(jax.jit, static_argnames="model")
def likeliest(model, params, tokens, source):
    return jnp.argmax(model.apply({"params": params}, tokens, source=source), axis=-1)


def assert_likeliest(model, params, prompts, new, source=None):
    """Each token is the likeliest after those before it, by whole passes without a cache: so, by induction, all are."""
    width = max(map(len, prompts)) + LENGTH
    whole = np.zeros((len(prompts), width), np.int32)
    for row, (prompt, continuation) in enumerate(zip(prompts, new, strict=True)):
        whole[row, : len(prompt) + LENGTH] = [*prompt, *continuation]
    following = np.asarray(likeliest(model, params, whole, source))
    for row, prompt in enumerate(prompts):
        np.testing.assert_array_equal(new[row], following[row, len(prompt) - 1 :][:LENGTH])
    assert len(np.unique(new)) > 6, "a model that repeats itself would not notice a wrong cache"


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_are_those_of_whole_passes(name):
    model, params = build(model_config(DECODERS[name]))
    assert_likeliest(model, params, PROMPTS, np.asarray(generate(model, params, PROMPTS, length=LENGTH)))


def test_greedy_tokens_of_an_encoder_decoder_are_those_of_whole_passes():
    model, params = JOINED
    prompts, source = [[0], [0, 7], [0]], np.array([[4, 8, 15, 16], [1, 2, 1, 2], [60, 59, 58, 57]])
    new = np.asarray(generate(model, params, prompts, source=source, length=LENGTH))
    assert_likeliest(model, params, prompts, new, source)
    assert np.any(new[0] != new[2]), "rows must depend on their sources"


@pytest.mark.parametrize("name", ["learned", "windows"])
def test_logits_with_a_cache_are_those_without(name):
    model, params = build(model_config(DECODERS[name]))
    apply = jax.jit(lambda tokens, cache: model.apply({"params": params}, tokens, cache=cache))
    tokens = jax.random.randint(jax.random.key(3), (2, 11), 0, VOCAB)
    cached, parts = caches.empty(model.config, 2, 16), []
    for part in (tokens[:, :5], *jnp.split(tokens[:, 5:], 6, axis=1)):
        logits, cached = apply(part, cached)
        parts.append(logits)
    # Sums over 16 slots in another order than over 11 keys.
    expected = apply(tokens, None)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, SAMPLING], ids=["greedy", "sampling"])
def test_a_row_does_not_depend_on_the_others(options):
    model, params = BASIC
    together = generate(model, params, PROMPTS, length=LENGTH, **options)
    alone = generate(model, params, PROMPTS[0], length=LENGTH, **options)
    swapped = generate(model, params, [PROMPTS[0], [1, 2, 3, 4, 5, 6, 7], [8]], length=LENGTH, **options)
    np.testing.assert_array_equal(together[:1], alone)
    np.testing.assert_array_equal(together[0], swapped[0])
    assert np.any(np.asarray(together) != np.asarray(swapped))


def test_what_is_beyond_a_rows_length_is_not_read():
    model, params = BASIC
    ragged = generate(model, params, PROMPTS, length=6)
    padded = np.full((3, 40), -7)
    for row, prompt in enumerate(PROMPTS):
        padded[row, : len(prompt)] = prompt
    np.testing.assert_array_equal(generate(model, params, padded, lengths=[5, 1, 3], length=6), ragged)


def test_padding_of_the_source_is_not_read():
    model, params = JOINED
    alone = generate(model, params, [[0]], source=[[3, 1, 4]], length=8)
    mask = np.arange(6)[None] < 3
    masked = generate(model, params, [[0]], source=[[3, 1, 4, 9, 9, 9]], source_mask=mask, length=8)
    np.testing.assert_array_equal(alone, masked)
    assert np.any(alone != generate(model, params, [[0]], source=[[3, 1, 4, 9, 9, 9]], length=8))


def test_a_stop_token_is_kept_and_followed_by_padding():
    model, params = BASIC
    free = np.asarray(generate(model, params, PROMPTS, length=12))
    stops = [int(free[0, 4]), int(free[1, 7])]
    expected = free.copy()
    for row in expected:
        ends = np.flatnonzero(np.isin(row, stops))
        if ends.size:
            row[ends[0] + 1 :] = -1
    assert np.any(expected == -1)
    stopped = generate(model, params, PROMPTS, length=12, stop=stops, pad=-1)
    np.testing.assert_array_equal(stopped, expected)
    one = generate(model, params, PROMPTS[0], length=12, stop=int(free[0, 0]), pad=3)
    np.testing.assert_array_equal(one[0], [free[0, 0], *[3] * 11])


@pytest.mark.parametrize("block", [1, 3, 50])
@pytest.mark.parametrize("options", [{}, SAMPLING], ids=["greedy", "sampling"])
def test_stream_gives_the_tokens_of_generate(block, options):
    model, params = BASIC
    blocks = list(stream(model, params, PROMPTS, block=block, length=LENGTH, **options))
    expected = generate(model, params, PROMPTS, length=LENGTH, **options)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected)
    assert [b.shape[1] for b in blocks[:2]] == [1, min(block, LENGTH - 1)]


def test_stream_ends_when_every_row_has_stopped():
    model, params = BASIC
    free = np.asarray(generate(model, params, PROMPTS[0], length=12))[0]
    blocks = list(stream(model, params, PROMPTS[0], length=12, block=2, stop=int(free[3])))
    first = int(np.argmax(free == free[3]))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[0], free[: first + 1])


def test_a_key_decides_the_draws():
    model, params = BASIC
    draw = lambda seed: np.asarray(  # noqa: E731
        generate(model, params, PROMPTS, length=8, **{**SAMPLING, "key": jax.random.key(seed)})
    )
    np.testing.assert_array_equal(draw(0), draw(0))
    assert np.any(draw(0) != draw(1))


def test_rows_draw_from_the_models_distribution_independently():
    model, params = BASIC
    rows, method = 2048, Temperature(3.0)
    out = generate(model, params, [PROMPTS[0]] * rows, length=2, method=method, key=jax.random.key(5), capacity=8)
    whole = jax.jit(lambda tokens: model.apply({"params": params}, tokens))(jnp.asarray([PROMPTS[0]]))
    logits = np.asarray(whole, np.float64)[0, -1] / 3.0
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    found = np.bincount(np.asarray(out)[:, 0], minlength=VOCAB) / rows
    np.testing.assert_array_less(np.abs(found - expected), 5 * np.sqrt(expected / rows) + 2 / rows)
    # A key that were used again for the second token would make it follow from the first.
    first = np.asarray(out)[:, 0]
    common = np.asarray(out)[first == np.bincount(first).argmax(), 1]
    assert len(np.unique(common)) > 3


def test_a_repetition_penalty_reaches_prompt_and_output():
    model, params = BASIC
    out = np.asarray(generate(model, params, PROMPTS, length=20, repetition_penalty=1e6))
    for prompt, new in zip(PROMPTS, out, strict=True):
        assert len({*prompt, *new}) == len(prompt) + len(new)


@dataclasses.dataclass(frozen=True)
class Counting(Greedy):
    traces: ClassVar[list] = []

    def __call__(self, logits, key):
        self.traces.append(logits.shape)
        return super().__call__(logits, key)


def test_programs_are_compiled_once():
    model, params = BASIC
    run = lambda **options: generate(model, params, **{"length": 5, "method": Counting(), **options})  # noqa: E731
    run(prompt=[[1, 2, 3], [4]], stop=3)
    assert len(Counting.traces) >= 2
    Counting.traces.clear()
    run(prompt=[[7, 8], [9, 10, 11, 12, 13]], stop=8, pad=2, length=30)
    generate(Transformer(model.config), params, [[1], [2]], method=Counting(), key=jax.random.key(9), stop=1, length=3)
    list(stream(model, params, [[1], [2]], method=Counting(), stop=1, length=9, block=4))
    assert not Counting.traces


def test_bfloat16_runs():
    config = dataclasses.replace(BASIC[0].config, dtype="bfloat16", readout=Readout())
    out = np.asarray(generate(*build(config), PROMPTS, length=6))
    assert out.shape == (3, 6)
    assert out.dtype == np.int32
    assert out.min() >= 0
    assert out.max() < VOCAB


def test_one_row_and_arrays_are_prompts_too():
    model, params = BASIC
    expected = np.asarray(generate(model, params, [[5, 17, 3]], length=4))
    for prompt in ([5, 17, 3], np.array([5, 17, 3]), jnp.array([[5, 17, 3]]), (np.array([5, 17, 3], np.uint16),)):
        np.testing.assert_array_equal(generate(model, params, prompt, length=4), expected)


def test_learned_positions_can_be_used_to_the_last():
    model, params = LEARNED
    prompt = [list(range(1, 48))]
    out = np.asarray(generate(model, params, prompt, length=2))
    whole = np.array([[*prompt[0], out[0, 0]]])
    np.testing.assert_array_equal(out, likeliest(model, params, whole, None)[:, -2:])


ERRORS = {
    "length=0": ({"length": 0}, "length=0"),
    "half a length": ({"length": 1.5}, "length=1.5: it must be a whole number"),
    "boolean length": ({"length": True}, "length=True"),
    "empty row": ({"prompt": [[1], []]}, "empty row, row 1"),
    "empty": ({"prompt": []}, "prompt is empty"),
    "text": ({"prompt": "to be"}, "text.*tokenizer"),
    "rank": ({"prompt": np.zeros((1, 2, 3), int)}, "shape"),
    "mixed ranks": ({"prompt": [1, [2, 3]]}, "rank"),
    "floats": ({"prompt": [[1.0, 2.0]]}, "float64"),
    "outside the vocabulary": ({"prompt": [[1, 61]]}, "id 61.*vocabulary of 61"),
    "negative": ({"prompt": [[-1, 6]]}, "id -1"),
    "lengths out of range": ({"prompt": [[1, 2]], "lengths": [3]}, r"lengths\[0\]=3.*1 to 2"),
    "lengths zero": ({"prompt": [[1, 2]], "lengths": [0]}, r"lengths\[0\]=0"),
    "lengths of another shape": ({"prompt": [[1, 2]], "lengths": [1, 1]}, "one integer for each of the 1 rows"),
    "no key": ({"method": TopP(0.9)}, "jax.random.key"),
    "untyped key": ({"method": TopP(0.9), "key": 0}, "typed key"),
    "many keys": ({"method": TopP(0.9), "key": jax.random.split(jax.random.key(0))}, "one typed key"),
    "stop": ({"stop": [5, 61]}, "stop holds 61"),
    "negative stop": ({"stop": -1}, "stop holds -1"),
    "stop beyond int32": ({"stop": 2**32 + 5}, "stop holds 4294967301"),
    "half a stop": ({"stop": 1.5}, "stop=1.5 must be a token's id"),
    "float stops": ({"stop": [5, 6.0]}, r"stop=\[5, 6.0\] must be a token's id"),
    "no stop": ({"stop": None}, "stop=None must be .*leave it out"),
    "boolean stop": ({"stop": True}, "stop=True must be"),
    "stop in words": ({"stop": "end"}, "stop='end' must be"),
    "stops in rows": ({"stop": [[5], [6]]}, r"stop=\[\[5\], \[6\]\] must be"),
    "wide padding": ({"pad": 2**40}, f"pad={2**40} must be a whole number of 32 bits"),
    "penalty": ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
    "infinite penalty": ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
    "penalty beyond float32": (
        {"repetition_penalty": 1e300},
        r"repetition_penalty=1e\+300: it must be positive and finite",
    ),
    "penalty in words": ({"repetition_penalty": "much"}, "repetition_penalty='much'"),
    "capacity": ({"capacity": 5}, "capacity=5 .*use 66"),
    "half a capacity": ({"capacity": 128.5}, "capacity=128.5: it must be a whole number"),
    "source": ({"source": [[1]]}, "no encoder"),
    "source_mask": ({"source_mask": [[True]]}, "without a source"),
}


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize("name", ERRORS)
def test_refuses_what_does_not_fit(function, name):
    options, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as caught:
        function(*BASIC, **{"prompt": [[1, 2, 3]], **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 47}, "needs 49 positions.*config.length=48.*length=46 or less"),
        ({"prompt": [list(range(50))]}, "config.length=48.*at most 48"),
        ({"length": 4, "capacity": 49}, "capacity=49 exceeds.*config.length=48"),
    ],
)
def test_refuses_to_outgrow_learned_positions(options, message):
    with pytest.raises(ValueError, match=message):
        generate(*LEARNED, **{"prompt": [[1, 2, 3]], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass source"),
        ({"source": [[1], [2]]}, "source has 2 rows and prompt 1"),
        ({"source": [[1, 99]]}, "source row 0 holds the id 99"),
        ({"source": [[1, 2]], "source_mask": [[True]]}, r"source_mask has shape \(1, 1\)"),
    ],
)
def test_refuses_a_source_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        generate(*JOINED, [[0]], **options)


def test_refuses_an_encoder_and_tracing():
    encoder = Transformer(ModelConfig(VOCAB, 32, encoder=stack()))
    with pytest.raises(ValueError, match="no decoder"):
        generate(encoder, {}, [[1]])
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda prompt: generate(*BASIC, prompt))(jnp.ones((1, 2), jnp.int32))
    for block in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"block={block}: it must be a whole number"):
            stream(*BASIC, [[1]], block=block)


def test_one_token_needs_no_second_copy_of_the_blocks(monkeypatch):
    several = np.asarray(generate(*BASIC, PROMPTS, length=2))
    monkeypatch.setattr(loop, "prepare", lambda *_: pytest.fail("a copy is made"))
    np.testing.assert_array_equal(generate(*BASIC, PROMPTS, length=1), several[:, :1])
    np.testing.assert_array_equal(np.concatenate([*stream(*BASIC, PROMPTS, length=1)]), several[:, :1])


def test_banned_tokens_are_never_chosen_and_the_next_best_is():
    config = model_config(stack())
    model, params = build(config)
    first = int(generate(model, params, PROMPTS[0], length=1)[0, 0])
    logits = np.asarray(model.apply({"params": params}, jnp.asarray([PROMPTS[0]]))[0, -1])
    assert first == np.argmax(logits)
    second = int(np.argsort(-logits)[1])
    assert int(generate(model, params, PROMPTS[0], length=1, banned=first)[0, 0]) == second
    free = [token for token in range(VOCAB) if token not in (1, 2, 3)]
    for method in (Greedy(), Temperature(5.0)):
        out = generate(model, params, PROMPTS, length=30, method=method, key=jax.random.key(0), banned=free)
        assert set(np.unique(out)) <= {1, 2, 3}
    streamed = np.concatenate(list(stream(model, params, PROMPTS, length=30, banned=free)), axis=1)
    np.testing.assert_array_equal(streamed, generate(model, params, PROMPTS, length=30, banned=free))


@pytest.mark.parametrize(
    ("banned", "said"),
    [
        (VOCAB, f"banned holds {VOCAB}, outside the model's vocabulary"),
        (1.5, "banned=1.5 must be a token's id or several"),
        (range(VOCAB), f"banned holds all {VOCAB} tokens"),
    ],
)
def test_what_cannot_be_banned_is_refused(banned, said):
    model, params = build(model_config(stack()))
    with pytest.raises(ValueError, match=said):
        generate(model, params, PROMPTS, length=1, banned=banned)
