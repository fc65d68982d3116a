"""Runs that go on with other devices and processes than they began with, and faults that one process survives."""

import json
import re
import signal

import jax
import numpy as np
import pytest

from tests.faults.runs import until
from transformer.training import exits, metrics
from transformer.training.restoring import load_params, load_steps

SHORT = (
    "--config.training.steps=12", "--config.model.decoder.dropout=0.0", "--config.training.log_every=1",
    "--config.training.optimizer.schedule=constant",
)  # fmt: skip
DEVICES = [(1, 1, "jit"), (1, 2, "jit"), (1, 4, "pmap"), (2, 1, "jit"), (2, 2, "pmap")]


def ended(run, code=0):
    codes, seconds = run.wait()
    assert codes == [code] * len(codes), run.said(0)
    return seconds


@pytest.mark.slow  # ten runs
def test_a_run_goes_on_with_other_devices_and_processes_to_the_same_losses(start, tmp_path, table):
    expected, seconds = None, 0.0
    for number, (processes, devices, kind) in enumerate(DEVICES):
        name = f"run{number}"
        ended(start(name, *SHORT, "--config.training.steps=6"))
        seconds = ended(start(name, *SHORT, f"--parallel={kind}", processes=processes, devices=devices))
        losses = [row["loss"] for row in metrics.read(tmp_path / name)]
        assert len(losses) == 12
        expected = losses if expected is None else expected  # of the devices that it began with
        np.testing.assert_allclose(losses, expected, rtol=1e-5)  # sums over devices are taken in another order
    table("other devices, processes, jit or pmap on resuming", "goes on; losses equal to rounding", seconds)


@pytest.mark.slow
def test_a_batch_without_a_finite_gradient_is_skipped_and_many_are_rolled_back(start, tmp_path, table):
    few = start("few", *SHORT, fault="nan:7")
    seconds = ended(few)
    assert "step 8 is not finite" in few.logs[0].read_text() and "it is skipped" in few.logs[0].read_text()
    table("NaN in one batch", "the step is skipped and logged; nothing else changes", seconds)
    many = [start(name, *SHORT, "--config.training.skips=1", fault="nan:6,7,8") for name in ("many", "again")]
    seconds = max(ended(run) for run in many)
    assert json.loads((tmp_path / "many" / "skipped.json").read_text()) == {"skipped": [[6, 8]]}
    one, other = (load_params(tmp_path / name) for name in ("many", "again"))
    jax.tree.map(np.testing.assert_array_equal, one.state, other.state)
    table("NaN in several batches running", "back to the last checkpoint, past the data; twice bitwise alike", seconds)
    endless = start("endless", *SHORT, "--config.training.skips=0", fault="nan:" + ",".join(map(str, range(6, 99))))
    table("NaN in every batch", f"one line, code {exits.NOT_FINITE}", ended(endless, exits.NOT_FINITE))


@pytest.mark.slow
def test_a_bit_that_flips_in_one_copy_ends_the_run_before_the_next_checkpoint(start, tmp_path, table):
    run = start("run", *SHORT, devices=4, fault="flip:7")
    seconds = ended(run, exits.DRIFTED)
    assert re.search(r"^error: copies of params/\S+ differ after step 9: device 3 of process 0 a", run.said(), re.M)
    assert load_steps(tmp_path / "run") == [3, 6]
    happens = f"named with its device before the next checkpoint, code {exits.DRIFTED}"
    table("a bit flipped in one of four copies", happens, seconds)


@pytest.mark.slow
def test_two_runs_do_not_share_a_directory_and_a_second_signal_ends_at_once(start, tmp_path, table):
    first = start("run", "--config.training.steps=100000")
    until(lambda: metrics.read(tmp_path / "run"))
    second = start("run", "--config.training.steps=100000")
    table("two runs in one directory", "the second is refused with one line, code 2", ended(second, exits.MISTAKE))
    assert second.said().splitlines()[-1].endswith("is in use by another run: wait, or use a new --workdir")
    first.mark()
    first.processes[0].send_signal(signal.SIGUSR1)
    table("SIGUSR1, SIGTERM or Ctrl-C", "saves the step that runs, code 0", ended(first))
    assert "the same command goes on from there" in first.said()
