import errno
import functools
import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.training import exits, integrity, optimizers, parallel, state, step
from transformer.training.checkpoints import FOLDER, Checkpoints
from transformer.training.config import Optimizer
from transformer.training.restoring import load_params, load_recipe

# Reads of damaged files that Orbax gives up leave callbacks behind, for an event loop that is gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RECIPE = {"config": {"seed": 1, "windows": [1, 2]}, "data": "fingerprint"}


def make(step_number=3, dtype=jnp.float32, ema=0.9, seed=0, name="adamw"):
    random = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), dtype)

    params = {
        "embedding": {"table": draw(40, 40)},
        "blocks": {"query": {"kernel": draw(2, 4, 2, 3), "bias": draw(2, 2, 3)}},
    }
    optimizer = optimizers.build(Optimizer(name=name), 10)
    fresh = state.create(params, optimizer, ema)
    filled = jax.tree.map(lambda x: (x + jnp.arange(x.size).reshape(x.shape).astype(x.dtype)).astype(x.dtype), fresh)
    return jax.tree.map(np.array, filled.replace(step=jnp.int32(step_number)))


def same(a, b):
    def equal(x, y):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(equal, a, b)


@pytest.mark.parametrize(("name", "dtype"), [("muon", jnp.float32), ("adafactor", jnp.bfloat16)])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, name, dtype):
    saved = make(name=name, dtype=dtype)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(saved) is None
        checkpoints.save(saved, RECIPE)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: saved))
    same(restored.state, saved)
    assert restored.recipe == RECIPE and restored.step == 3
    record = json.loads((tmp_path / FOLDER / "3" / "record" / "metadata").read_text())
    assert record["step"] == 3 and record["loss"] is None and "jax" in record["versions"]


def test_hashing_delays_nobody_but_whoever_leaves(tmp_path, monkeypatch):
    asked, allowed, write = threading.Event(), threading.Event(), integrity.write_manifest

    def slow(folder):
        asked.set()
        assert allowed.wait(20), "save() waits for the hashes"
        write(folder)

    monkeypatch.setattr(integrity, "write_manifest", slow)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(), RECIPE)
        assert asked.wait(20) and not (tmp_path / FOLDER / "3").exists()
        threading.Timer(0.2, allowed.set).start()
    assert load_params(tmp_path).step == 3


def test_what_goes_wrong_in_the_background_is_raised_by_the_next_call_and_later_saves_work(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)
        checkpoints.wait()
        monkeypatch.setattr(integrity, "write_manifest", fail)
        checkpoints.save(make(6), RECIPE)
        said = r"^checkpoint 6 cannot be written to .* \(No space left on device\); those of steps \[3\] are as they"
        with pytest.raises(exits.NotSaved, match=said):
            checkpoints.wait()
        monkeypatch.undo()
        checkpoints.save(make(9), RECIPE)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"3", "9"}  # what was half written is gone
    assert load_params(tmp_path).step == 9


def test_a_mistake_in_the_program_is_not_said_to_be_the_disk_s(tmp_path, monkeypatch):
    def fail(folder):
        raise KeyError("why")

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(integrity, "write_manifest", fail)
        checkpoints.save(make(3), RECIPE)
        with pytest.raises(KeyError, match="why"):
            checkpoints.wait()
        monkeypatch.undo()
        checkpoints.save(make(6), RECIPE)
    assert load_params(tmp_path).step == 6


def test_whoever_leaves_by_an_error_hears_of_it_and_not_of_the_save_after_it(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(integrity, "write_manifest", fail)
    with pytest.raises(KeyError, match="why"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)
        raise KeyError("why")
    with pytest.raises(exits.NotSaved, match="Input/output error"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)


@pytest.mark.parametrize("leave", [SystemExit(3), KeyboardInterrupt(), RuntimeError()])
def test_leaving_in_any_way_waits_for_the_last_save(tmp_path, leave):
    with pytest.raises(type(leave)), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)
        raise leave
    assert load_params(tmp_path).step == 3


def test_going_back_keeps_what_came_later_under_another_name(tmp_path):
    for again in (False, True):
        with Checkpoints(tmp_path, keep=9) as checkpoints:
            for number in (6, 9) if again else (3, 6, 9):
                checkpoints.save(make(number, seed=number + again), RECIPE)
            assert checkpoints.roll_back(3) == [6, 9] and checkpoints.roll_back(3) == []
            assert checkpoints.steps() == [3] and checkpoints.restore(make()).step == 3
    aside = {"rolled-back-6", "rolled-back-9", "rolled-back-6.2", "rolled-back-9.2"}
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"3", *aside}
    (tmp_path / FOLDER / "rolled-back-9").rename(tmp_path / FOLDER / "9")
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        same(checkpoints.restore(make(), 9).state, make(9, seed=9))


def test_other_types_are_taken_only_on_purpose(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(), RECIPE)
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), make(dtype=jnp.bfloat16))
        restored = checkpoints.restore(wanted, cast=True).state
        same(restored, jax.tree.map(lambda leaf, want: leaf.astype(want.dtype), make(), wanted))


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: float("nan"), 6: 2.5}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for number, loss in losses.items():
            checkpoints.save(make(number, seed=number), RECIPE, loss)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        best = checkpoints.restore(make(), "best")
        assert best.step == 2
        same(best.state, make(2, seed=2))
        same(checkpoints.restore(make(), 5).state, make(5, seed=5))
        assert checkpoints.restore(make()).step == 6
    assert load_params(tmp_path, "best").step == 2


def test_a_save_that_would_go_back_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)
        for earlier in (2, 3):
            with pytest.raises(ValueError, match=f"step {earlier} cannot be saved after step 3"):
                checkpoints.save(make(earlier), RECIPE)


def test_a_step_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints"):
        load_params(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)
        with pytest.raises(ValueError, match=r"step=4 is not in .* choose one of \[3\], 'latest' or 'best'"):
            checkpoints.restore(make(), 4)
        with pytest.raises(ValueError, match="none is the best: ask for 'latest'"):
            checkpoints.restore(make(), "best")


def test_another_type_shape_or_structure_is_an_error_and_leaves_the_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(), RECIPE)
        with pytest.raises(ValueError, match=r"params/blocks/query/bias is float32\[2, 2, 3\] .* expected bfloat16"):
            checkpoints.restore(make(dtype=jnp.bfloat16))
        wide = make()
        wide.params["embedding"]["table"] = np.zeros((40, 41), np.float32)
        with pytest.raises(
            ValueError, match=r"params/embedding/table is float32\[40, 40\] .* expected float32\[40, 41\]"
        ):
            checkpoints.restore(wide)
        with pytest.raises(ValueError, match="ema/blocks/query/bias is in the checkpoint but not expected"):
            checkpoints.restore(make(ema=None))
        with pytest.raises(ValueError, match=r"opt_state/.* is in the checkpoint but not expected"):
            checkpoints.restore(make(name="muon"))
        same(checkpoints.restore(make()).state, make())


def test_unfinished_checkpoints_do_not_count(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)
    (tmp_path / FOLDER / "9.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert load_params(tmp_path).step == 3
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3] and checkpoints.restore(make()).step == 3


def largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "commit_success.txt"]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path):
    """A bit in the middle of a file, which Orbax would read without complaint."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("part", ["params/d", "opt_state/d", "recipe", "record"])
def test_damage_falls_back_to_the_newest_intact_step_and_says_so(tmp_path, caplog, harm, part):
    with Checkpoints(tmp_path) as checkpoints:
        for number in (3, 6):
            checkpoints.save(make(number), RECIPE, loss=1 / number)
    folder = tmp_path / FOLDER / "6"
    harm(largest(folder / part))
    if part == "params/d":
        before = sorted(tmp_path.rglob("*"))
        assert load_params(tmp_path).step in (3, 6)  # 6 when only the average is read
        assert sorted(tmp_path.rglob("*")) == before
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"checkpoint 6 .* is damaged .* choose another step"):
            checkpoints.restore(make(), "best")
        caplog.clear()
        restored = checkpoints.restore(make())
        assert restored.step == 3
        same(restored.state, make(3))
        assert "checkpoint 6" in caplog.text and "is damaged" in caplog.text
        checkpoints.save(make(6), RECIPE)  # the damaged one is out of the way
        assert checkpoints.restore(make()).step == 6
    assert (tmp_path / FOLDER / "damaged-6").is_dir()


def test_what_cannot_be_looked_at_for_a_moment_is_not_set_aside(tmp_path, monkeypatch):
    def busy(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with Checkpoints(tmp_path) as checkpoints:
        for number in (3, 6):
            checkpoints.save(make(number), RECIPE)
        checkpoints.wait()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
            patch.setattr(integrity, "_hash", busy)
            checkpoints.restore(make())
        assert checkpoints.restore(make()).step == 6 and checkpoints.steps() == [3, 6]


def test_recipes_are_read_by_step_and_only_where_there_is_nothing_there_is_none(tmp_path):
    assert load_recipe(tmp_path) is None
    with Checkpoints(tmp_path) as checkpoints:
        assert load_recipe(tmp_path) is None
        for number in (3, 6):
            checkpoints.save(make(number), {"of": number})
    assert load_recipe(tmp_path) == {"of": 6} and load_recipe(tmp_path, 3) == {"of": 3}
    flip(largest(tmp_path / FOLDER / "6" / "recipe"))
    assert load_recipe(tmp_path) == {"of": 3}
    with pytest.raises(ValueError, match=r"checkpoint 6 .* is damaged .* choose another step"):
        load_recipe(tmp_path, 6)
    flip(largest(tmp_path / FOLDER / "3" / "recipe"))
    with pytest.raises(ValueError, match=r"no intact checkpoint; damaged: \[6, 3\]"):
        load_recipe(tmp_path)


def test_when_all_are_damaged_nothing_is_trained_from_scratch(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(3), RECIPE)
    flip(largest(tmp_path / FOLDER / "3" / "params" / "d"))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"no intact checkpoint; damaged: \[3\]"):
        checkpoints.restore(make())


@pytest.mark.parametrize("ema", [0.9, None])
def test_parameters_are_loaded_alone_from_the_average_where_there_is_one(tmp_path, ema):
    saved = make(ema=ema)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, RECIPE)
    loaded = load_params(tmp_path)
    same(loaded.state, saved.params if ema is None else saved.ema)
    assert loaded.recipe == RECIPE


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path):
    def loss_fn(params, batch, key):
        kept = jax.random.bernoulli(key, 0.8, batch["x"].shape)
        loss = jnp.sum(((batch["x"] * kept) @ params["blocks"]["kernel"][0]) ** 2)
        return loss, {"count": jnp.float32(len(batch["x"])), "nats": loss}

    optimizer = optimizers.build(Optimizer(weight_decay=0.1, warmup=2), 6)
    train_step = functools.partial(step.train_step, loss_fn=loss_fn, optimizer=optimizer, ema=0.9, seed=5)
    runner = parallel.build("jit", train_step, step.evaluation_step)
    random = np.random.default_rng(0)
    params = {"blocks": {"kernel": random.normal(size=(1, 4, 3)).astype(np.float32)}}
    batches = [{"x": random.normal(size=(8, 4)).astype(np.float32)} for _ in range(6)]

    def run(current, checkpoints, until):
        for number in range(int(current.step), until):
            current, _ = runner.train(current, runner.place_batch(batches[number]))
            checkpoints.save(runner.host_state(current), RECIPE)
        return runner.host_state(current)

    first = state.create(jax.tree.map(jnp.asarray, params), optimizer, 0.9)
    with Checkpoints(tmp_path / "whole") as checkpoints:
        whole = run(runner.place_state(first), checkpoints, 6)
    with Checkpoints(tmp_path / "parts") as checkpoints:
        run(runner.place_state(first), checkpoints, 3)
    with Checkpoints(tmp_path / "parts") as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: first))
        assert restored.step == 3
        same(run(runner.place_state(restored.state), checkpoints, 6), whole)


@pytest.mark.parametrize("character", "*?[")
def test_a_path_that_would_be_read_as_a_pattern_is_refused(tmp_path, character):
    with pytest.raises(ValueError, match=r"cannot hold checkpoints: choose a path without"):
        Checkpoints(tmp_path / f"a{character}b]")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_hides_the_best_but_not_the_latest(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for number in (3, 6):
            checkpoints.save(make(number), RECIPE, loss=float(number))
    cut(largest(tmp_path / FOLDER / "3" / "record"))
    assert load_params(tmp_path).step == 6
    with pytest.raises(ValueError, match=r"checkpoint 3 .* is damaged .* best is not known: choose another step"):
        load_params(tmp_path, "best")
