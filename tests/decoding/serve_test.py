"""A served request has the tokens that `generate` gives it alone, whatever is served with it and in whatever order."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Greedy, TopK, generate, rows
from transformer.decoding.serve import Request, serve
from transformer.models.config import Attention, Mlp, ModelConfig, Position, Readout, Scaling, Stack
from transformer.models.transformer import Transformer

VOCAB, CAPACITY = 61, 48
LENGTHS = (9, 1, 20, 5, 12, 2, 7)
DRAWN = TopK(30, temperature=2.0)


def build(position="rotary", windows=(), **fields):
    attention = Attention(heads=4, kv_heads=2, windows=windows)
    decoder = Stack(2, attention, Mlp(48), position=Position(position))
    model = Transformer(ModelConfig(VOCAB, 32, decoder=decoder, length=CAPACITY, readout=Readout(tied=False), **fields))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    random = np.random.default_rng(0)

    def fill(path, leaf):
        # Large weights make the likeliest token depend on the whole context.
        mean, deviation = {"scale": (1.0, 0.1), "table": (0.0, 1.0)}.get(path[-1].key, (0.0, 0.25))
        return jnp.asarray(random.normal(mean, deviation, leaf.shape), leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)


BASIC = build()


def asked(lengths=LENGTHS):
    """Requests of one to 19 tokens, no two alike."""
    random = np.random.default_rng(1)
    prompts = [random.integers(VOCAB, size=1 + 3 * index) for index in range(len(lengths))]
    return [
        Request(prompt, length, jax.random.key(index))
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


def alone(model, params, request, method, **options):
    """What `generate` adds, in an array of one size, so that it compiles once."""
    options |= {"length": max(LENGTHS), "capacity": CAPACITY, "method": method, "key": request.key}
    made = generate(model, params, [request.prompt], **options)
    return np.asarray(made)[0, : request.length]


def by_request(responses):
    return {response.request: response for response in responses}


@pytest.mark.parametrize(
    ("method", "model", "block", "options"),
    [
        (DRAWN, {}, 4, {}),
        (Greedy(), {"position": "learned", "windows": (4, 0)}, 1, {"banned": range(0, VOCAB, 2), "prefix": True}),
    ],
    ids=["drawn", "likeliest"],
)
def test_requests_have_the_tokens_that_generate_gives_them_alone(method, model, block, options):
    model, params = build(**model)
    requests, rest = asked(), {"slots": 3, "capacity": CAPACITY, "block": block, "method": method}
    served = by_request(serve(model, params, requests, **rest, **options))
    assert len(served) == len(requests)
    for index, request in enumerate(requests):
        np.testing.assert_array_equal(served[request].tokens, alone(model, params, request, method, **options))
        assert (served[request].index, served[request].reason) == (index, "length")
    chosen = {token for response in served.values() for token in response.tokens.tolist()}
    assert len(chosen) > 10 and not chosen & {*options.get("banned", ())}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_order_and_company_change_nothing(dtype):
    model, params = build(dtype=dtype)
    options = {"slots": 3, "capacity": CAPACITY, "block": 4, "method": DRAWN}
    requests = asked()
    served = by_request(serve(model, params, requests, **options))
    turned = by_request(serve(model, params, requests[::-1], **options))
    for request in requests:
        np.testing.assert_array_equal(served[request].tokens, turned[request].tokens)
    (single,) = serve(model, params, requests[2:3], **options)
    np.testing.assert_array_equal(single.tokens, served[requests[2]].tokens)


def test_stop_tokens_end_a_request_and_its_own_go_before_those_of_all():
    model, params = BASIC
    free = alone(model, params, asked()[2], DRAWN)
    places = {token: place for place, token in reversed([*enumerate(free.tolist())])}  # where each comes first
    (first, _), (token, place) = sorted(places.items(), key=lambda item: item[1])[:: len(places) - 1]
    plain = asked()[2]
    own, none, at_once = (dataclasses.replace(plain, stop=stop) for stop in ((token, 60), (), int(first)))
    requests = [plain, own, none, at_once]
    options = {"slots": 3, "capacity": CAPACITY, "block": 4, "method": DRAWN}
    served = by_request(serve(model, params, requests, stop=[int(free[3])], **options))
    np.testing.assert_array_equal(served[plain].tokens, free[: places[int(free[3])] + 1])
    np.testing.assert_array_equal(served[own].tokens, free[: place + 1])
    np.testing.assert_array_equal(served[none].tokens, free)
    np.testing.assert_array_equal(served[at_once].tokens, free[:1])
    assert [served[request].reason for request in requests] == ["stop", "stop", "length", "stop"]
    exactly = dataclasses.replace(own, length=place + 1)  # the last token that it may have is one that stops
    (response,) = serve(model, params, [exactly], **options)
    assert (response.reason, len(response.tokens)) == ("stop", place + 1)


def test_an_endless_iterator_is_read_no_further_than_rows_are_free():
    read = []

    def endless():
        for request in itertools.cycle(asked()):
            read.append(request)
            yield request

    responses = serve(*BASIC, endless(), slots=3, capacity=CAPACITY, block=4, method=DRAWN)
    assert read == []
    for given in range(20):
        response = next(responses)
        # Those that were answered, and those that rows hold.
        assert len(read) <= given + 3 and response.request is read[response.index]


def test_rows_go_on_where_no_request_waits():
    long, short = asked((20, 3))
    responses = serve(
        *BASIC, iter([None, long, None, None, short, None]), slots=3, capacity=CAPACITY, block=4, method=DRAWN
    )
    first, second = responses
    # One row alone for two blocks; then the other for one; what is left of the first takes five in all.
    assert [(r.request, r.index, r.turn) for r in (first, second)] == [(short, 1, 12), (long, 0, 19)]


def test_busy_turns_are_counted_and_rows_are_filled_again():
    requests = asked((21, 5, 5, 5, 5, 5))
    responses = list(serve(*BASIC, requests, slots=3, capacity=CAPACITY, block=4, method=DRAWN))
    # Beside the long one the others take a block each, two at a time and then one.
    assert sorted((response.turn, response.index) for response in responses) == [
        (4, 1), (4, 2), (8, 3), (8, 4), (12, 5), (20, 0)
    ]  # fmt: skip
    assert sum(len(response.tokens) - 1 for response in responses) == 20 + 5 * 4


def test_a_request_that_cannot_be_served_is_answered_and_costs_no_others():
    good = asked()
    wrong = {
        "prompt has an empty row": Request([], 5, jax.random.key(0)),
        "holds the id 61, outside the model's vocabulary of 61": Request([1, 61], 5, jax.random.key(0)),
        "must hold integer token ids": Request([1.5], 5, jax.random.key(0)),
        "token ids [B, T]": Request([[1], [2]], 5, jax.random.key(0)),
        "capacity=48 is too small for a prompt of 40 and length=10: use 49": Request([1] * 40, 10, jax.random.key(0)),
        "length=0: it must be a whole number": Request([1], 0, jax.random.key(0)),
        "length=2.5: it must be a whole number": Request([1], 2.5, jax.random.key(0)),
        "draws at random: give it key=": Request([1], 5),
        "key must be one typed key": Request([1], 5, 0),
        "key must be of the implementation": Request([1], 5, jax.random.key(0, impl="rbg")),
        "stop holds -1": Request([1], 5, jax.random.key(0), stop=-1),
    }
    mixed = list(itertools.chain.from_iterable(itertools.zip_longest(good, wrong.values())))
    mixed = [request for request in mixed if request is not None]
    options = {"slots": 3, "capacity": CAPACITY, "block": 4, "method": DRAWN}
    served = by_request(serve(*BASIC, mixed, **options))
    for said, request in wrong.items():
        response = served[request]
        assert (response.reason, response.tokens.tolist()) == ("error", [])
        assert said in response.error and response.index == mixed.index(request)
    expected = by_request(serve(*BASIC, good, **options))
    for request in good:
        np.testing.assert_array_equal(served[request].tokens, expected[request].tokens)
        assert served[request].error is None


def test_prompts_are_padded_to_few_widths_and_each_is_one_program():
    options = {"slots": 3, "capacity": CAPACITY, "block": 4, "method": DRAWN}
    key, sizes = jax.random.key(0), []
    for lengths in ((1,), (2, 31, 32), (33,), (34, 40, 47)):
        requests = [Request([1] * length, 2, key) for length in lengths]
        assert len(list(serve(*BASIC, requests, **options))) == len(lengths)
        sizes.append((rows.admit._cache_size(), rows.advance._cache_size()))
    assert [after[0] - before[0] for before, after in itertools.pairwise(sizes)] == [0, 1, 0]
    assert sizes[0][1] == sizes[-1][1]


def test_arguments_that_no_request_could_be_served_with_are_refused_at_once():
    model, params = BASIC
    for options, said in (
        ({"slots": 0}, "slots=0: it must be a whole number, 1 or more"),
        ({"capacity": 12.5}, "capacity=12.5: it must be a whole number"),
        ({"block": 1.5}, "block=1.5: it must be a whole number"),
        ({"stop": 61}, "stop holds 61"),
        ({"banned": range(VOCAB)}, "banned holds all 61 tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            serve(model, params, [], **{"capacity": CAPACITY, **options})
    dynamic = Stack(position=Position("rotary", scaling=Scaling("dynamic", 2.0, original_length=32)))
    for config, said in (
        (ModelConfig(VOCAB, 32, encoder=Stack(), decoder=Stack()), "use generate"),
        (ModelConfig(VOCAB, 32, encoder=Stack()), "a decoder alone"),
        (ModelConfig(VOCAB, 32, decoder=Stack(position=Position("learned")), length=47), "config.length=47"),
        (ModelConfig(VOCAB, 32, decoder=dynamic), "beyond original_length=32"),
    ):
        with pytest.raises(ValueError, match=said):
            serve(Transformer(config), {}, [], capacity=CAPACITY)
