"""A run of a real model that was stopped and resumed, compared bit for bit with one that was not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import models
from transformer.inspection import patterns
from transformer.training import (
    Checkpoints,
    Optimizer,
    Training,
    Writer,
    create,
    evaluation_step,
    loop,
    metrics,
    optimizers,
    parallel,
    prediction,
    telemetry,
    train_step,
)

TIMED = ("tokens_per_second",)
STACK = models.Stack(depth=1, mlp=None, attention=models.Attention(heads=2, dropout=0.3), dropout=0.2)
CONFIG = Training(
    steps=8, batch_size=4, accumulation=2, ema=0.9, log_every=3, evaluate_every=4, checkpoint_every=3,
    head_metrics_every=5,
    optimizer=Optimizer(learning_rate=0.01, warmup=2, weight_decay=0.1),
)  # fmt: skip


@pytest.fixture(scope="module")
def real():
    """A real model with dropout: its compiled steps, how its state begins, and its heads' measurement."""
    model = models.Transformer(models.ModelConfig(vocab=11, width=8, length=6, decoder=STACK))
    optimizer = optimizers.build(CONFIG.optimizer, CONFIG.steps)
    step = functools.partial(
        train_step, loss_fn=prediction(model), optimizer=optimizer, accumulation=CONFIG.accumulation, ema=CONFIG.ema
    )
    steps = parallel.build("jit", step, functools.partial(evaluation_step, loss_fn=prediction(model)))

    @jax.jit
    def start():
        return create(model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"], optimizer, CONFIG.ema)

    return (
        steps,
        start,
        telemetry.heads(
            functools.partial(patterns.totals, model, names=telemetry.SCORES), functools.partial(parallel.build, "jit")
        ),
    )


def tokens(step):
    drawn = np.random.default_rng(step).integers(0, 11, size=(4, 7)).astype(np.int32)
    return {"inputs": drawn[:, :-1], "targets": drawn[:, 1:], "weights": np.ones((4, 6), np.float32)}


def counted(stop=None):
    """Batches from any step on; reading the one of step `stop` is an interruption."""

    def start(step):
        while step != stop:
            yield tokens(step)
            step += 1
        raise KeyboardInterrupt

    return start


def run(workdir, state, steps, observe, stop=None):
    """Train from a state on; returns the state after."""
    at = int(state.step)
    with Checkpoints(workdir, CONFIG.keep) as checkpoints, Writer(workdir, at) as writer:
        return loop.train(
            steps.place_state(state), config=CONFIG, parallel=steps, batches=counted(stop),
            evaluate=functools.partial(evaluated, steps), checkpoints=checkpoints, recipe={}, writer=writer,
            report=lambda step, values: None, observe=observe,
        )[0]  # fmt: skip


def evaluated(steps, params):
    sums = steps.evaluate(params, steps.place_batch(tokens(99)))
    return {"loss": float(sums["nats"] / sums["count"])}


def test_a_run_that_was_stopped_and_resumed_is_one_that_was_not_bit_for_bit(tmp_path, real):
    steps, start, observe = real
    whole = run(tmp_path / "whole", start(), steps, observe)
    clockless = lambda row: {name: value for name, value in row.items() if name not in TIMED}  # noqa: E731
    expected = [clockless(row) for row in metrics.read(tmp_path / "whole")]
    assert [row["step"] for row in expected] == [3, 4, 5, 6, 8]
    heads = {f"heads/decoder/0/{head}/{score}" for head in (0, 1) for score in telemetry.SCORES}
    assert heads <= expected[2].keys() and not heads & expected[1].keys()
    for stop in (2, 4, 7):
        workdir = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(workdir, start(), steps, observe, stop)
        with Checkpoints(workdir) as checkpoints:
            restored = checkpoints.restore(jax.eval_shape(start))
        state = start() if restored is None else restored.state
        assert int(state.step) == stop // 3 * 3
        after = run(workdir, state, steps, observe)
        assert [clockless(row) for row in metrics.read(workdir)] == expected
        jax.tree.map(np.testing.assert_array_equal, after, whole)
