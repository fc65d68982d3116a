from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Patch
from transformer.inspection.vocabulary import head_table
from transformer.models.config import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack
from transformer.models.transformer import Transformer

LAYER = Norm("layer", 1e-5, bias=True)
PLAIN = Mlp(20, "gelu_tanh", gated=False, bias=True)
BIASED = Attention(4, 2, 6, bias=True, output_bias=True)
SHAPES = {
    "gpt2": ("decoder", {}, dict(attention=BIASED, mlp=PLAIN, norm=LAYER, position=Position("learned"))),
    "llama": ("decoder", {"readout": Readout(tied=False, scale=True)}, {}),
    "gemma": (
        "decoder",
        {"embedding_scale": True},
        dict(
            norm=Norm(zero_centred=True), norm_placement="both",
            attention=Attention(4, 1, 6, softcap=2.0, query_key_norm=True, scale=0.5),
        ),
    ),
    "marian": (
        "encoder decoder",
        {"embedding_scale": True},
        dict(norm=LAYER, norm_placement="post", attention=BIASED, position=Position("none"), embedding_norm=True),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(build):
    """`ran(name)`: a model, its parameters, and scores and values `[L, ...]` of runs in which no half writes anything,
    on all pairs of tokens, the query's last."""

    @functools.cache
    def run(name):
        model, params, _, arguments = build(*SHAPES[name][:2], **SHAPES[name][2])
        pairs = np.stack(np.meshgrid(np.arange(11), np.arange(11)), axis=-1).reshape(-1, 2)
        arguments = {name: np.repeat(array[:1], len(pairs), axis=0) for name, array in arguments.items()}
        silent = [site for site in inspection.sites(model) if site.endswith(("/output", "mlp/outer", "positions"))]
        patches = [Patch(site, 0.0) for site in silent if site.startswith("decoder")]
        capture = ("decoder/*/scores", "decoder/*/value")
        quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        run = lambda params: inspection.run(model, params, pairs, capture=capture, patches=patches, **arguments)  # noqa: E731
        taps = quick(run)(params)[1]
        return model, params, *(np.asarray(taps[site], np.float64) for site in capture)

    return run


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layer, head", [(0, 1), (1, -1)])
def test_it_names_what_the_model_scores_and_reads_highest(ran, name, layer, head):
    model, params, scores, value = ran(name)
    scores = scores[layer, :, head, 1, 0].reshape(11, 11)  # [query, key]
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    written = value[layer, :11, 0, head % 4 * value.shape[3] // 4]  # of the keys of the first query: all tokens
    written = written @ own["decoder"]["blocks"]["attention"]["output"]["kernel"][layer, head]
    written = read_out(model.config, own, layer, written)
    distance = 1 if model.config.decoder.position.kind == "rotary" else None
    found = head_table(model, params, np.arange(11), layer=layer, head=head, top=4, distance=distance, chunk=4)
    for ids, values, expected in ((found.keys, found.scores, scores), (found.writes, found.logits, written)):
        order = np.argsort(-expected, axis=1)[:, :4]
        np.testing.assert_array_equal(ids, order)
        # Sums of up to 8 products in float32, behind up to six norms.
        np.testing.assert_allclose(values, np.take_along_axis(expected, order, axis=1), rtol=1e-4, atol=1e-4)
        assert len({tuple(row) for row in order.tolist()}) > 3  # tokens differ in what they look for and write


def read_out(config, params, layer, x):
    """Logits of what a head writes, through the norms behind it but for their divisions."""
    stack, blocks = config.decoder, params["decoder"]["blocks"]

    def norm(x, scale):
        x = x - x.mean(axis=-1, keepdims=True) if stack.norm.kind == "layer" else x
        return x * (scale + stack.norm.zero_centred)

    if stack.norm_placement == "post":
        for later in range(layer, stack.depth):
            for half in ("attention", "cross", "mlp"):
                x = norm(x, blocks[f"{half}_norm"]["scale"][later])
    else:
        x = norm(x, blocks["attention_post_norm"]["scale"][layer]) if stack.norm_placement == "both" else x
        x = norm(x, params["decoder"]["final_norm"]["scale"])
    x = x / np.sqrt(config.width) if config.readout.scale else x
    return x @ (params["embedding"]["table"].T if config.readout.tied else params["readout"]["kernel"])


def test_the_size_of_chunks_changes_nothing(ran):
    model, params, _, _ = ran("llama")
    small, one = (head_table(model, params, [3, 7], layer=0, head=0, top=11, chunk=chunk) for chunk in (3, 4096))
    for field in small._fields:
        np.testing.assert_allclose(getattr(small, field), getattr(one, field), rtol=1e-5, atol=1e-6)
    assert sorted(small.keys[0].tolist()) == list(range(11))


@pytest.mark.parametrize(
    "changes, stack, call, message",
    [
        ({}, {}, dict(layer=2), r"layer=2 is out of range; there are 2: use 0 to 1"),
        ({}, {}, dict(head=-5), r"head=-5 is out of range; there are 4"),
        ({}, {}, dict(top=12), r"top=12 is out of range: there are 1 to 11 tokens"),
        ({}, {}, dict(chunk=0), r"chunk=0 cannot work"),
        ({}, {"position": Position("none")}, dict(distance=1), r"distance=1 cannot work: only .* rotary"),
        ({"readout": Readout(transform=True)}, {}, {}, r"readout.transform=True cannot be attributed"),
    ],
)
def test_what_cannot_be_tabled_is_refused_in_one_line(changes, stack, call, message):
    model = Transformer(ModelConfig(vocab=11, width=8, decoder=Stack(depth=2, **stack), **changes))
    with pytest.raises(ValueError, match=message) as error:
        head_table(model, {}, np.arange(3), **{"layer": 0, "head": 0, **call})
    assert "\n" not in str(error.value)
