"""The loop on a linear model with a closed form; `resuming_test.py` has it on a real one."""

import errno
import functools
import itertools
import math
import os
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer.training import (
    Checkpoints,
    NonFinite,
    Training,
    Writer,
    create,
    evaluation_step,
    integrity,
    lines,
    loop,
    metrics,
    parallel,
    skipping,
    train_step,
)
from transformer.training.exits import NotSaved

B, D, RATE = 4, 3, 0.05
RECIPE = {"config": "a recipe"}


def squares(params, batch, key):
    """Weighted squared errors, and as `nats` their half."""
    del key
    loss = jnp.sum(batch["weights"] * (batch["x"] @ params["w"] - batch["y"]) ** 2)
    return loss, {"count": jnp.sum(batch["weights"]), "nats": loss / 2}


def rows(step):
    """The batch of a step; steps weigh differently."""
    random = np.random.default_rng(step)
    x, y, weights = random.normal(size=(B, D)), random.normal(size=B), random.uniform(0.1, step + 1, size=B)
    return {name: np.asarray(value, np.float32) for name, value in {"x": x, "y": y, "weights": weights}.items()}


def counted(batch=rows, stop=None):
    """Batches from any step on; reading the one of step `stop` is an interruption."""

    def start(step):
        while step != stop:
            yield batch(step)
            step += 1
        raise KeyboardInterrupt

    return start


@functools.cache
def compiled(ema=None):
    """The linear model's steps; one is enough, as nothing in it changes."""
    step = functools.partial(train_step, loss_fn=squares, optimizer=optax.sgd(RATE), ema=ema)
    return parallel.build("jit", step, functools.partial(evaluation_step, loss_fn=squares))


def run(workdir, config, *, steps=None, state=None, batches=None, evaluate=None, **options):
    """Train in a directory; returns the state after, and what was reported."""
    steps = steps or compiled(config.ema)
    first = create({"w": jnp.zeros(D)}, optax.sgd(RATE), config.ema) if state is None else state
    seen, at = [], int(first.step)
    with Checkpoints(workdir, config.keep) as checkpoints, Writer(workdir, at) as writer:
        after, results = loop.train(
            steps.place_state(first), config=config, parallel=steps, batches=batches or counted(),
            evaluate=evaluate or (lambda params: {"loss": 1.0}), checkpoints=checkpoints, recipe=RECIPE, writer=writer,
            report=lambda step, values: seen.append({"step": step, **values}), **options,
        )  # fmt: skip
    last = [line["validation_loss"] for line in seen if "validation_loss" in line][-1:]
    assert list(results.values()) == last
    return after, seen


def saved(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.steps()


def by_hand(steps):
    """Loss, count and parameters after each step, in float64."""
    w, out = np.zeros(D), []
    for step in range(steps):
        x, y, weights = (rows(step)[name].astype(np.float64) for name in ("x", "y", "weights"))
        error, count = x @ w - y, weights.sum()
        loss = weights @ error**2
        w = w - RATE * 2 * (weights * error) @ x / count
        out.append((loss, count, w))
    return out


def test_lines_are_weighted_means_and_end_at_logs_evaluations_and_checkpoints(tmp_path):
    config = Training(steps=11, log_every=4, evaluate_every=6, checkpoint_every=5, keep=9)
    after, seen = run(tmp_path, config)
    expected = by_hand(11)
    ends = [4, 5, 6, 8, 10, 11]
    assert [row["step"] for row in seen] == ends
    written = metrics.read(tmp_path)
    assert written[0]["tokens_per_second"] is None and math.isnan(seen[0]["tokens_per_second"])  # nothing timed yet
    assert seen[1:] == written[1:]
    assert [row["step"] for row in seen if "validation_loss" in row] == [6, 11]
    assert saved(tmp_path) == [5, 10, 11]
    for first, row in zip([0, *ends], seen, strict=False):
        losses, counts, params = zip(*expected[first : row["step"]], strict=True)
        assert row["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-5)
        assert row["nats"] == pytest.approx(row["loss"] / 2, rel=1e-6)
        assert row["param_norm"] == pytest.approx(np.linalg.norm(params[-1]), rel=1e-5)
        assert not {"finite", "count", "tokens"} & row.keys()
    np.testing.assert_allclose(after.params["w"], expected[-1][2], rtol=1e-5)


def test_checkpoints_hold_the_recipe_and_their_step_s_parameters_and_validation_decides_the_best(tmp_path):
    losses = iter([3.0, 1.0, 2.0])
    config = Training(steps=6, log_every=9, evaluate_every=2, checkpoint_every=2, keep=1)
    after, _ = run(tmp_path, config, evaluate=lambda params: {"loss": next(losses)})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4, 6]
        best, latest = (checkpoints.restore(jax.eval_shape(lambda: after), step) for step in ("best", "latest"))
    assert (best.step, latest.step, latest.recipe) == (4, 6, RECIPE)
    np.testing.assert_allclose(best.state.params["w"], by_hand(4)[-1][2], rtol=1e-5)
    np.testing.assert_array_equal(latest.state.params["w"], after.params["w"])


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_average_is_evaluated_where_there_is_one(tmp_path, ema):
    evaluated = []
    config = Training(steps=4, evaluate_every=3, ema=ema)
    after, _ = run(tmp_path, config, evaluate=lambda params: evaluated.append(np.array(params["w"])) or {"loss": 0.0})
    w, average = np.zeros(D), np.zeros(D)
    kept = []
    for step, (_, _, w) in enumerate(by_hand(4)):
        decay = 0 if ema is None else min(ema, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * w
        kept.append(average)
    np.testing.assert_allclose(evaluated, [kept[2], kept[3]], rtol=1e-5)
    assert (ema is None) == bool(np.allclose(evaluated[-1], after.params["w"]))


class Late:
    """A metric that `wait` lets go."""

    def __init__(self, value, wait):
        self.value, self.wait = value, wait

    def __array__(self, dtype=None, copy=None):
        self.wait()
        return np.asarray(self.value)


def late(train):
    """The linear model's steps, where `train(number)` is told of each and returns what waits until it is done."""
    steps, numbers = compiled(), itertools.count(1)

    def step(state, batch):
        wait = train(next(numbers))
        state, values = steps.train(state, batch)
        return state, {name: Late(value, wait) for name, value in values.items()}

    kept = {name: getattr(steps, name) for name in ("place_state", "place_batch", "host_state")}
    return types.SimpleNamespace(train=step, **kept)


class Clock:
    """In seconds; the devices take one half for a step, one after the other."""

    def __init__(self, monkeypatch):
        self.now = self.free = 0.0
        for module in (loop, lines):
            monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: self.now))
        self.steps = late(self.train)

    def train(self, number):
        end = self.free = max(self.free, self.now) + 0.5
        return lambda: self.spend(end - self.now)

    def spend(self, seconds, result=None):
        self.now += max(seconds, 0)
        return result


def test_only_training_is_timed(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    config = Training(steps=8, log_every=2, evaluate_every=4, checkpoint_every=4)
    rates = lambda tokens_per_second: {"doubled": 2 * tokens_per_second}  # noqa: E731
    evaluate = lambda _: clock.spend(100.0, {"loss": 1.0})  # noqa: E731
    _, seen = run(tmp_path, config, steps=clock.steps, evaluate=evaluate, rates=rates)
    counts = [count for _, count, _ in by_hand(8)]
    expected = [np.nan, *(sum(counts[end - 2 : end]) for end in (4, 6, 8))]  # of one second; the first steps compile
    np.testing.assert_allclose([row["tokens_per_second"] for row in seen], expected, rtol=1e-6)
    np.testing.assert_array_equal([row["doubled"] for row in seen], [2 * row["tokens_per_second"] for row in seen])


def test_heads_are_observed_with_the_parameters_and_the_batch_of_the_step_and_not_timed(tmp_path, monkeypatch):
    clock, observed = Clock(monkeypatch), []

    def observe(params, batch):
        clock.spend(100.0)
        observed.append((np.array(params["w"]), jax.tree.map(np.array, batch)))
        return {"heads/decoder/0/0/entropy": len(observed) / 8, "heads/decoder/0/1/entropy": math.nan}

    config = Training(steps=9, log_every=2, evaluate_every=9, checkpoint_every=9, head_metrics_every=3)
    _, seen = run(tmp_path, config, steps=clock.steps, observe=observe)
    assert [row["step"] for row in seen] == [2, 3, 4, 6, 8, 9]
    for number, (w, batch) in enumerate(observed, start=1):
        np.testing.assert_allclose(w, by_hand(3 * number)[-1][2], rtol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, batch, rows(3 * number - 1))
    written = {row["step"]: row for row in metrics.read(tmp_path)}
    assert [step for step, row in written.items() if "heads/decoder/0/0/entropy" in row] == [3, 6, 9]
    assert written[6]["heads/decoder/0/0/entropy"] == 0.25 and written[6]["heads/decoder/0/1/entropy"] is None
    counts = [count for _, count, _ in by_hand(9)]  # half a second each
    assert seen[2]["tokens_per_second"] == pytest.approx(counts[3] / 0.5, rel=1e-6)


def test_devices_are_given_the_next_steps_before_they_are_done_but_never_many(tmp_path):
    config = Training(steps=20, log_every=1, evaluate_every=10, checkpoint_every=7)
    given, read = [threading.Event() for _ in range(21)], []
    assert 1 <= loop.AHEAD <= 8

    def train(number):
        given[number].set()
        unread = number - 1 - len(set(read))
        assert unread <= loop.AHEAD, f"step {number} was given while {unread} others were under way"
        # The devices are as slow as can be: they only end a step once they have been given all that they may get.
        until = min(number + loop.AHEAD, *(stop for stop in (7, 10, 14, 20) if stop >= number))

        def wait():
            assert given[until].wait(20), f"step {until} was not given before the metrics of step {number} were read"
            read.append(number)

        return wait

    _, seen = run(tmp_path, config, steps=late(train))
    assert [row["step"] for row in seen] == list(range(1, 21))
    expected = [loss / count for loss, count, _ in by_hand(20)]
    np.testing.assert_allclose([row["loss"] for row in seen], expected, rtol=1e-5)


def test_a_reader_that_fails_does_so_with_its_own_error_after_the_lines_before_it(tmp_path):
    def broken(step):
        if step == 5:
            raise OSError("the disk is gone")
        return rows(step)

    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path, Training(steps=9, log_every=1, evaluate_every=9, checkpoint_every=3), batches=counted(broken))
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3, 4, 5] and saved(tmp_path) == [3]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("metrics")]


def test_heads_that_nothing_observes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="head_metrics_every=3 cannot work: this run measures no heads"):
        run(tmp_path, Training(steps=5, head_metrics_every=3))


@pytest.mark.parametrize(
    ("bad", "kept", "said"),
    [
        (7, [3, 6], "step 8 is not finite .*; the last good state is the checkpoint of step 6; "),
        (1, [], "step 2 is not finite .*; nothing was saved yet; "),
    ],
)
def test_a_step_that_is_not_finite_ends_training_and_nothing_is_saved_after_it(tmp_path, bad, kept, said):
    def broken(step):
        batch = rows(step)
        return {**batch, "y": batch["y"] * np.float32(np.inf)} if step == bad else batch

    config = Training(steps=20, log_every=100, evaluate_every=100, checkpoint_every=3, keep=9, skips=0, rollbacks=0)
    with pytest.raises(NonFinite, match=said) as caught:
        run(tmp_path, config, batches=counted(broken))
    assert "loss inf" in str(caught.value) and "lower training.optimizer.learning_rate" in str(caught.value)
    assert saved(tmp_path) == kept == [row["step"] for row in metrics.read(tmp_path)]


def poisoned(*steps, times=()):
    """Rows that are infinite at these steps; at those of `times` only the first time that they are read."""
    once = set(times)

    def read(step):
        batch = rows(step)
        if step in steps or step in once:
            once.discard(step)
            return {**batch, "y": batch["y"] * np.float32(np.inf)}
        return batch

    return read


FAULTY = {"steps": 14, "log_every": 2, "evaluate_every": 100, "checkpoint_every": 3, "keep": 9}


def test_a_few_bad_steps_are_skipped_and_said(tmp_path, caplog):
    config = Training(**FAULTY, skips=2, rollbacks=0)
    after, seen = run(tmp_path, config, batches=counted(poisoned(6, 7, 10)))
    w = np.zeros(D)
    for step in set(range(14)) - {6, 7, 10}:
        x, y, weights = (rows(step)[name].astype(np.float64) for name in ("x", "y", "weights"))
        w = w - RATE * 2 * (weights * (x @ w - y)) @ x / weights.sum()
    np.testing.assert_allclose(after.params["w"], w, rtol=1e-4)
    assert {line["step"]: line["skipped"] for line in seen if "skipped" in line} == {8: 2.0, 12: 1.0}
    assert [line["step"] for line in seen if math.isnan(line["loss"])] == [8]  # of no step that counts
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step")]
    assert [text.split(" (")[0] for text in said] == [f"step {step} is not finite" for step in (7, 8, 11)]
    assert said[1].endswith("it is skipped, the 2. in a row")


def rolled_back(workdir, **options):
    """Steps 8 to 10 are bad, which is one too many; returns the run and its roll-backs."""
    kept = skipping.load(workdir)
    config = Training(**FAULTY, skips=2, rollbacks=1)
    after, _ = run(workdir, config, batches=counted(poisoned(7, 8, 9)), skipped=kept, **options)
    return after, kept.jumps


def test_after_too_many_training_goes_back_and_on_behind_them(tmp_path, caplog):
    after, jumps = rolled_back(tmp_path / "first")
    assert jumps == [(6, 10)] and "back to the checkpoint of step 6, and on with the data after step 10" in caplog.text
    w = by_hand(6)[-1][2]
    for step in range(10, 14):
        x, y, weights = (rows(step)[name].astype(np.float64) for name in ("x", "y", "weights"))
        w = w - RATE * 2 * (weights * (x @ w - y)) @ x / weights.sum()
    np.testing.assert_allclose(after.params["w"], w, rtol=1e-4)
    assert saved(tmp_path / "first") == [3, 6, 12, 14]
    again, _ = rolled_back(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again, after)


def test_a_run_that_is_resumed_leaves_out_what_it_left_out_though_the_fault_is_gone(tmp_path):
    whole, _ = rolled_back(tmp_path / "whole")
    workdir = tmp_path / "parts"
    config = Training(**FAULTY, skips=2, rollbacks=1)
    with pytest.raises(KeyboardInterrupt):
        broken = counted(poisoned(times=(7, 8, 9)), stop=11)
        run(workdir, config, batches=broken, skipped=skipping.load(workdir))
    assert saved(workdir) == [3, 6]
    abstract = jax.eval_shape(lambda: create({"w": jnp.zeros(D)}, optax.sgd(RATE)))
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(abstract)
    after, _ = run(workdir, config, state=restored.state, batches=counted(), skipped=skipping.load(workdir))
    jax.tree.map(np.testing.assert_array_equal, after, whole)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore(abstract).recipe == RECIPE | {"skipped": [[6, 10]]}


def test_roll_backs_have_an_end(tmp_path):
    config = Training(**FAULTY, skips=0, rollbacks=2)
    with pytest.raises(NonFinite, match=r"step 11 is not finite .* after 2 roll-backs; the last good state .* step 6"):
        run(tmp_path, config, batches=counted(poisoned(7, 8, 10)))
    assert saved(tmp_path) == [3, 6]


def test_going_back_at_the_last_step_ends_as_any_other_run(tmp_path):
    measured = []

    def evaluate(params):
        measured.append(np.array(params["w"]))
        return {"loss": float(len(measured))}

    config = Training(**FAULTY | {"evaluate_every": 10}, skips=0, rollbacks=1)
    after, seen = run(tmp_path, config, batches=counted(poisoned(13)), evaluate=evaluate)
    assert int(after.step) == 14 and saved(tmp_path) == [3, 6, 9, 12, 14]
    np.testing.assert_allclose(after.params["w"], by_hand(12)[-1][2], rtol=1e-5)
    np.testing.assert_array_equal(measured[-1], after.params["w"])
    assert len(measured) == 2 and seen[-1]["step"] == 14 and seen[-1]["validation_loss"] == 2.0
    again, _ = run(tmp_path, config, state=after, batches=counted(stop=0), evaluate=lambda params: {})
    np.testing.assert_array_equal(again.params["w"], after.params["w"])


def test_what_was_measured_of_parameters_that_are_gone_is_forgotten(tmp_path):
    config = Training(**FAULTY | {"evaluate_every": 7}, skips=0, rollbacks=1)
    stops = iter([False] * 9 + [True])  # at the first step behind the bad one
    with Checkpoints(tmp_path, config.keep) as checkpoints, Writer(tmp_path, 0) as writer:
        first = compiled().place_state(create({"w": jnp.zeros(D)}, optax.sgd(RATE)))
        after, results = loop.train(
            first, config=config, parallel=compiled(), batches=counted(poisoned(7)), evaluate=lambda _: {"loss": 1.0},
            checkpoints=checkpoints, recipe=RECIPE, writer=writer, report=lambda step, values: None,
            stop=lambda step: next(stops),
        )  # fmt: skip
    assert int(after.step) == 9 and results == {}


def test_a_checkpoint_that_cannot_be_written_does_not_end_a_run_that_goes_back(tmp_path, monkeypatch):
    write = integrity.write_manifest

    def full(folder):
        if folder.name.startswith("6."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder)

    monkeypatch.setattr(integrity, "write_manifest", full)
    config = Training(**FAULTY, skips=0, rollbacks=1, on_save_error="continue")
    after, _ = run(tmp_path, config, batches=counted(poisoned(7)))
    assert int(after.step) == 14 and saved(tmp_path) == [3, 9, 12, 14]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_or_not_but_never_the_last(tmp_path, monkeypatch, caplog):
    write = integrity.write_manifest

    def full(folder):
        if folder.name.split(".")[0] in bad:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder)

    monkeypatch.setattr(integrity, "write_manifest", full)
    bad = ("6",)
    with pytest.raises(NotSaved, match=r"checkpoint 6 .*No space left on device.* of steps \[3\] are as they were"):
        run(tmp_path / "stop", Training(**FAULTY))
    after, _ = run(tmp_path / "continue", Training(**FAULTY, on_save_error="continue"))
    assert saved(tmp_path / "continue") == [3, 9, 12, 14] and int(after.step) == 14
    assert "checkpoint 6 cannot be written" in caplog.text and "tries again at the next checkpoint" in caplog.text
    bad = ("14",)
    with pytest.raises(NotSaved, match="checkpoint 14 cannot be written"):
        run(tmp_path / "last", Training(**FAULTY, on_save_error="continue"))


def test_nothing_is_left_to_do_at_the_last_step(tmp_path):
    state = create({"w": jnp.ones(D)}, optax.sgd(RATE)).replace(step=jnp.int32(5))
    after, seen = run(tmp_path, Training(steps=5), state=state, batches=counted(stop=5))
    assert seen == [] and int(after.step) == 5
    np.testing.assert_array_equal(after.params["w"], np.ones(D))


def test_a_loop_that_is_told_to_stop_saves_the_step_it_took(tmp_path):
    config, asked = Training(steps=9, log_every=9, evaluate_every=9, checkpoint_every=9), iter([False, True])
    after, seen = run(tmp_path, config, stop=lambda step: next(asked))
    assert int(after.step) == 2 and saved(tmp_path) == [2]
    assert [line["step"] for line in seen] == [2] and "validation_loss" not in seen[0]
