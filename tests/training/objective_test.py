import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection, models
from transformer.models import Attention, Experts, Init, Mlp, ModelConfig, Readout, Stack
from transformer.ops import losses
from transformer.training import objective, prediction
from transformer.training.objective import SEEN

B, T, V = 2, 6, 11
KINDS = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
READOUTS = {
    "tied": Readout(),
    "matrix, bias and cap": Readout(tied=False, bias=True, softcap=2.0),
}


# Programs this small take longer to compile than to run.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def build(readout=READOUTS["tied"], dropout=0.0):
    stack = Stack(depth=1, attention=Attention(heads=2), dropout=dropout)
    config = ModelConfig(
        vocab=V, width=8, length=16, decoder=stack, readout=readout, init=Init(scale=0.4, embedding=1.0)
    )
    model = models.Transformer(config)
    params = compiled(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    random = np.random.default_rng(1)  # biases begin at zero, which would hide them
    return model, jax.tree.map(lambda x: x + jnp.asarray(0.1 * random.normal(size=x.shape), x.dtype), params)


def batch(seed=0):
    random = np.random.default_rng(seed)
    drawn = random.integers(0, V, size=(B, T + 1)).astype(np.int32)
    weights = random.uniform(size=(B, T)) * (random.uniform(size=(B, T)) > 0.3)
    return {"inputs": drawn[:, :-1], "targets": drawn[:, 1:], "weights": weights.astype(np.float32)}


def by_hand(logits, rows, smoothing, z_loss):
    """Loss, nats and count in float64: cross-entropy with smoothed targets, and the squared log-partition."""
    logits, weights = np.asarray(logits, np.float64), rows["weights"].astype(np.float64)
    partition = np.log(np.exp(logits).sum(-1))
    wanted = np.take_along_axis(logits, rows["targets"][..., None], -1)[..., 0]
    smooth = partition - (1 - smoothing) * wanted - smoothing * logits.mean(-1)
    return (weights * (smooth + z_loss * partition**2)).sum(), (weights * (partition - wanted)).sum(), weights.sum()


@pytest.mark.parametrize("readout", READOUTS)
def test_the_loss_is_that_of_the_logits_and_chunks_change_neither_it_nor_its_gradient(readout):
    model, params = build(READOUTS[readout])
    rows, results = batch(), {}
    for chunk in (0, 5):  # five do not divide the 12 positions
        loss_fn = prediction(model, smoothing=0.1, z_loss=0.01, chunk=chunk)
        results[chunk] = compiled(jax.value_and_grad(loss_fn, has_aux=True))(params, rows, None)
    logits = compiled(model.apply)({"params": params}, rows["inputs"])
    loss, nats, count = by_hand(logits, rows, 0.1, 0.01)
    for (value, sums), gradients in results.values():
        np.testing.assert_allclose([value, sums["nats"], sums["count"]], [loss, nats, count], rtol=1e-5)
        assert sums.keys() == {"nats", "count"}
        # Sums over the positions are taken in another order.
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
        jax.tree.map(close, gradients, results[0][1])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(results[0][1]))


def test_what_a_device_has_of_a_batch_decides_in_which_parts_logits_are_formed(monkeypatch):
    model, params = build()
    asked = []

    def formed(function, chunk, *arrays):
        asked.append(chunk)
        return losses.Loss(*[jnp.zeros(())] * 4)

    monkeypatch.setattr(objective, "_per_device", formed)
    monkeypatch.setattr(objective, "MANY_LOGITS", B * T * V)
    monkeypatch.setattr(objective, "FEW_POSITIONS", 1)
    for devices, chunk, expected in ((1, 0, [2]), (2, 0, []), (1, 5, [5]), (2, 5, [2])):
        own = lambda shape, *meanings, devices=devices: (shape[0] // devices, *shape[1:])  # noqa: E731
        monkeypatch.setattr(objective.sharding, "local_shape", own)
        asked.clear()
        jax.eval_shape(prediction(model, chunk=chunk), params, batch(), None)
        assert asked == expected


def test_segments_keep_documents_apart_as_if_each_had_a_row():
    model, params = build()
    loss_fn = compiled(prediction(model))
    rows = batch()
    joined = {name: array.reshape(1, -1) for name, array in rows.items()}
    apart = {"segments": np.repeat(np.arange(B), T)[None], "positions": np.tile(np.arange(T), B)[None]}
    expected, packed, mixed = (loss_fn(params, x, None)[0] for x in (rows, {**joined, **apart}, joined))
    np.testing.assert_allclose(packed, expected, rtol=1e-5)
    assert abs(mixed - expected) > 1e-2


def test_positions_reach_the_model():
    learned = Stack(depth=1, attention=Attention(heads=2), position=models.Position(kind="learned"))
    model = models.Transformer(ModelConfig(vocab=V, width=8, length=16, decoder=learned, init=Init(embedding=1.0)))
    params = compiled(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    loss_fn, rows = compiled(prediction(model)), batch()
    counted, moved = ({**rows, "positions": np.tile(np.arange(T) + shift, (B, 1))} for shift in (0, 5))
    assert loss_fn(params, rows, None)[0] == pytest.approx(float(loss_fn(params, counted, None)[0]), rel=1e-6)
    assert abs(loss_fn(params, moved, None)[0] - loss_fn(params, counted, None)[0]) > 1e-2


def test_there_is_dropout_only_with_a_key():
    model, params = build(dropout=0.5)
    loss_fn, rows = compiled(prediction(model)), batch()
    plain = compiled(prediction(build()[0]))(params, rows, None)[0]
    np.testing.assert_array_equal(loss_fn(params, rows, None)[0], plain)
    dropped = [float(loss_fn(params, rows, jax.random.key(seed))[0]) for seed in (1, 1, 2)]
    assert dropped[0] == dropped[1] and len({float(plain), *dropped}) == 3


@pytest.mark.parametrize("chunk", [0, 5])
def test_accuracy_weighs_the_targets_that_are_likeliest(chunk):
    model, params = build()
    rows = batch()
    logits = np.asarray(compiled(model.apply)({"params": params}, rows["inputs"]))
    rows["targets"] = np.where(np.arange(T) % 2, rows["targets"], logits.argmax(-1))  # so that some are right
    _, sums = compiled(prediction(model, accuracy=True, chunk=chunk))(params, rows, None)
    right = logits.argmax(-1) == rows["targets"]
    assert 0 < right.mean() < 1
    np.testing.assert_allclose(sums["accuracy"], (rows["weights"] * right).sum(), rtol=1e-6)


@pytest.mark.parametrize("vocab, positions, formed", [(2**13, 2047, 2047), (2**13, 2048, 512), (2**11, 8192, 1024)])
def test_many_logits_are_formed_for_a_part_of_the_positions_at_a_time(vocab, positions, formed):
    """Seen in what is traced: nothing so large is run."""
    stack = Stack(depth=1, attention=Attention(heads=1), mlp=None)
    model = models.Transformer(ModelConfig(vocab=vocab, width=2, length=8, decoder=stack))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rows = {name: jax.ShapeDtypeStruct((positions, 1), kind) for name, kind in KINDS.items()}
    loss_fn = jax.value_and_grad(prediction(model), has_aux=True)
    traced = str(jax.make_jaxpr(lambda params, rows: loss_fn(params, rows, None))(params, rows))
    logits = {int(found) for found in re.findall(rf"f32\[(\d+)(?:,1)?,{vocab}\]", traced)}
    assert max(logits) == formed


def test_what_a_batch_says_reaches_the_model_under_its_own_names():
    told = set(inspect.signature(models.Transformer.__call__).parameters) - {"self", "tokens", "cache", "tap", "train"}
    assert set(SEEN) == told
    model, calls = build()[0], []

    class Recorder:
        config = model.config

        def apply(self, variables, tokens, **arguments):
            calls.append((tokens, arguments))
            return (jnp.zeros((B, T, 8)), None) if arguments["method"] == "features" else jnp.zeros((B, T, V))

    rows = batch()
    told = {name: np.full((B, T), number) for number, name in enumerate(SEEN)}
    for given in (told, {}):
        calls.clear()
        prediction(Recorder())({}, {**rows, **given, "other": np.zeros(3)}, None)
        (tokens, arguments), _ = calls
        assert tokens is rows["inputs"]
        assert {name: value for name, value in arguments.items() if name in SEEN} == given
        assert (arguments["train"], arguments["rngs"], "other" in arguments) == (False, None, False)


def test_pairs_that_are_padded_or_packed_count_as_if_each_were_alone():
    stack = Stack(depth=1, attention=Attention(heads=2))
    config = ModelConfig(vocab=V, width=8, length=16, encoder=stack, decoder=stack, init=Init(scale=0.4, embedding=1.0))
    model, ids = models.Transformer(config), jnp.zeros((1, 1), jnp.int32)
    params = compiled(model.init)(jax.random.key(0), ids, source=ids)["params"]
    draw, loss_fn = np.random.default_rng(2), compiled(prediction(model))

    def alone(source, target):
        names = {"source": source, "inputs": target, "targets": target}
        rows = {name: draw.integers(0, V, (1, length)).astype(np.int32) for name, length in names.items()}
        return {**rows, "weights": np.ones((1, target), np.float32)}

    pairs = [alone(2, 3), alone(4, 5), alone(2, 3)]
    expected = sum(float(loss_fn(params, pair, None)[0]) for pair in pairs)

    def places(name, size):  # of a row, where every pair is padded to the longest
        return np.concatenate([np.pad(pair[name], ((0, 0), (0, size - pair[name].shape[1]))) for pair in pairs])

    padded = {name: places(name, 5) for name in ("inputs", "targets", "weights")} | {"source": places("source", 4)}
    padded |= {"mask": padded["weights"] > 0, "source_mask": np.arange(4) < np.array([[2], [4], [2]])}
    packed = {name: np.concatenate([pair[name] for pair in pairs], axis=1) for name in pairs[0]}
    for side, lengths in (("", (3, 5, 3)), ("source_", (2, 4, 2))):
        packed[f"{side}segments"] = np.repeat(np.arange(1, 4), lengths)[None]
        packed[f"{side}positions"] = np.concatenate([np.arange(length) for length in lengths])[None]
    for rows in (padded, packed):
        loss, sums = loss_fn(params, rows, None)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)  # float32 sums in another order
        assert sums["count"] == 11
    # A model that does not see what is padding, or whose pair a token is of, is wrong.
    for rows, name in ((padded, "source_mask"), (packed, "source_segments")):
        seen = {**rows, name: np.ones_like(rows[name])}
        assert abs(float(loss_fn(params, seen, None)[0]) - expected) > 1e-3


def mixture(roles="decoder", capacity=None, **weights):
    """A model with experts, its parameters, and a batch with padding on the right."""
    experts = Experts(4, 2, capacity=capacity, **weights)
    stack = Stack(depth=2, attention=Attention(heads=2), mlp=Mlp(8, experts=experts))
    stacks = {role: stack for role in ("encoder", "decoder") if role in roles}
    model = models.Transformer(ModelConfig(vocab=V, width=8, length=16, **stacks, init=Init(scale=0.6, embedding=1.0)))
    draw, ids = np.random.default_rng(4), jnp.zeros((1, 1), jnp.int32)
    both = {"source": ids} if len(stacks) == 2 else {}
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, **both)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.6, leaf.shape), leaf.dtype), shapes)
    rows = batch() | {"weights": (np.arange(T) < np.array([[4], [6]])).astype(np.float32)}
    if both:
        rows |= {"source": draw.integers(0, V, (B, 5)).astype(np.int32), "source_mask": np.arange(5) < [[5], [2]]}
    return model, params, rows


def router_sums(model, params, rows):
    """Balance, z and dropped of each stack, from captured logits, with a loop over layers, rows and tokens."""
    inputs = {name: rows[name] for name in SEEN if name in rows}
    capture = "**/mlp/router"
    _, taps = inspection.run(model, params, rows["inputs"], capture=capture, **inputs)
    sums = {}
    for name, logits in taps.items():
        role, stack = name.split("/")[0], getattr(model.config, name.split("/")[0])
        experts, totals = stack.mlp.experts, np.zeros(3)
        for row in range(B):
            real = rows["source_mask"][row] if "source" in rows and role == "encoder" else rows["weights"][row] > 0
            x = np.asarray(logits[row], np.float64)[real]
            order = np.argsort(-x, axis=-1)[:, : experts.active]
            used = np.bincount(order.reshape(-1), minlength=experts.count) / order.size
            likely = (np.exp(x) / np.exp(x).sum(-1, keepdims=True)).mean(0)
            room = experts.places(logits.shape[1]) or x.size
            late = np.maximum(np.bincount(order.reshape(-1), minlength=experts.count) - room, 0).sum() / order.size
            here = [experts.count * used @ likely, np.mean(np.log(np.exp(x).sum(-1)) ** 2), late]
            totals += rows["weights"][row].sum() * np.asarray(here) / stack.depth
        sums[role] = sums.get(role, 0) + totals
    return sums


@pytest.mark.parametrize(
    ("roles", "capacity"),
    [("decoder", None), pytest.param("decoder", 0.5, marks=pytest.mark.slow), ("encoder and decoder", 0.7)],
)
def test_losses_of_routers_are_sums_over_rows_that_padding_does_not_enter(roles, capacity):
    model, params, rows = mixture(roles, capacity, balance=0.3, router_z=0.2)
    bare = mixture(roles, capacity, balance=0.0, router_z=0.0)[0]
    loss, sums = compiled(prediction(model))(params, rows, None)
    plain, fewer = compiled(prediction(bare))(params, rows, None)
    expected = router_sums(model, params, rows)
    assert fewer.keys() == {"count", "nats"}
    assert sums.keys() == fewer.keys() | {"balance", "router_z"} | ({"dropped"} if capacity else set())
    np.testing.assert_allclose(sums["nats"], fewer["nats"], rtol=1e-5)
    np.testing.assert_allclose(loss - plain, sum(0.3 * x[0] + 0.2 * x[1] for x in expected.values()), rtol=1e-4)
    mean = sum(expected.values()) / len(expected)
    found = [sums["balance"], sums["router_z"], sums.get("dropped", 0)]
    np.testing.assert_allclose(found, mean, rtol=1e-4)
    assert (mean[2] > 0) == (capacity is not None)


@pytest.mark.slow
def test_losses_of_routers_add_up_over_any_parts_of_a_batch_and_reach_the_router():
    model, params, rows = mixture(balance=0.3, router_z=0.2)
    loss_fn = compiled(jax.value_and_grad(prediction(model), has_aux=True))
    whole = loss_fn(params, rows, None)
    parts = [loss_fn(params, {name: array[row : row + 1] for name, array in rows.items()}, None) for row in range(B)]
    close = lambda a, *b: np.testing.assert_allclose(a, sum(b), rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, whole, *parts)
    other = compiled(jax.value_and_grad(prediction(mixture(balance=0.0, router_z=0.2)[0]), has_aux=True))
    with_balance, without = (x["decoder"]["blocks"]["mlp"] for x in (whole[1], other(params, rows, None)[1]))
    assert np.abs(with_balance["router"]["kernel"] - without["router"]["kernel"]).max() > 1e-3


def test_padding_of_packed_sources_has_no_part_in_the_losses_of_routers():
    model, params, rows = mixture("encoder and decoder", balance=0.3, router_z=0.2)
    packed = {name: array for name, array in rows.items() if name != "source_mask"}
    packed |= {"segments": (rows["weights"] > 0).astype(np.int32), "source_segments": np.int32(rows["source_mask"])}
    loss_fn = compiled(prediction(model))
    _, sums = loss_fn(params, packed, None)
    junk = {**packed, "source": np.where(rows["source_mask"], packed["source"], 7).astype(np.int32)}
    _, again = loss_fn(params, junk, None)
    for name in ("balance", "router_z"):
        np.testing.assert_allclose(again[name], sums[name], rtol=1e-5)
