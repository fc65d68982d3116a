import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from transformer.training import optimizers
from transformer.training.config import OPTIMIZERS, Optimizer
from transformer.training.parameters import map_named

L, D, H, G, K, F, V = 2, 12, 4, 2, 5, 16, 20
RATE, STEPS = 0.01, 2


def shapes(layers, width=D, inner=F):
    stack = (layers,) if layers else ()
    projection = {
        "query": {"kernel": (*stack, width, H, K), "bias": (*stack, H, K)},
        "key": {"kernel": (*stack, width, G, K), "bias": (*stack, G, K)},
        "value": {"kernel": (*stack, width, G, K), "bias": (*stack, G, K)},
        "output": {"kernel": (*stack, H, K, width), "bias": (*stack, width)},
        "query_norm": {"scale": (*stack, K)},
    }
    blocks = {
        "attention_norm": {"scale": (*stack, width), "bias": (*stack, width)},
        "attention": projection,
        "mlp": {"up": {"kernel": (*stack, width, inner)}, "down": {"kernel": (*stack, inner, width)}},
    }
    return {
        "embedding": {"table": (V, width), "types": (2, width), "norm": {"scale": (width,)}},
        "decoder": {"positions": {"table": (9, width)}, "relative": {"table": (8, H)}, "blocks": blocks},
        "readout": {"kernel": (width, V), "bias": (V,)},
        "pooler": {"kernel": (width, width), "bias": (width,)},
    }


def tree(seed, layers=L, **sizes):
    random = np.random.default_rng(seed)

    def draw(shape):
        return jnp.asarray(random.normal(size=shape) * 0.1, jnp.float32)

    return jax.tree.map(draw, shapes(layers, **sizes), is_leaf=lambda x: isinstance(x, tuple))


def updates_of(optimizer, params, gradients):
    """The updates of several steps; parameters stay."""
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    out = []
    for gradient in gradients:
        change, state = update(gradient, state, params)
        out.append(change)
    return jax.tree.map(lambda *x: np.stack(x), *out)


def build(name, **fields):
    config = Optimizer(name=name, schedule="constant", learning_rate=RATE, **({"clip": None} | fields))
    return optimizers.build(config, STEPS)


# What each optimizer is on one parameter by itself, from optax's own aliases.
REFERENCES = {
    "adamw": lambda: optax.adamw(RATE, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0),
    "adafactor": lambda: optax.adafactor(RATE),
    "lion": lambda: optax.lion(RATE, b1=0.9, b2=0.95, weight_decay=0.0),
    "sgd": lambda: optax.sgd(RATE, momentum=0.95),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_stack_is_updated_as_each_layer_alone(name):
    params, gradients = tree(0), [tree(seed) for seed in range(1, STEPS + 1)]
    actual = updates_of(build(name), params, gradients)["decoder"]["blocks"]
    stack, slopes = params["decoder"]["blocks"], [g["decoder"]["blocks"] for g in gradients]
    reference = REFERENCES[name]()
    for layer in range(L):

        def one(x, layer=layer):
            return x[layer].reshape(-1, x.shape[-1]) if x.ndim > 2 else x[layer]

        parts = [jax.tree.map(one, part) for part in (stack, *slopes)]
        expected = updates_of(reference, parts[0], parts[1:])

        def compare(a, e, layer=layer):
            np.testing.assert_allclose(a[:, layer].reshape(e.shape), e, rtol=2e-5, atol=1e-8)

        jax.tree.map(compare, actual, expected)


def test_adafactor_factors_each_layers_matrix_and_never_over_layers():
    layers, rows, heads, width = 130, 128, 8, 16  # the layer axis is long enough to be factored, H K too
    random = np.random.default_rng(0)

    def draw():
        return jnp.asarray(random.normal(size=(layers, rows, heads, width)), jnp.float32)

    def path(leaf):
        return {"blocks": {"query": {"kernel": leaf}}}

    params, gradients = draw(), [draw(), draw()]
    optimizer = build("adafactor")
    reference = optax.adafactor(RATE)
    actual = updates_of(optimizer, path(params), [path(g) for g in gradients])["blocks"]["query"]["kernel"]
    for layer in (0, layers - 1):
        parts = [x[layer].reshape(rows, heads * width) for x in (params, *gradients)]
        expected = updates_of(reference, parts[0], parts[1:])
        np.testing.assert_allclose(actual[:, layer].reshape(expected.shape), expected, rtol=2e-4, atol=1e-8)
    moments = [x for x in jax.tree.leaves(jax.eval_shape(optimizer.init, path(params))) if x.size > layers]
    assert sorted(x.shape for x in moments) == [(layers, 128), (layers, 128)]  # a row and a column for each layer


def muon_matrices(params):
    """Every matrix that Muon should orthogonalise, cut out by hand: `[..., inputs, outputs]`."""
    blocks = params["decoder"]["blocks"]
    heads = {name: jnp.swapaxes(blocks["attention"][name]["kernel"], 1, 2) for name in ("query", "key", "value")}
    output = blocks["attention"]["output"]["kernel"]
    return heads | {
        "output": output.reshape(L, H * K, output.shape[-1]),
        "up": blocks["mlp"]["up"]["kernel"],
        "down": blocks["mlp"]["down"]["kernel"],
    }


def test_muon_on_a_stack_is_muon_on_each_layers_and_each_heads_matrix():
    params, gradients = tree(0), [tree(seed) for seed in range(1, STEPS + 1)]
    actual = updates_of(build("muon"), params, gradients)
    reference = optax.contrib.muon(
        RATE, beta=0.95, consistent_rms=0.2, muon_weight_dimension_numbers=MuonDimensionNumbers()
    )
    changes = [muon_matrices(jax.tree.map(lambda x, i=i: x[i], actual)) for i in range(STEPS)]
    slopes = [muon_matrices(g) for g in gradients]
    for name, stacked in muon_matrices(params).items():
        for index in np.ndindex(stacked.shape[:-2]):
            expected = updates_of(reference, stacked[index], [g[name][index] for g in slopes])
            got = np.stack([change[name][index] for change in changes])
            # Five Newton-Schulz steps amplify float32 rounding.
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


def test_muon_leaves_all_but_the_blocks_kernels_to_adamw():
    params, gradients = tree(0), [tree(seed) for seed in range(1, STEPS + 1)]
    actual, expected = (updates_of(build(name), params, gradients) for name in ("muon", "adamw"))
    same = map_named(lambda p, a, e: np.allclose(a, e, rtol=1e-6, atol=1e-9), actual, expected)
    kernels = map_named(lambda p, _: p.path.startswith("decoder/blocks") and p.path.endswith("kernel"), params)
    assert jax.tree.map(lambda a, b: a != b, same, kernels) == jax.tree.map(lambda _: True, params)


def test_muon_updates_are_nearly_orthogonal_and_of_one_size():
    params, gradient = tree(0), tree(1)
    update = updates_of(build("muon"), params, [gradient])
    for name, stacked in muon_matrices(jax.tree.map(lambda x: x[0], update)).items():
        scale = RATE * 0.2 * np.sqrt(max(stacked.shape[-2:]))
        values = np.linalg.svd(np.asarray(stacked, np.float64), compute_uv=False) / scale
        # The quintic iteration ends with singular values spread around one.
        assert values.min() > 0.3 and values.max() < 1.3, name


def test_weight_decay_takes_its_share_of_matrices_and_of_nothing_else():
    params, gradient = tree(0), tree(1)
    plain, heavy = (updates_of(build("sgd", weight_decay=decay), params, [gradient]) for decay in (0.0, 0.1))
    taken = jax.tree.map(lambda a, b: np.asarray(b - a)[0], plain, heavy)
    spared = {path for path, leaf in flat(taken).items() if not leaf.any()}
    assert spared == {
        "embedding/norm/scale",
        "decoder/relative/table",
        "decoder/blocks/attention_norm/scale",
        "decoder/blocks/attention_norm/bias",
        "decoder/blocks/attention/query/bias",
        "decoder/blocks/attention/key/bias",
        "decoder/blocks/attention/value/bias",
        "decoder/blocks/attention/output/bias",
        "decoder/blocks/attention/query_norm/scale",
        "readout/bias",
        "pooler/bias",
    }
    for path, leaf in flat(taken).items():
        expected = 0 if path in spared else -RATE * 0.1 * np.asarray(flat(params)[path])
        # The difference of two float32 updates of the size of the rate.
        np.testing.assert_allclose(leaf, expected, atol=RATE * 1e-4, err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_experts_are_updated_as_if_each_were_a_layer_of_its_own(name):
    random = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape) * 0.1, jnp.float32)  # noqa: E731
    sizes = {"up": {"kernel": (130, 140), "bias": (140,)}, "down": {"kernel": (140, 130), "bias": (130,)}}
    trees = [{n: {k: draw(2, 3, *shape) for k, shape in part.items()} for n, part in sizes.items()} for _ in range(3)]
    experts = [{"blocks": {"mlp": one}} for one in trees]
    layers = [jax.tree.map(lambda leaf: leaf.reshape(6, *leaf.shape[2:]), one) for one in experts]
    optimizer = build(name, weight_decay=0.1)
    found, expected = (updates_of(optimizer, params, rest) for params, *rest in (experts, layers))
    for (path, one), other in zip(flat(found).items(), flat(expected).values(), strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-4, atol=1e-8, err_msg=path)
        assert np.abs(other).max() > 1e-5


def flat(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_gradients_are_clipped_by_their_global_norm():
    gradient = {"a": jnp.asarray([3.0, 0.0]), "blocks": {"b": jnp.asarray([[0.0], [4.0]])}}
    clipped, free = (updates_of(build("sgd", clip=clip), gradient, [gradient]) for clip in (0.5, 5.1))
    np.testing.assert_allclose(clipped["a"][0], [-RATE * 0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped["blocks"]["b"][0], [[0], [-RATE * 0.4]], rtol=1e-6)
    np.testing.assert_allclose(free["a"][0], [-RATE * 3, 0], rtol=1e-6)


def test_the_learning_rate_of_the_last_update_can_be_read():
    optimizer = optimizers.build(Optimizer(learning_rate=RATE, warmup=2, schedule="constant"), 5)
    params = {"w": jnp.ones(2)}
    state, seen = optimizer.init(params), []
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
        seen.append(float(optax.tree_utils.tree_get(state, "learning_rate")))
    np.testing.assert_allclose(seen, [RATE / 2, RATE, RATE], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_bfloat16_parameters_are_float32_and_keep_their_types(name):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree(0))
    optimizer = build(name, weight_decay=0.1)
    before = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, params, before, params)

    def types(state):
        return jax.tree.map(lambda x: (x.dtype, x.shape), state)

    assert types(before) == types(after)
    assert {x.dtype for x in jax.tree.leaves((before, updates))} <= {jnp.dtype("float32"), jnp.dtype("int32")}
