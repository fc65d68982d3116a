"""The comparisons need several devices, so this file also runs itself as a program that has four."""

import functools
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.training import evaluation, optimizers, parallel, state, step
from transformer.training.checkpoints import Checkpoints
from transformer.training.config import Optimizer

B, T, D, V, STEPS = 8, 6, 5, 11, 3


def loss_fn(params, batch, key):
    logits = jnp.tanh(params["embedding"]["table"][batch["inputs"]] @ params["blocks"]["kernel"][0])
    logits = logits @ params["readout"]["kernel"]
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
    loss = jnp.sum(nats * batch["weights"])
    return loss, {"count": jnp.sum(batch["weights"]), "nats": loss}


def batch(number):
    random = np.random.default_rng(number)
    ragged = np.arange(T) < random.integers(0, T + 1, size=(B, 1))  # so devices have different counts
    ragged[0] = True
    tokens = random.integers(0, V, size=(B, T + 1)).astype(np.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ragged.astype(np.float32)}


def start(optimizer):
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    params = {
        "embedding": {"table": draw(V, D)},
        "blocks": {"kernel": draw(1, D, D)},
        "readout": {"kernel": draw(D, V)},
    }
    return state.create(params, optimizer, 0.9)


def train(kind, accumulation, workdir):
    """Losses of a few steps, the state after them, and an evaluation; "single" is the step itself on one device."""
    optimizer = optimizers.build(Optimizer(weight_decay=0.1, learning_rate=0.05), STEPS)
    options = {"loss_fn": loss_fn, "optimizer": optimizer, "ema": 0.9, "accumulation": accumulation}
    train_step = functools.partial(step.train_step, **options)
    evaluation_step = functools.partial(step.evaluation_step, loss_fn=loss_fn)
    first = start(optimizer)
    if kind == "single":
        current, losses, one = first, [], jax.jit(train_step)
        for number in range(STEPS):
            current, metrics = one(current, batch(number))
            losses.append(float(metrics["loss"]))
        batches = (batch(number) for number in range(4))
        return losses, jax.tree.map(np.asarray, current), evaluation.evaluate(evaluation_step, current.params, batches)

    runner = parallel.build(kind, train_step, evaluation_step)
    current, losses = runner.place_state(first), []
    for number in range(STEPS):
        before = current
        current, metrics = runner.train(current, runner.place_batch(batch(number)))
        losses.append(float(metrics["loss"]))
        assert before.params["readout"]["kernel"].is_deleted(), "the state was not donated"
    assert not first.params["readout"]["kernel"].is_deleted(), "the caller's state was donated"
    batches = (runner.place_batch(batch(number)) for number in range(4))
    evaluated = evaluation.evaluate(runner.evaluate, current.params, batches)
    after = runner.host_state(current)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(after, {"config": 1}, losses[-1])
        restored = checkpoints.restore(jax.eval_shape(lambda: first)).state
    resumed, _ = runner.train(runner.place_state(restored), runner.place_batch(batch(9)))
    continued, _ = runner.train(current, runner.place_batch(batch(9)))
    jax.tree.map(np.testing.assert_array_equal, resumed, continued)
    return losses, after, evaluated


def layout(folder):
    """What a checkpoint holds, apart from contents, which differ by rounding."""
    record = json.loads(next(folder.glob("checkpoints/*/record/metadata")).read_text())
    arrays = {p: {n: {**d, "sha256": 0} for n, d in named.items()} for p, named in record["arrays"].items()}
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix == ".json" or "_" in p.name)
    return arrays, files


def program(workdir):
    assert jax.device_count() == 4
    for accumulation in (1, 2):
        expected = train("single", accumulation, None)
        folders = [workdir / f"{kind}{accumulation}" for kind in parallel.KINDS]
        for kind, folder in zip(parallel.KINDS, folders, strict=True):
            losses, after, evaluated = train(kind, accumulation, folder)
            # Sums in another order: float32 rounding, which Adam's division keeps at the size of the rate.
            np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
            jax.tree.map(close, after, expected[1])
            assert evaluated == pytest.approx(expected[2], rel=1e-5)
        assert layout(folders[0]) == layout(folders[1])
    with pytest.raises(ValueError, match=r"batch_size=12 must be a multiple of 4 devices x accumulation=2; .* 16"):
        parallel.check(12, accumulation=2)
    parallel.check(16, accumulation=2)
    for kind in parallel.KINDS:
        with pytest.raises(ValueError, match="6 rows of 'x' cannot be shared among 4 devices"):
            parallel.build(kind, lambda: 0, lambda: 0).place_batch({"x": np.zeros((6, 2))})


def test_jit_and_pmap_on_four_devices_equal_one_device(tmp_path, environment):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="parallel='xmap' cannot work: choose one of jit, pmap"):
        parallel.build("xmap", lambda: 0, lambda: 0)


@pytest.mark.parametrize("kind", parallel.KINDS)
def test_a_copy_on_the_host_outlives_later_steps_and_its_memory_is_used_again(kind):
    runner = parallel.build(kind, lambda state, batch, axis_name=None: (2 * state, {}), lambda params, batch: {})
    current = runner.place_state(np.arange(6, dtype=np.float32).reshape(2, 3))
    first = runner.host_state(current)
    current, _ = runner.train(current, runner.place_batch({"x": np.zeros((1, 1))}))
    np.testing.assert_array_equal(first, [[0, 1, 2], [3, 4, 5]])
    second = runner.host_state(current, first)
    assert second is first
    np.testing.assert_array_equal(second, [[0, 2, 4], [6, 8, 10]])


def test_what_is_cut_among_processes_is_not_copied():
    part = types.SimpleNamespace(is_fully_addressable=False, is_fully_replicated=False)
    runner = parallel.build("jit", lambda: 0, lambda: 0)
    assert runner.host_state({"cut": part})["cut"] is part


if __name__ == "__main__":
    program(Path(sys.argv[1]))
