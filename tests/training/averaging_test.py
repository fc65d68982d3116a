"""Means of checkpoints against means of the arrays that were saved."""

import gc
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest

from transformer.training import averaging, state
from transformer.training.averaging import average_checkpoints
from transformer.training.checkpoints import FOLDER, Checkpoints
from transformer.training.restoring import load_params

# Reads of damaged files that Orbax gives up leave callbacks behind, for an event loop that is gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def params(step, dtype=np.float32, width=5):
    random = np.random.default_rng(step)
    return {
        "embedding": {"table": random.normal(size=(7, width)).astype(dtype)},
        "blocks": {"query": {"kernel": random.normal(size=(2, width, 3)).astype(dtype)}},
    }


def save(workdir, trees, keep=9, losses=None, ema=None):
    """A checkpoint for each step of `trees`; the recipe says which."""
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step, tree in trees.items():
            saved = state.State(step=np.int32(step), params=tree, opt_state={}, ema=ema and ema[step], health={})
            checkpoints.save(saved, {"of": step}, (losses or {}).get(step))


def check_mean(restored, trees):
    """Equal, in the saved type, to the mean in float64."""

    def check(found, *leaves):
        expected = np.stack([leaf.astype(np.float64) for leaf in leaves]).mean(axis=0).astype(leaves[0].dtype)
        assert found.dtype == leaves[0].dtype
        # Both round a float64 sum, in another order perhaps, to the saved type: at most its last bit differs.
        tolerance = float(ml_dtypes.finfo(found.dtype).eps)
        np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=tolerance)

    assert jax.tree.structure(restored.state) == jax.tree.structure(trees[0])
    jax.tree.map(check, restored.state, *trees)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_mean_is_that_of_the_last_ones_by_step(tmp_path, dtype):
    trees = {step: params(step, dtype) for step in (2, 4, 9, 10, 12)}
    save(tmp_path, trees)
    before = sorted(tmp_path.rglob("*"))
    restored = average_checkpoints(tmp_path, 3)
    assert (restored.step, restored.recipe) == (12, {"of": 12})
    check_mean(restored, [trees[12], trees[10], trees[9]])
    earlier = average_checkpoints(tmp_path, 2, step=9)
    assert (earlier.step, earlier.recipe) == (9, {"of": 9})
    check_mean(earlier, [trees[9], trees[4]])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_mean_is_more_exact_than_its_type(tmp_path):
    # In bfloat16, 256 + 1 is 256: a running sum in the saved type would lose every 1.
    trees = {step: {"x": np.array([value], ml_dtypes.bfloat16)} for step, value in enumerate((256, 1, 1, 1, 1), 1)}
    save(tmp_path, trees)
    assert float(average_checkpoints(tmp_path, 5).state["x"][0]) == 52.0


def test_one_is_itself_and_the_moving_average_is_preferred(tmp_path):
    trees, means = ({step: params(step + shift) for step in (1, 2)} for shift in (0, 10))
    save(tmp_path, trees, ema=means)
    jax.tree.map(np.testing.assert_array_equal, average_checkpoints(tmp_path, 1).state, load_params(tmp_path).state)
    check_mean(average_checkpoints(tmp_path, 2), [means[2], means[1]])


def test_the_best_that_was_kept_is_one_of_the_last(tmp_path):
    trees = {step: params(step) for step in range(1, 7)}
    save(tmp_path, trees, keep=2, losses={1: 5.0, 2: 1.0, 5: 3.0, 6: 4.0})
    check_mean(average_checkpoints(tmp_path, 3), [trees[6], trees[5], trees[2]])
    check_mean(average_checkpoints(tmp_path, 2), [trees[6], trees[5]])
    assert average_checkpoints(tmp_path, 1, step="best").step == 2


def test_one_checkpoint_is_in_memory_at_a_time(tmp_path, monkeypatch):
    save(tmp_path, {step: params(step) for step in range(1, 5)})
    loaded = []

    def load(workdir, step):
        gc.collect()
        assert not any(array() is not None for array in loaded), "an earlier one is still there"
        restored = load_params(workdir, step)
        loaded.extend(map(weakref.ref, jax.tree.leaves(restored.state)))
        return restored

    monkeypatch.setattr(averaging, "load_params", load)
    average_checkpoints(tmp_path, 4)
    assert len(loaded) == 8


def flip(workdir, step, part):
    """A bit in the middle of the largest file of a part."""
    files = [path for path in (workdir / FOLDER / str(step) / part).rglob("*") if path.is_file()]
    path = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_damaged_ones_are_left_out_with_a_warning(tmp_path, caplog):
    trees = {step: params(step) for step in range(1, 6)}
    save(tmp_path, trees)
    flip(tmp_path, 5, "params/d")
    flip(tmp_path, 3, "record")
    restored = average_checkpoints(tmp_path, 3)
    assert (restored.step, restored.recipe) == (4, {"of": 4})
    check_mean(restored, [trees[4], trees[2], trees[1]])
    assert all(f"checkpoint {step} in" in caplog.text for step in (5, 3)) and "checkpoint 4" not in caplog.text
    with pytest.raises(
        ValueError, match=r"average=4: .* has only 3 intact checkpoints up to step 4, \[1, 2, 4\]; training\.keep"
    ):
        average_checkpoints(tmp_path, 4)
    with pytest.raises(ValueError, match=r"checkpoint 5 .* is damaged .* choose another step"):
        average_checkpoints(tmp_path, 2, step=5)


def test_too_few_are_counted(tmp_path):
    save(tmp_path, {step: params(step) for step in (3, 6, 9)})
    with pytest.raises(
        ValueError, match=r"average=3: .* has only 2 intact checkpoints up to step 6, \[3, 6\]; training\.keep"
    ):
        average_checkpoints(tmp_path, 3, step=6)
    with pytest.raises(ValueError, match=r"step=7 is not in .* choose one of"):
        average_checkpoints(tmp_path, 1, step=7)
    with pytest.raises(ValueError, match="holds no checkpoints"):
        average_checkpoints(tmp_path / "nothing", 1)
    for average in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match=f"average={average} must be the number"):
            average_checkpoints(tmp_path, average)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            params(1, width=6),
            r"blocks/query/kernel is float32\[2, 6, 3\] in the one and float32\[2, 5, 3\] in",
        ),
        (params(1, ml_dtypes.bfloat16), r"blocks/query/kernel is bfloat16\[2, 5, 3\] in the one and float32\["),
        ({**params(1), "head": np.zeros(3)}, r"head is float64\[3\] in the one and absent in the other, and 0 more"),
        ({"embedding": params(1)["embedding"]}, r"blocks/query/kernel is absent in the one and float32\["),
    ],
)
def test_other_structures_are_refused(tmp_path, other, reason):
    save(tmp_path, {1: other, 2: params(2)})
    with pytest.raises(ValueError, match=f"checkpoints 1 and 2 cannot be averaged: {reason}"):
        average_checkpoints(tmp_path, 2)
    assert average_checkpoints(tmp_path, 1).step == 2
