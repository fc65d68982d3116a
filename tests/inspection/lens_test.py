from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Patch, lens
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack
from transformer.models.transformer import Transformer

LAYER = Norm("layer", 1e-5, bias=True)
BIASED = Attention(4, head_width=6, bias=True, output_bias=True)
PLAIN = Mlp(20, "gelu_tanh", gated=False, bias=True)
GPT2 = ("decoder", {}, dict(attention=BIASED, mlp=PLAIN, norm=LAYER, position=Position("learned")))
LLAMA = ("decoder", {"readout": Readout(tied=False)}, {})
SHAPES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "gemma2": (
        "decoder",
        {"embedding_scale": True, "readout": Readout(softcap=5.0)},
        dict(norm=Norm(zero_centred=True), norm_placement="both", attention=Attention(4, 1, 6, windows=(3, 0))),
    ),
    "sandwich": ("decoder", {}, dict(attention=BIASED, mlp=PLAIN, norm=LAYER, norm_placement="both")),
    "neox": ("decoder", {"readout": Readout(tied=False)}, dict(attention=BIASED, norm=LAYER, parallel=True)),
    "bloom": ("decoder", {}, dict(mlp=None, norm=LAYER, position=Position("alibi"), embedding_norm=True)),
    "marian": (
        "encoder decoder",
        {"embedding_scale": True, "readout": Readout(bias=True)},
        dict(attention=BIASED, mlp=PLAIN, norm=LAYER, norm_placement="post", position=Position("sinusoidal")),
    ),
    "t5": ("encoder decoder", {"readout": Readout(scale=True)}, dict(position=Position("relative"))),
    "bert": (
        "encoder",
        {"token_types": 2, "readout": Readout(bias=True, transform=True)},
        dict(
            attention=BIASED, mlp=Mlp(20, "relu", gated=False, bias=True), norm=LAYER, norm_placement="post",
            position=Position("learned"), embedding_norm=True,
        ),
    ),
}  # fmt: skip
SEEN = ("gpt2", "llama", "gemma2", "marian", "t5", "bert")  # whose ways to read a residual differ
LINEAR = [name for name in SHAPES if name != "bert"]


def quick(function):
    """`jax.jit` that spends less on optimising: these programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def built(build):
    """`built(name)`: model, parameters, tokens and further arguments of a shape."""
    return functools.cache(lambda name: build(*SHAPES[name][:2], **SHAPES[name][2]))


@pytest.fixture(scope="module")
def ran(built):
    """`ran(name)`: a model, its parameters in float64, targets, logits, captures, its lens and an attribution."""

    @functools.cache
    def run(name):
        model, params, tokens, arguments = built(name)
        targets = (tokens * 5 + 1) % 11

        role, stack = ("decoder", model.config.decoder) if model.config.decoder else ("encoder", model.config.encoder)
        capture = [f"{role}/*", f"{role}/*/residual_*", f"{role}/**/mixed"]
        capture += [f"{role}/*/mlp/outer"] if stack.mlp else []

        def everything(params):
            logits, taps = inspection.run(model, params, tokens, capture=capture, **arguments)
            seen = lens.logit_lens(model, params, tokens, **arguments) if name in SEEN else None
            parts = lens.attribute_logits(model, params, tokens, targets, **arguments) if name in LINEAR else None
            return logits, taps, seen, parts

        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        return model, exact, np.asarray(targets), *jax.device_get(quick(everything)(params))

    return run


def norm_of(norm: Norm, params, x, parts=None):
    """A norm in float64; of parts, with what it divides by as it is for their sum x, and its bias beside them."""
    centre = lambda x: x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x  # noqa: E731
    divisor = np.sqrt((centre(x) ** 2).mean(axis=-1, keepdims=True) + norm.epsilon)
    through = lambda x: centre(x) / divisor * (params["scale"] + norm.zero_centred)  # noqa: E731
    bias = params["bias"] if norm.bias else 0.0
    return through(x) + bias if parts is None else ({name: through(part) for name, part in parts.items()}, bias)


def read_of(config: ModelConfig, params, x):
    role = "decoder" if config.decoder else "encoder"
    stack, own = getattr(config, role), params.get("readout", {})
    x = x if stack.norm_placement == "post" else norm_of(stack.norm, params[role]["final_norm"], x)
    if config.readout.transform:
        x = np.maximum(x @ own["transform"]["kernel"] + own["transform"]["bias"], 0)
        x = norm_of(stack.norm, own["norm"], x)
    x = x / math.sqrt(config.width) if config.readout.scale else x
    logits = x @ (params["embedding"]["table"].T if config.readout.tied else own["kernel"])
    logits = logits + own["bias"] if config.readout.bias else logits
    cap = config.readout.softcap
    return cap * np.tanh(logits / cap) if cap else logits


@pytest.mark.parametrize("name", SEEN)
def test_the_lens_reads_every_residual_as_the_model_reads_the_last(ran, name):
    model, params, _, logits, taps, seen, _ = ran(name)
    role = "decoder" if model.config.decoder else "encoder"
    rows = [taps[f"{role}/0/residual_pre"], *taps[f"{role}/*/residual_post"]]
    expected = np.stack([read_of(model.config, params, row) for row in rows])
    # One norm and one product of 8 terms in float32; BERT's transform has one of each more.
    np.testing.assert_allclose(seen.logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.logits[-1], logits, rtol=1e-5, atol=1e-5)
    assert np.std(expected[:-1] - logits, axis=(1, 2, 3)).min() > 0.1  # no other row could be taken for the last
    np.testing.assert_allclose(np.exp(seen.log_probabilities).sum(axis=-1), 1, rtol=1e-5)


def carried(config: ModelConfig, params, taps):
    """Every part's own way through all norms behind it, forwards and in float64: `{name: [B, T, D]}`."""
    role = "decoder" if config.decoder else "encoder"
    stack, own = getattr(config, role), params[role]
    taps = {site: np.asarray(array, np.float64) for site, array in taps.items()}
    start = [name for name in ("embedding", "positions") if f"{role}/{name}" in taps]
    parts = {name: taps[f"{role}/{name}"] for name in start}

    def through(norm, parts, owner):
        parts, bias = norm_of(stack.norm, norm, sum(parts.values()), parts)
        return added(parts, {owner: bias})

    parts = through(own["embedding_norm"], parts, "constant") if stack.embedding_norm else parts
    for layer in range(stack.depth):
        block = jax.tree.map(lambda leaf: leaf[layer], own["blocks"])  # noqa: B023
        for half in (half for half in ("attention", "cross", "mlp") if f"{half}_norm" in block):
            new = written(half, layer, block, f"{role}/{layer}/", taps)
            if stack.norm_placement == "both":
                new = through(block[f"{half}_post_norm"], new, ("biases", layer))
            parts = added(parts, new)
            if stack.norm_placement == "post":
                parts = through(block[f"{half}_norm"], parts, ("biases", layer))
    return parts if stack.norm_placement == "post" else through(own["final_norm"], parts, "constant")


def written(half, layer, block, site, taps):
    """What the parts of one half write."""
    if half == "mlp":
        return {("mlp", layer): taps[f"{site}mlp/outer"]}
    name, under, output = ("heads", "", "attention") if half == "attention" else ("cross", "cross/", "cross_attention")
    output, mixed = block[output]["output"], taps[f"{site}{under}mixed"]
    parts = {(name, layer, head): mixed[:, :, head] @ kernel for head, kernel in enumerate(output["kernel"])}
    return parts | ({("biases", layer): output["bias"]} if "bias" in output else {})


def added(parts, new):
    return parts | {name: parts.get(name, 0.0) + part for name, part in new.items()}


@pytest.mark.parametrize("name", LINEAR)
def test_parts_are_what_each_writes_carried_through_the_norms_and_sum_to_the_logit(ran, name):
    model, params, targets, logits, taps, _, found = ran(name)
    config, readout = model.config, model.config.readout
    columns = params["embedding"]["table"] if readout.tied else params["readout"]["kernel"].T
    columns = columns[targets] / (math.sqrt(config.width) if readout.scale else 1)
    expected = {name: np.sum(part * columns, axis=-1) for name, part in carried(config, params, taps).items()}
    expected = added(expected, {"constant": params["readout"]["bias"][targets] if readout.bias else 0.0})
    size = sum(np.abs(part) for part in expected.values())  # of what is rounded in float32
    unseen = {name: np.array(array) for name, array in found._asdict().items() if array is not None}
    for part, value in expected.items():
        name, *index = (part,) if isinstance(part, str) else part
        assert np.abs(unseen[name][tuple(index)] - value).max() < 1e-5 * size.max(), part
        unseen[name][tuple(index)] = 0
    assert not any(array.any() for array in unseen.values())
    cap = readout.softcap
    total = cap * np.tanh(found.total / cap) if cap else found.total
    logit = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    assert np.all(np.abs(total - logit) < 2e-6 * size), np.max(np.abs(total - logit) / size)
    assert np.std(logit) > 0.1


def test_a_difference_of_two_logits_and_chosen_positions(built, ran):
    model, params, tokens, _ = built("gpt2")
    _, _, targets, logits, _, _, whole = ran("gpt2")
    others = (targets + 4) % 11
    attribute = functools.partial(lens.attribute_logits, model)
    apart, chosen = quick(
        lambda params: (
            attribute(params, tokens, targets, against=others[:, :1]),
            attribute(params, tokens, targets[:, [4, 1]], positions=(-1, 1)),
        )
    )(params)
    rows, places = np.indices(targets.shape)
    difference = logits[rows, places, targets] - logits[rows, places, others[:, :1]]
    np.testing.assert_allclose(apart.total, difference, rtol=1e-4, atol=5e-5)
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), apart, whole)  # as vmap gives them
    np.testing.assert_allclose(stacked.total, [apart.total, whole.total], rtol=1e-5, atol=1e-5)
    for group, array in whole._asdict().items():
        if array is not None:
            np.testing.assert_allclose(getattr(chosen, group), array[..., [4, 1]], rtol=1e-4, atol=1e-5, err_msg=group)


def test_the_highest_logits_and_those_of_chosen_tokens(built, ran):
    model, params, tokens, _ = built("gpt2")
    whole = ran("gpt2")[5]
    ids = np.stack([np.asarray(tokens), np.full(tokens.shape, 11), np.full(tokens.shape, -1)], axis=-1)
    look = functools.partial(lens.logit_lens, model)
    top, wanted, same = quick(
        lambda params: (
            look(params, tokens, top=3, positions=(3, -1)),
            look(params, tokens, ids=jnp.asarray(ids)),
            look(params, tokens, ids=jnp.arange(4), positions=2),
        )
    )(params)
    order = np.argsort(-whole.logits[:, :, [3, 4]], axis=-1)[..., :3]
    np.testing.assert_array_equal(top.ids, order)
    np.testing.assert_allclose(
        top.log_probabilities, np.take_along_axis(whole.log_probabilities[:, :, [3, 4]], order, axis=-1), rtol=1e-4
    )
    chosen = np.take_along_axis(whole.logits, np.asarray(tokens)[None, ..., None], axis=-1)
    np.testing.assert_allclose(wanted.logits[..., :1], chosen, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(wanted.ranks[..., 0], (whole.logits > chosen + 1e-5).sum(axis=-1))
    assert np.isnan(wanted.logits[..., 1:]).all()  # no token has these ids
    np.testing.assert_allclose(same.logits, whole.logits[:, :, [2], :4], rtol=1e-4, atol=1e-5)
    assert same.ids.shape == same.ranks.shape == (3, 2, 1, 4) and (whole.ids, whole.ranks) == (None, None)


def test_only_one_layers_logits_are_in_memory():
    stack = Stack(depth=6, attention=Attention(2), mlp=None)
    model = Transformer(ModelConfig(vocab=20_000, width=8, decoder=stack))
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    program = quick(lambda params, tokens: lens.logit_lens(model, params, tokens, top=2)).lower(params, tokens)
    memory = program.compile().memory_analysis()
    one = 2 * 16 * 20_000 * 4  # bytes
    assert memory.output_size_in_bytes < one / 100
    assert memory.temp_size_in_bytes < 4 * one  # logits, what top_k makes of them, and exponentials; not 7


def test_residuals_of_a_chosen_stack_and_a_patched_run_that_is_read(built):
    model, params, tokens, arguments = built("t5")
    patch = Patch("decoder/0/mixed", 0.0, head=1)

    def everything(params):
        capture = ("encoder/0/residual_pre", "**/residual_post")
        logits, taps = inspection.run(model, params, tokens, capture=capture, patches=patch, **arguments)
        read = lens.read(model, params, taps["decoder/1/residual_post"])
        return logits, read, taps, lens.residuals(model, params, tokens, role="encoder", positions=(-1,), **arguments)

    logits, read, taps, found = quick(everything)(params)
    np.testing.assert_allclose(read, logits, rtol=1e-5, atol=1e-5)
    expected = jnp.stack([taps["encoder/0/residual_pre"], *taps["encoder/*/residual_post"]])
    np.testing.assert_allclose(found, expected[:, :, -1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape, call, message",
    [
        ("gpt2", dict(top=0), r"top=0 is out of range: there are 1 to 11 tokens"),
        ("gpt2", dict(top=12), r"top=12 is out of range"),
        ("gpt2", dict(top=2, ids=np.arange(2)), r"top=2 cannot be asked for beside ids"),
        ("gpt2", dict(ids=np.zeros((3, 2), int)), r"ids of shape \(3, 2\) do not fit: .* broadcast to \(2, 5, 2\)"),
        ("gpt2", dict(positions=7), r"position=\(7,\) is out of range|position=7 is out of range"),
        ("gpt2", dict(targets=np.zeros(4, int)), r"targets of shape \(4,\) do not fit: .* \(2, 5\)"),
        ("gpt2", dict(targets=0, against=np.zeros(3, int)), r"against of shape \(3,\) do not fit"),
        ("gpt2", dict(targets=0, positions=9), r"position=\(9,\) is out of range|position=9 is out of range"),
        ("gpt2", dict(targets=0, train=True), r"train=True cannot work: dropout"),
        ("bert", dict(targets=0), r"readout.transform=True cannot be attributed"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(built, shape, call, message):
    model, params, tokens, _ = built(shape)
    function = lens.attribute_logits if "targets" in call else lens.logit_lens
    with pytest.raises(ValueError, match=message) as error:
        function(model, params, tokens, **call)
    assert "\n" not in str(error.value)


def test_ids_outside_the_vocabulary_have_no_rank_and_patches_are_refused(build):
    model, params, tokens, _ = build("decoder")
    seen = lens.logit_lens(model, params, tokens, ids=[3, 11, -1])
    assert np.all(seen.ranks[..., 1:] == -1) and np.all(seen.ranks[..., 0] >= 0)
    np.testing.assert_array_equal(lens.logit_lens(model, params, tokens, ids=3).logits, seen.logits[..., :1])
    with pytest.raises(ValueError, match="patches cannot be given here"):
        lens.attribute_logits(model, params, tokens, 3, patches=inspection.Patch("decoder/*/mixed"))
