"""SIGKILL at any moment of a run with saves: it goes on as if nothing had been."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.faults.conftest import LONG
from transformer.training import metrics
from transformer.training.restoring import load_params, load_steps

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
SAVES = ("--config.training.checkpoint_every=2", "--config.training.log_every=2", f"--config.training.steps={STEPS}")
TIMED = ("tokens_per_second", "utilisation")


@pytest.fixture
def lives(environment, tiny, tmp_path):
    """`lives("run", moments)`: the exit codes of a run that was killed at these moments and started again."""

    def run(name, moments):
        flags = [f"--config={tiny / 'recipe.py'}", f"--workdir={tmp_path / name}", *LONG, *SAVES]
        program = [sys.executable, str(Path(__file__).with_name("killing.py")), str(tmp_path / name)]
        options = {"capture_output": True, "text": True, "timeout": 500, "cwd": ROOT, "env": environment(1)}
        process = subprocess.run([*program, json.dumps(moments), *flags], **options)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run


def lines(workdir):
    return [{name: value for name, value in row.items() if name not in TIMED} for row in metrics.read(workdir)]


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])  # 20: some minutes
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_was_not(lives, tmp_path, table, count):
    chance = random.Random(count)
    # Lines are written at every save, so that most moments are within one.
    moments = sorted((chance.randrange(1, STEPS // 2), chance.uniform(0, 0.1)) for _ in range(count))
    assert lives("whole", []) == [0]
    begin = time.monotonic()
    ends = lives("killed", moments)
    seconds = time.monotonic() - begin
    assert ends[-1] == 0 and ends.count(-signal.SIGKILL) >= max(1, count // 2)  # a moment may come after the end
    whole, killed = (load_params(tmp_path / name) for name in ("whole", "killed"))
    assert whole.step == killed.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, killed.state, whole.state)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert load_steps(tmp_path / "killed") == load_steps(tmp_path / "whole")
    happens = "goes on from the last checkpoint; parameters and metrics bitwise those of a run that was not killed"
    table(f"SIGKILL at {count} random moments", happens, seconds / (count + 1))
