import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from transformer import models
from transformer.training import Optimizer, create, optimizers, sharding

P = PartitionSpec


def mesh(**sizes):
    names = ("data", "fsdp", "expert", "sequence", "tensor")
    return AbstractMesh(tuple(sizes.get(name, 1) for name in names), names)


def shapes(config):
    """The shapes of a model's parameters."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    source = tokens if config.encoder is not None and config.decoder is not None else None
    model = models.Transformer(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, source=source)["params"])


def small(**fields):
    attention = models.Attention(heads=4, bias=True, output_bias=True)
    stack = models.Stack(depth=2, attention=attention, mlp=models.Mlp(width=32, bias=True, gated=False))
    return models.ModelConfig(vocab=11, width=16, decoder=stack, **fields)


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_of_every_published_model_is_named(name):
    sharding.layout(mesh(data=2, fsdp=1, tensor=1, expert=1, sequence=2), shapes(models.get(name)))
    placed = sharding.explain(mesh(fsdp=2), shapes(models.get(name)))
    whole = sum(jax.tree.leaves(jax.tree.map(lambda leaf: leaf.size * leaf.dtype.itemsize, shapes(models.get(name)))))
    own = sum(item.bytes for item in placed)
    assert whole / 2 <= own < 0.51 * whole  # what is not halved are norms and biases


def test_where_the_parameters_of_a_decoder_lie():
    cuts = {item.path: item.spec for item in sharding.explain(mesh(fsdp=2, tensor=2), shapes(small()))}
    block = "decoder/blocks"
    assert cuts[f"{block}/attention/query/kernel"] == P(None, ("fsdp",), ("tensor",), None)
    assert cuts[f"{block}/attention/output/kernel"] == P(None, ("tensor",), None, ("fsdp",))
    assert cuts[f"{block}/attention/value/bias"] == P(None, ("tensor",), None)
    assert cuts[f"{block}/attention/output/bias"] == P(None, None)
    assert cuts[f"{block}/mlp/up/kernel"] == P(None, ("fsdp",), ("tensor",))
    assert cuts[f"{block}/mlp/down/kernel"] == P(None, ("tensor",), ("fsdp",))
    assert cuts["embedding/table"] == P(None, ("fsdp", "tensor"))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon", "lion", "sgd"])
def test_an_optimizer_keeps_its_state_where_the_parameters_are(name):
    state = jax.eval_shape(lambda: create(shapes_to_zeros(small()), optimizers.build(Optimizer(name=name), 10), 0.9))
    for item in sharding.explain(mesh(fsdp=2, tensor=2), state):
        if item.path.startswith("ema/") and item.path.endswith("up/kernel"):
            assert item.spec == P(None, ("fsdp",), ("tensor",))
        if item.path.startswith("opt_state") and item.path.endswith("up/kernel") and item.shape == (2, 16, 32):
            assert item.spec == P(None, ("fsdp",), ("tensor",))


def shapes_to_zeros(config):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(config))


def test_what_does_not_divide_is_named():
    message = (
        r"decoder/blocks/attention/key/bias \[2, 4, 4\]: 4 of axis 1 cannot be shared among 8 devices \(tensor=8\)"
    )
    with pytest.raises(ValueError, match=message):
        sharding.layout(mesh(tensor=8), shapes(small()))


def test_a_parameter_that_no_rule_names_is_refused_where_parameters_are_cut():
    odd = {"odd": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    with pytest.raises(ValueError, match=r"no rule says how odd/kernel \[4, 4\] is cut"):
        sharding.layout(mesh(fsdp=2), odd)
    assert sharding.layout(mesh(data=2), odd)["odd"]["kernel"].spec == P()
    rules = sharding.parse("odd/kernel=-,fsdp")
    assert sharding.layout(mesh(fsdp=2), odd, rules)["odd"]["kernel"].spec == P(None, ("fsdp",))


def test_own_rules_come_first_and_must_name_something():
    rules = sharding.parse("*/up/kernel=-,fsdp+tensor; *embedding/table=-,-")
    cuts = {item.path: item.spec for item in sharding.explain(mesh(fsdp=2, tensor=2), shapes(small()), rules)}
    assert cuts["decoder/blocks/mlp/up/kernel"] == P(None, None, ("fsdp", "tensor"))
    assert cuts["embedding/table"] == P(None, None)
    for idle in ("*/upp/kernel=-,fsdp", "*/up/kernel=fsdp"):
        with pytest.raises(ValueError, match="names no parameter with so many axes"):
            sharding.layout(mesh(fsdp=2), shapes(small()), sharding.parse(idle))


@pytest.mark.parametrize("words", ["up", "=fsdp", "up=", "up=rows", "up=fsdp,fsdp", "up=fsdp+fsdp"])
def test_rules_that_cannot_be_read(words):
    with pytest.raises(ValueError, match=r"sharding: .* cannot work: write PATTERN=AXES"):
        sharding.parse(words)
