"""What two processes of one run do when one of them is stopped, killed, broken or stuck."""

import re
import signal

import pytest

from tests.faults.runs import until
from transformer.training import exits, metrics
from transformer.training.restoring import load_params, load_steps

pytestmark = pytest.mark.slow  # each starts two processes, which import and compile
MANY = ("--config.training.steps=100000", "--config.training.checkpoint_every=50", "--config.training.log_every=10")


def begun(start, tmp_path, **options):
    """Two processes that have saved at least once."""
    run = start("run", *MANY, processes=2, **options)
    until(lambda: any(row["step"] >= 60 for row in metrics.read(tmp_path / "run")))
    run.mark()
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_one_of_two_stops_both_at_one_step(start, tmp_path, table, number):
    run = begun(start, tmp_path)
    run.processes[1].send_signal(number)
    codes, seconds = run.wait()
    assert codes == [0, 0], run.said(0) + run.said(1)
    (step,) = re.findall(r"^stopped: at step (\d+); the same command goes on from there$", run.said(0), re.MULTILINE)
    assert load_params(tmp_path / "run").step == int(step) == load_steps(tmp_path / "run")[-1]
    more = start("run", f"--config.training.steps={int(step) + 3}", *MANY[1:], processes=2)
    assert more.wait()[0] == [0, 0], more.said(0) + more.said(1)
    assert f"resuming {tmp_path / 'run'} at step {step}" in more.said(0)
    table(f"{number.name} to one of two processes", "both save the same step and end with code 0", seconds)


@pytest.mark.parametrize("index", [1, 0])
def test_a_process_that_is_killed_takes_the_other_with_it(start, tmp_path, table, index):
    run = begun(start, tmp_path)
    run.processes[index].kill()
    codes, seconds = run.wait()
    assert codes[index] == -signal.SIGKILL and codes[1 - index] not in (0, exits.MISTAKE)
    assert seconds < 30
    table(f"SIGKILL of {'the coordinator' if index == 0 else 'a worker'}", "the other process ends", seconds)


def test_an_error_in_one_process_ends_the_other(start, tmp_path, table):
    run = begun(start, tmp_path, fault="raise:80", where=1)
    codes, seconds = run.wait()
    assert codes[1] not in (0, exits.MISTAKE) and codes[0] != 0
    assert "RuntimeError: something broke" in run.said(1)
    assert seconds < 40  # of which some steps
    table("an exception in one of two processes", "its traceback; the other process ends", seconds)


def test_a_process_that_hangs_is_ended_by_the_watchdog_with_every_stack(start, tmp_path, table):
    run = start("run", *MANY, "--watchdog=5", processes=2, fault="hang:80", where=1)
    until(lambda: any(row["step"] >= 70 for row in metrics.read(tmp_path / "run")))
    run.mark()
    codes, seconds = run.wait()
    assert exits.HUNG in codes and 0 not in codes
    hung = run.said(codes.index(exits.HUNG))
    assert "error: nothing moved for" in hung and "in faulty_read" in run.said(1) + hung
    table("a hang in one of two processes, --watchdog=5", f"every stack on stderr, code {exits.HUNG}", seconds)
