"""Every arrangement of eight devices gives one device's numbers; so this file also runs itself with eight."""

import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import decoding, inspection, models, training
from transformer.training import meshes, optimizers, parallel

B, T, S, V, STEPS = 8, 16, 8, 64, 2
MESHES = (
    "data=8",
    "fsdp=8",
    "fsdp=4,tensor=2",
    "data=2,sequence=2,tensor=2",
    "data=2,fsdp=2,sequence=2",
    "fsdp=2,sequence=4",
)


def stack(position="rotary", **fields):
    attention = models.Attention(heads=4, kv_heads=2, bias=True)
    return models.Stack(depth=2, attention=attention, position=models.Position(kind=position), **fields)


KINDS = {
    "decoder": {"decoder": stack()},
    "encoder": {"encoder": stack("learned", norm=models.Norm(kind="layer", bias=True))},
    "experts": {
        "decoder": stack(mlp=models.Mlp(width=32, experts=models.Experts(count=4, balance=0.1, router_z=0.01)))
    },
    "bounded": {
        "decoder": stack(mlp=models.Mlp(width=32, experts=models.Experts(count=4, capacity=1.25, balance=0.1)))
    },
    "both": {"encoder": stack("relative"), "decoder": stack("relative")},
}
OPTIONS = ({}, {"accumulation": 2}, {"chunk": 16}, {"accumulation": 2, "chunk": 16}, {"implementation": "chunked"})


def batch(kind, number):
    """Ragged rows, so that devices count different numbers of targets."""
    draw = np.random.default_rng(number)
    tokens = draw.integers(0, V, (B, T + 1)).astype(np.int32)
    real = np.arange(T) < draw.integers(1, T + 1, (B, 1))
    made = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": real.astype(np.float32), "mask": real}
    if kind == "both":
        made["source"] = draw.integers(0, V, (B, S)).astype(np.int32)
        made["source_mask"] = np.arange(S) < draw.integers(1, S + 1, (B, 1))
    return made


def model_of(kind, implementation="auto"):
    return models.Transformer(
        models.ModelConfig(vocab=V, width=32, length=T, attention_implementation=implementation, **KINDS[kind])
    )


def train(kind, mesh, accumulation=1, chunk=0, implementation="auto"):
    """Loss and gradient norm of a few steps, and an evaluation; without a mesh the step itself on one device."""
    model = model_of(kind, implementation)
    optimizer = optimizers.build(training.Optimizer(learning_rate=0.01, weight_decay=0.1), 10)
    loss_fn = training.prediction(model, chunk=chunk)
    step = functools.partial(training.train_step, loss_fn=loss_fn, optimizer=optimizer, accumulation=accumulation)
    evaluation = functools.partial(training.evaluation_step, loss_fn=loss_fn)

    def init():
        token = jnp.zeros((1, 1), jnp.int32)
        params = model.init(jax.random.key(0), token, source=token if kind == "both" else None)["params"]
        return training.create(params, optimizer)

    if mesh is None:
        state, place, run, evaluate = jax.jit(init)(), lambda rows: rows, jax.jit(step), jax.jit(evaluation)
    else:
        runner = parallel.build("jit", step, evaluation, meshes.build(mesh))
        state, place, run, evaluate = runner.init_state(init), runner.place_batch, runner.train, runner.evaluate
    numbers = []
    for number in range(STEPS):
        state, metrics = run(state, place(batch(kind, number)))
        numbers += [float(metrics["loss"]), float(metrics["grad_norm"])]
    return [*numbers, float(evaluate(state.params, place(batch(kind, 9)))["nats"])]


def compare(kind, meshes, options):
    expected = train(kind, None, **options)
    for mesh in meshes:
        if B % (options.get("accumulation", 1) * 8) and mesh in ("data=8", "fsdp=8"):
            continue
        # Sums in another order: float32 rounding.
        np.testing.assert_allclose(
            train(kind, mesh, **options), expected, rtol=5e-6, err_msg=f"{kind} {mesh} {options}"
        )


def generate_and_inspect(mesh):
    model = model_of("decoder")
    tokens = jnp.asarray(batch("decoder", 0)["inputs"][:4, :5])
    params = model.init(jax.random.key(0), tokens)["params"]

    def all_of(params):
        written = decoding.generate(model, params, tokens, length=6, method=decoding.Greedy(), key=jax.random.key(0))
        logits, taps = inspection.run(
            model,
            params,
            tokens,
            capture=("decoder/*/pattern",),
            patches=(inspection.Patch("decoder/0/mixed", 0.0, head=1),),
        )
        return written, logits, taps["decoder/1/pattern"]

    expected = all_of(params)
    built = meshes.build(mesh)
    with parallel.using(built):
        placed = parallel.place(built, params)
        assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))
        found = all_of(placed)
    for array, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        for shard in array.addressable_shards:  # every device's copy, of which NumPy would see the first
            np.testing.assert_allclose(shard.data, wanted[shard.index], rtol=1e-4, atol=1e-5)


def program(everything):
    assert jax.device_count() == 8
    jax.config.update("jax_disable_most_optimizations", True)
    if everything:
        for kind, options in itertools.product(KINDS, OPTIONS):
            compare(kind, MESHES, options)
        for kind in ("experts", "bounded"):
            compare(kind, ("expert=4,fsdp=2", "data=2,expert=2,tensor=2"), {"accumulation": 2})
        for mesh in ("data=2,fsdp=2,tensor=2", "fsdp=2,sequence=2,tensor=2"):
            generate_and_inspect(mesh)
        return
    compare("decoder", ("data=2,sequence=2,tensor=2",), {"accumulation": 2, "chunk": 16})
    generate_and_inspect("fsdp=2,sequence=2,tensor=2")


@pytest.fixture
def run(environment):
    def run(*arguments):
        command = [sys.executable, __file__, *arguments]
        return subprocess.run(command, env=environment(8), capture_output=True, text=True)

    return run


def test_meshes_give_the_numbers_of_one_device(run):
    done = run()
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_all_meshes_give_the_numbers_of_one_device(run):
    done = run("all")
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    program(bool(sys.argv[1:]))
