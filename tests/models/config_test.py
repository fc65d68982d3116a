"""Every field of the configuration matters, and what cannot work is refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from transformer.models.config import Attention, Init, Mlp, ModelConfig, Norm, Position, Readout, Scaling, Stack
from transformer.models.feed_forward import Experts
from transformer.models.transformer import Transformer
from transformer.training import prediction

TOKENS = np.array([[3, 1, 4, 1, 5]])


def decoder(position=None, **fields) -> ModelConfig:
    """A small decoder; what is not a field of the model is one of its stack."""
    own = {name: fields.pop(name) for name in list(fields) if name in ModelConfig.__dataclass_fields__}
    stack = Stack(
        **{"depth": 2, "attention": Attention(2), "mlp": Mlp(12), "position": position or Position(), **fields}
    )
    return ModelConfig(11, 8, decoder=stack, **{"length": 16, **own})


def rotary(kind="none", **fields):
    return decoder(Position(base=50.0, scaling=Scaling(kind, **{"factor": 2.0, "original_length": 4, **fields})))


PLAIN = decoder()
MIXTURE = decoder(mlp=Mlp(12, experts=Experts(4, 2)))
LAYER = decoder(norm=Norm("layer"))
RELATIVE = decoder(Position("relative", buckets=4, distance=4))
UNTIED = decoder(readout=Readout(tied=False))
ENCODER = ModelConfig(11, 8, encoder=PLAIN.decoder, length=16)
DYNAMIC, LLAMA3, YARN = rotary("dynamic"), rotary("llama3", low=0.05, high=0.9), rotary("yarn", low=0.01, high=0.4)

OUTPUT, SHAPES, START, DROPS, PROGRAM, LOSS = "output", "shapes", "start", "drops", "program", "loss"
# Each field: a config, the field's new value there, and where the change shows.
CHANGES = {
    "Norm.kind": (PLAIN, "layer", OUTPUT),
    "Norm.epsilon": (PLAIN, 0.5, OUTPUT),
    "Norm.bias": (LAYER, True, SHAPES),
    "Norm.zero_centred": (PLAIN, True, OUTPUT),
    "Scaling.kind": (rotary("linear"), "ntk", OUTPUT),
    "Scaling.factor": (rotary("linear"), 3.0, OUTPUT),
    "Scaling.original_length": (DYNAMIC, 2, OUTPUT),
    "Scaling.low": (LLAMA3, 0.3, OUTPUT),
    "Scaling.high": (LLAMA3, 2.0, OUTPUT),
    "Scaling.magnitude": (YARN, 2.0, OUTPUT),
    "Position.kind": (PLAIN, "sinusoidal", OUTPUT),
    "Position.base": (PLAIN, 3.0, OUTPUT),
    "Position.fraction": (PLAIN, 0.5, OUTPUT),
    "Position.buckets": (RELATIVE, 6, SHAPES),
    "Position.distance": (RELATIVE, 20, OUTPUT),
    "Position.offset": (decoder(Position("learned")), 3, SHAPES),
    "Position.halves": (decoder(Position("sinusoidal")), True, OUTPUT),
    "Attention.heads": (PLAIN, 4, SHAPES),
    "Attention.kv_heads": (PLAIN, 1, SHAPES),
    "Attention.head_width": (PLAIN, 2, SHAPES),
    "Attention.bias": (PLAIN, True, SHAPES),
    "Attention.output_bias": (PLAIN, True, SHAPES),
    "Attention.scale": (PLAIN, 2.0, OUTPUT),
    "Attention.softcap": (PLAIN, 0.5, OUTPUT),
    "Attention.query_key_norm": (PLAIN, True, SHAPES),
    "Attention.windows": (PLAIN, (0, 2), OUTPUT),
    "Attention.dropout": (PLAIN, 0.5, DROPS),
    "Mlp.width": (PLAIN, 16, SHAPES),
    "Mlp.activation": (PLAIN, "relu", OUTPUT),
    "Mlp.gated": (PLAIN, False, SHAPES),
    "Mlp.bias": (PLAIN, True, SHAPES),
    "Mlp.dropout": (PLAIN, 0.5, DROPS),
    "Mlp.experts": (PLAIN, Experts(4), SHAPES),
    "Experts.count": (MIXTURE, 5, SHAPES),
    "Experts.active": (MIXTURE, 3, OUTPUT),
    "Experts.normalize": (MIXTURE, False, OUTPUT),
    "Experts.capacity": (MIXTURE, 0.3, OUTPUT),
    "Experts.balance": (MIXTURE, 0.5, LOSS),
    "Experts.router_z": (MIXTURE, 0.5, LOSS),
    "Stack.depth": (PLAIN, 3, SHAPES),
    "Stack.mlp": (PLAIN, None, SHAPES),
    "Stack.norm_placement": (PLAIN, "post", SHAPES),
    "Stack.embedding_norm": (PLAIN, True, SHAPES),
    "Stack.parallel": (PLAIN, True, OUTPUT),
    "Stack.dropout": (PLAIN, 0.5, DROPS),
    "Readout.tied": (PLAIN, False, SHAPES),
    "Readout.bias": (PLAIN, True, SHAPES),
    "Readout.transform": (PLAIN, True, SHAPES),
    "Readout.scale": (PLAIN, True, OUTPUT),
    "Readout.softcap": (PLAIN, 0.5, OUTPUT),
    "Init.kind": (PLAIN, "xavier", START),
    "Init.scale": (PLAIN, 0.5, START),
    "Init.embedding": (PLAIN, 0.5, START),
    "Init.output": (PLAIN, 0.1, START),
    "ModelConfig.vocab": (PLAIN, 12, SHAPES),
    "ModelConfig.width": (PLAIN, 12, SHAPES),
    "ModelConfig.encoder": (PLAIN, Stack(1, Attention(2)), SHAPES),
    "ModelConfig.decoder": (ENCODER, Stack(1, Attention(2)), SHAPES),
    "ModelConfig.length": (decoder(Position("learned")), 8, SHAPES),
    "ModelConfig.embedding_scale": (PLAIN, True, OUTPUT),
    "ModelConfig.token_types": (PLAIN, 2, SHAPES),
    "ModelConfig.pooler": (ENCODER, True, SHAPES),
    "ModelConfig.dtype": (PLAIN, "bfloat16", OUTPUT),
    "ModelConfig.param_dtype": (PLAIN, "bfloat16", SHAPES),
    "ModelConfig.unroll": (PLAIN, 2, PROGRAM),
    "ModelConfig.attention_implementation": (PLAIN, "chunked", PROGRAM),
    "ModelConfig.remat": (PLAIN, "full", PROGRAM),
}
# Fields that more than one kind of scaling reads, each kind by its own code.
AGAIN = [
    ("Scaling.kind", rotary(), "dynamic"),
    ("Scaling.kind", rotary("ntk"), "yarn"),
    ("Scaling.factor", rotary("ntk"), 3.0),
    ("Scaling.factor", DYNAMIC, 3.0),
    ("Scaling.factor", LLAMA3, 3.0),
    ("Scaling.factor", YARN, 3.0),
    ("Scaling.original_length", LLAMA3, 8),
    ("Scaling.original_length", YARN, 20),
    ("Scaling.low", YARN, 0.05),
    ("Scaling.high", YARN, 0.08),
]
CLASSES = (Norm, Scaling, Position, Attention, Experts, Mlp, Stack, Readout, Init, ModelConfig)
NESTED = {"Stack": {"attention", "norm", "position"}, "Position": {"scaling"}, "ModelConfig": {"readout", "init"}}


def test_every_field_has_a_change():
    fields = {
        f"{cls.__name__}.{field.name}"
        for cls in CLASSES
        for field in dataclasses.fields(cls)
        if field.name not in NESTED.get(cls.__name__, ())
    }
    assert fields == set(CHANGES), "give every new field a change in CHANGES, and take removed ones out"


def replaced(node, owner: str, field: str, value):
    """The tree with the field changed in every node of the class."""
    if not dataclasses.is_dataclass(node):
        return node
    children = {name.name: replaced(getattr(node, name.name), owner, field, value) for name in dataclasses.fields(node)}
    return dataclasses.replace(node, **(children | {field: value} if type(node).__name__ == owner else children))


def arguments(config):
    return {"source": TOKENS[:, :3]} if config.encoder and config.decoder else {}


@functools.cache
def shapes(config):
    model = Transformer(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, **arguments(config))["params"])


def facts(config):
    flat = jax.tree_util.tree_leaves_with_path(shapes(config))
    return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in flat}


@functools.cache
def start(config):
    with_output = lambda: Transformer(config).init(jax.random.key(0), TOKENS, **arguments(config))["params"]  # noqa: E731
    return jax.jit(with_output, compiler_options={"xla_backend_optimization_level": 0})()


@functools.cache
def output(config, train=False):
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(0.3, 0.7, leaf.shape).astype(leaf.dtype), shapes(config))
    rngs = {"dropout": jax.random.key(0)} if train else None
    apply = lambda params: Transformer(config).apply(  # noqa: E731
        {"params": params}, TOKENS, train=train, rngs=rngs, **arguments(config)
    )
    return np.asarray(jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})(params))


def loss(config):
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes(config))
    batch = {"inputs": TOKENS, "targets": TOKENS, "weights": np.ones(TOKENS.shape, np.float32)}
    loss_fn = jax.jit(prediction(Transformer(config)), compiler_options={"xla_backend_optimization_level": 0})
    return float(loss_fn(params, batch, None)[0])


def program(config):
    loss = lambda params: Transformer(config).apply({"params": params}, TOKENS).sum()  # noqa: E731
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(jax.grad(loss))(shapes(config))))


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_matters(name):
    config, value, where = CHANGES[name]
    changed = replaced(config, *name.split("."), value)
    assert changed != config
    if where == SHAPES:
        assert facts(config) != facts(changed)
        return
    assert facts(config) == facts(changed)
    if where == LOSS:
        np.testing.assert_array_equal(output(config), output(changed))
        assert abs(loss(config) - loss(changed)) > 1e-3
    elif where == OUTPUT:
        assert np.abs(output(config) - output(changed)).max() > 1e-3
    elif where == DROPS:
        np.testing.assert_array_equal(output(config), output(changed))
        assert np.abs(output(changed, train=True) - output(changed)).max() > 1e-3
    elif where == START:
        differs = jax.tree.map(lambda x, y: np.abs(x - y).max() > 1e-3, start(config), start(changed))
        assert any(jax.tree.leaves(differs))
    else:
        assert program(config) != program(changed)


@pytest.mark.parametrize(("name", "config", "value"), AGAIN)
def test_every_kind_of_scaling_reads_its_fields(name, config, value):
    changed = replaced(config, *name.split("."), value)
    assert np.abs(output(config) - output(changed)).max() > 1e-3


def test_multipliers_of_the_start_reach_what_they_name():
    kernels = lambda params: params["decoder"]["blocks"]["attention"]  # noqa: E731
    base, more = start(PLAIN), start(replaced(PLAIN, "Init", "scale", 0.5))
    np.testing.assert_array_equal(base["embedding"]["table"], more["embedding"]["table"])
    np.testing.assert_allclose(kernels(more)["query"]["kernel"], 25 * kernels(base)["query"]["kernel"], rtol=1e-5)
    less = start(replaced(PLAIN, "Init", "output", 0.1))
    np.testing.assert_array_equal(kernels(base)["query"]["kernel"], kernels(less)["query"]["kernel"])
    np.testing.assert_allclose(kernels(less)["output"]["kernel"], 0.2 * kernels(base)["output"]["kernel"], rtol=1e-5)


def test_derived_widths():
    config = decoder(attention=Attention(2, head_width=6), mlp=Mlp(None, gated=True))
    assert (config.head_width(config.decoder), PLAIN.head_width(PLAIN.decoder)) == (6, 4)
    assert (
        config.kv_heads(config.decoder),
        decoder(attention=Attention(2, 1)).kv_heads(Stack(2, Attention(2, 1))),
    ) == (2, 1)
    assert config.mlp_width(config.decoder) == 32  # 8/3 * 8 = 21.3, rounded up to a multiple of 32
    assert config.mlp_width(Stack(mlp=Mlp(None, gated=False))) == 32  # 4 * 8
    assert config.mlp_width(Stack(mlp=None)) == 0
    wide = ModelConfig(11, 4096, decoder=Stack())
    assert wide.mlp_width(wide.decoder) == 10_944  # 8/3 * 4096 = 10,922.7


@pytest.mark.parametrize(
    ("head", "fraction", "turned"),
    [(64, 0.25, 16), (8, 1.0, 8), (44, 30 / 44, 30), (50, 14 / 50, 14), (24, 1 / 3 + 1e-8, 8)],
)
def test_the_width_that_turns_is_whole_though_fractions_are_rounded(head, fraction, turned):
    config = decoder(Position(fraction=fraction), attention=Attention(1, head_width=head))
    assert config.rotary_width(config.decoder) == turned


def test_the_fractions_above_miss_on_both_sides():
    assert 44 * (30 / 44) < 30 and 50 * (14 / 50) > 14


def test_room_at_an_expert_is_a_share_of_the_row_and_at_most_all_of_it():
    assert Experts(8, 2).places(256) is None
    assert Experts(8, 2, capacity=1.25).places(256) == 80
    assert Experts(8, 2, capacity=1.0).places(3) == 1  # 0.75 of a token, rounded up
    assert Experts(4, 2, capacity=9.0).places(10) == 10


def test_configs_are_values():
    assert decoder() == PLAIN and hash(decoder()) == hash(PLAIN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.width = 3


REFUSED = [
    (lambda: Norm("batch"), r"norm.kind='batch' .*choose one of layer, rms"),
    (lambda: Norm(epsilon=0.0), r"norm.epsilon=0.0 .*positive"),
    (lambda: Norm(epsilon=float("nan")), r"norm.epsilon=nan .*positive"),
    (lambda: Norm("rms", bias=True), r"norm.bias=True .*norm.kind='layer'"),
    (lambda: Norm(bias=1), r"norm.bias=1 .*its type is bool"),
    (lambda: Scaling("stretch"), r"scaling.kind='stretch' .*choose one of none, linear"),
    (lambda: Scaling(factor=0.5), r"scaling.factor=0.5 .*at least 1"),
    (lambda: Scaling(original_length=0), r"scaling.original_length=0 .*positive"),
    (lambda: Scaling(low=4.0, high=4.0), r"scaling.low=4.0 .*between 0 and high=4.0"),
    (lambda: Scaling("llama3", magnitude=1.2), r"scaling.magnitude=1.2 .*only scaling.kind='yarn'"),
    (lambda: Scaling("yarn", magnitude=0.0), r"scaling.magnitude=0.0 .*positive"),
    (lambda: Scaling("yarn", magnitude=float("nan")), r"scaling.magnitude=nan .*positive"),
    (lambda: Position("absolute"), r"position.kind='absolute' .*choose one of none, learned"),
    (lambda: Position(base=1.0), r"position.base=1.0 .*exceed 1"),
    (lambda: Position(fraction=0.0), r"position.fraction=0.0 .*\(0, 1\]"),
    (lambda: Position(fraction=1.5), r"position.fraction=1.5 .*\(0, 1\]"),
    (lambda: Position(buckets=7), r"position.buckets=7 .*even number"),
    (lambda: Position(distance=16), r"position.distance=16 .*buckets / 2"),
    (lambda: Position("learned", offset=-1), r"position.offset=-1 .*it counts rows"),
    (lambda: Position("rotary", offset=2), r"position.offset=2 .*only position.kind='learned'"),
    (lambda: Position("learned", halves=True), r"position.halves=True .*only position.kind='sinusoidal'"),
    (lambda: Position(scaling=None), r"position.scaling=None .*its type is Scaling"),
    (lambda: Attention(0), r"attention.heads=0 .*positive"),
    (lambda: Attention("4"), r"attention.heads='4' .*its type is int"),
    (lambda: Attention(True), r"attention.heads=True .*its type is int"),
    (lambda: Attention(4, 3), r"attention.kv_heads=3 .*divide heads=4"),
    (lambda: Attention(4, 0), r"attention.kv_heads=0 .*divide heads=4"),
    (lambda: Attention(4, 8), r"attention.kv_heads=8 .*divide heads=4"),
    (lambda: Attention(head_width=0), r"attention.head_width=0 .*positive"),
    (lambda: Attention(softcap=0.0), r"attention.softcap=0.0 .*positive"),
    (lambda: Attention(windows=(4, -1)), r"attention.windows=\(4, -1\) .*0 \(all\) or positive"),
    (lambda: Attention(windows=[4]), r"attention.windows=\[4\] .*its type is tuple"),
    (lambda: Attention(windows=(4.0,)), r"attention.windows=\(4.0,\) .*its type is tuple"),
    (lambda: Attention(dropout=1.0), r"attention.dropout=1.0 .*below 1"),
    (lambda: Mlp(0), r"mlp.width=0 .*positive"),
    (lambda: Mlp(activation="swish"), r"mlp.activation='swish' .*choose one of relu"),
    (lambda: Mlp(dropout=-0.1), r"mlp.dropout=-0.1 .*at least 0"),
    (lambda: Mlp(experts=8), r"mlp.experts=8 .*its type is Experts"),
    (lambda: Experts(0), r"mlp.experts.count=0 .*positive"),
    (lambda: Experts(4, 0), r"mlp.experts.active=0 .*at least 1 and at most count=4"),
    (lambda: Experts(4, 5), r"mlp.experts.active=5 .*at least 1 and at most count=4"),
    (lambda: Experts(capacity=0.0), r"mlp.experts.capacity=0.0 .*positive and finite, or None"),
    (lambda: Experts(capacity=float("nan")), r"mlp.experts.capacity=nan .*positive and finite"),
    (lambda: Experts(balance=-0.1), r"mlp.experts.balance=-0.1 .*0 or more"),
    (lambda: Experts(router_z=float("inf")), r"mlp.experts.router_z=inf .*finite"),
    (lambda: Stack(0), r"depth=0 .*at least one layer"),
    (lambda: Stack(2.5), r"depth=2.5 .*its type is int"),
    (lambda: Stack(attention=None), r"attention=None .*its type is Attention"),
    (lambda: Stack(norm_placement="middle"), r"norm_placement='middle' .*choose one of pre, post, both"),
    (lambda: Stack(parallel=True, mlp=None), r"parallel=True .*an mlp"),
    (lambda: Stack(parallel=True, norm_placement="post"), r"parallel=True .*norm_placement='pre'"),
    (lambda: Stack(parallel=True, norm_placement="both"), r"parallel=True .*norm_placement='pre'"),
    (lambda: Stack(dropout=1), r"dropout=1 .*below 1"),
    (lambda: Stack(3, Attention(windows=(0, 2))), r"depth=3 .*multiple of the 2 windows"),
    (lambda: Readout(softcap=-1.0), r"readout.softcap=-1.0 .*positive"),
    (lambda: Readout(tied="no"), r"readout.tied='no' .*its type is bool"),
    (lambda: Init("uniform"), r"init.kind='uniform' .*choose one of normal"),
    (lambda: Init(scale=0.0), r"init.scale=0.0 .*positive"),
    (lambda: Init(embedding=-1.0), r"init.embedding=-1.0 .*positive"),
    (lambda: Init(output=-1.0), r"init.output=-1.0 .*not be negative"),
    (lambda: ModelConfig(11, 8), r"encoder, decoder=None .*give at least one of them a Stack"),
    (lambda: ModelConfig(0, 8, decoder=Stack()), r"vocab=0 .*positive"),
    (lambda: ModelConfig(True, 8, decoder=Stack()), r"vocab=True .*its type is int"),
    (lambda: ModelConfig(11, 0, decoder=Stack()), r"width=0 .*positive"),
    (lambda: ModelConfig(11, 8, decoder=Mlp()), r"decoder=Mlp.* its type is Stack"),
    (lambda: decoder(length=0), r"length=0 .*positive"),
    (lambda: decoder(token_types=-1), r"token_types=-1 .*not be negative"),
    (lambda: decoder(dtype="float64"), r"dtype='float64' .*choose one of float32"),
    (lambda: decoder(param_dtype="int8"), r"param_dtype='int8' .*choose one of float32"),
    (lambda: decoder(remat="some"), r"remat='some' .*choose one of none"),
    (lambda: decoder(unroll=0), r"unroll=0 .*positive"),
    (lambda: decoder(unroll=3), r"unroll=3 .*not exceed decoder.depth=2"),
    (lambda: decoder(attention=Attention(3)), r"decoder.attention.heads=3 .*width=8 must be divisible.*head_width"),
    (lambda: decoder(attention=Attention(8)), r"decoder.position.fraction=1.0 .*even whole number, not 1"),
    (lambda: decoder(Position(fraction=0.25)), r"decoder.position.fraction=0.25 .*even whole number, not 1"),
    (lambda: decoder(Position(fraction=1e-9)), r"decoder.position.fraction=1e-09 .*even whole number, not 4e-09"),
    (
        lambda: decoder(Position(fraction=0.50001)),
        r"decoder.position.fraction=0.50001 .*whole number, not 2.00004",
    ),
    (
        lambda: decoder(Position(fraction=0.5, scaling=Scaling("ntk"))),
        r"decoder.position.scaling.kind='ntk' .*at least 4 features .*not 2",
    ),
    (
        lambda: ModelConfig(11, 9, decoder=Stack(attention=Attention(3), position=Position("sinusoidal"))),
        r"width=9 .*even width",
    ),
    (
        lambda: decoder(encoder=Stack(2, Attention(2)), parallel=True),
        r"decoder.parallel=True .*leave it False beside an encoder",
    ),
    (lambda: decoder(pooler=True), r"pooler=True .*encoder without a decoder"),
    (
        lambda: ModelConfig(11, 8, encoder=Stack(2, Attention(2, windows=(4,)))),
        r"encoder.attention.windows=\(4,\) .*use a decoder",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message.split(" ")[0] for _, message in REFUSED])
def test_what_cannot_work_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_whole_numbers_do_for_floats():
    assert Position(base=100).base == 100
    assert Attention(scale=1).scale == 1
