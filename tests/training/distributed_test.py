"""What the environment says of other processes, and two that meet."""

import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from tests.conftest import ROOT
from transformer.training import distributed

LOCAL = {"JAX_COORDINATOR_ADDRESS": "host:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        LOCAL | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "host:99"},  # for whoever calls JAX himself
        SLURM | {"SLURM_NTASKS": "1"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},  # a batch script
        {distributed.DETECT: "0"},
    ],
)
def test_a_process_that_is_told_of_no_others_is_alone(environment):
    assert distributed.settings(environment) is None


def test_a_program_that_joins_no_others_is_refused_where_there_are_some(monkeypatch):
    distributed.check_alone()
    for name, value in LOCAL.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="cannot join: start it as one"):
        distributed.check_alone()


def test_variables_come_first_then_slurm_then_what_jax_finds():
    named = {"coordinator_address": "host:99", "num_processes": 4, "process_id": 3}
    found = distributed.settings({distributed.DETECT: "1"} | SLURM | LOCAL)
    assert found == named | {"cluster_detection_method": "deactivate"}
    assert distributed.settings({distributed.DETECT: "1"} | SLURM) == {"cluster_detection_method": "slurm"}
    assert distributed.settings({distributed.DETECT: "1"}) == {}


def test_a_task_with_devices_of_its_own_takes_them_all():
    found = distributed.settings(SLURM | {"SLURM_GPUS_PER_TASK": "2"})
    assert found == {"cluster_detection_method": "slurm", "local_device_ids": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_NUM_PROCESSES": None}, "JAX_NUM_PROCESSES is missing: set all of JAX_COORDINATOR_ADDRESS, "),
        ({"JAX_COORDINATOR_ADDRESS": None}, "JAX_COORDINATOR_ADDRESS is missing"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_NUM_PROCESSES=4 and JAX_PROCESS_ID=4 cannot work"),
        ({"JAX_NUM_PROCESSES": "many"}, "JAX_NUM_PROCESSES=many and"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS=host cannot work: give HOST:PORT"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(changes, message):
    changed = {name: value for name, value in (LOCAL | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        distributed.settings(changed)


def test_a_switch_is_0_or_1():
    with pytest.raises(ValueError, match="TRANSFORMER_DISTRIBUTED=yes cannot work"):
        distributed.settings({distributed.DETECT: "yes"})


def test_where_jax_finds_nobody_it_says_what_to_set(tmp_path, environment):
    code = "from transformer.training import distributed; distributed.initialize()"
    command, alone = [sys.executable, "-c", code], environment(1) | {distributed.DETECT: "1"}
    process = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert re.search(
        r"ValueError: JAX cannot join other processes \(.*\): set JAX_COORDINATOR_ADDRESS, ", process.stderr
    )


# What a script does that `experiments.command` runs; {body} follows once the two have met.
SCRIPT = """
import os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from experiments import command, stopping
from transformer.training import distributed

def main():
    distributed.initialize()
    index = jax.process_index()
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    with distributed.first_alone("file"):
        print("first" if index == 0 else open("there").read(), flush=True)
        if index == 0:
            time.sleep(1)
            open("there", "w").write("second")
{body}

command.run(main)
"""
CUT = """
from transformer.training import meshes, parallel
cut = jax.sharding.NamedSharding(meshes.build(), jax.sharding.PartitionSpec("data"))
print(parallel.fetch([jax.make_array_from_callback((4,), cut, lambda where: np.arange(4)[where])])[0].tolist())
"""
GATHER = "multihost_utils.process_allgather(np.array([index]))"


def together(folder, body, environment):
    """Exit codes, outputs and seconds from the moment that the two had met."""
    lines = "\n".join(f"    {line}" for line in ["print('met', time.time(), flush=True)", *body.splitlines()])
    (folder / "script.py").write_text(SCRIPT.replace("{body}", lines))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    known = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder}
    command = [sys.executable, "script.py"]
    processes = [
        subprocess.Popen(command, env=environment | known | {"JAX_PROCESS_ID": str(index)}, **options)
        for index in range(2)
    ]
    try:
        ended = {}
        while len(ended) < 2:
            ended |= {one: time.time() for one in processes if one not in ended and one.poll() is not None}
            time.sleep(0.1)
    finally:
        for one in processes:
            one.kill()
    outputs = [one.communicate()[0] for one in processes]
    met = max(float(re.search(r"^met (.*)$", output, re.MULTILINE)[1]) for output in outputs)
    return [one.returncode for one in processes], outputs, [ended[one] - met for one in processes]


STOPS = f"""
print({GATHER}.ravel().tolist())
before, step = signal.getsignal(signal.SIGTERM), 0
with stopping.signals() as stop:
    while not stop(step):
        {GATHER}
        step += 1
        if index and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
print("stopped at", step, stop.signal, signal.getsignal(signal.SIGTERM) is before is not signal.SIG_DFL, flush=True)
"""


def test_two_processes_meet_the_first_goes_first_and_a_signal_to_one_stops_both_at_one_step(tmp_path, environment):
    codes, outputs, _ = together(tmp_path, CUT + STOPS, environment(2))
    assert codes == [0, 0], outputs
    (said,) = {re.search(r"^stopped at \d+ .*$", output, re.MULTILINE)[0] for output in outputs}
    assert said.endswith(f"{int(signal.SIGTERM)} True")
    for output, first in zip(outputs, ("first", "second"), strict=True):
        assert {first, "[0, 1]", "[0, 1, 2, 3]"} <= set(output.splitlines())


@pytest.mark.slow  # it waits longer than a collective of Gloo would
def test_the_first_may_take_longer_than_a_collective_allows(tmp_path, environment):
    body = "with distributed.first_alone('long'): time.sleep(0 if index else 40)"
    codes, outputs, seconds = together(tmp_path, body, environment(2))
    assert codes == [0, 0] and min(seconds) > 35, outputs


@pytest.mark.slow
def test_an_error_of_the_first_ends_those_that_wait_for_it(tmp_path, environment):
    body = "with distributed.first_alone('data'):\n    if not index: raise ValueError('broken data')"
    codes, outputs, seconds = together(tmp_path, body, environment(2))
    assert codes[0] == 2 and "error: broken data\n" in outputs[0]
    assert codes[1] not in (0, 2) and seconds[1] < 30, outputs


def test_an_error_that_tells_of_a_lost_process_is_known(monkeypatch):
    gone = ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:1744")
    assert not distributed.lost(gone)  # nobody else is there
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert distributed.lost(gone) and distributed.lost(RuntimeError("ncclUnhandledCudaError"))
    assert not distributed.lost(ValueError("steps=0 cannot work"))


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize(
    ("how", "code"),
    [("raise ValueError('a mistake')", 2), ("raise RuntimeError('a fault')", 1), ("os.kill(os.getpid(), 9)", -9)],
)
def test_one_that_dies_ends_the_other_within_half_a_minute(tmp_path, environment, dies, how, code):
    body = f"if index == {dies}: {how}\nfor _ in range(600): {GATHER}; time.sleep(0.1)"
    codes, outputs, seconds = together(tmp_path, body, environment(2))
    assert codes[dies] == code and codes[1 - dies] != 0, outputs
    assert seconds[dies] < 5  # it does not wait for the other
    assert seconds[1 - dies] < 30
    assert codes[1 - dies] != 2  # which no launcher would start again
    if code == 2:
        assert "error: a mistake\n" in outputs[dies]


@pytest.mark.slow  # half a minute
def test_one_that_is_told_to_end_does_while_the_other_waits(tmp_path, environment):
    body = "if index: os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60 if index else 0)"
    codes, outputs, seconds = together(tmp_path, body, environment(2))
    assert codes[1] == 143 and seconds[1] < 5, outputs


@pytest.mark.slow  # a minute
def test_one_that_is_done_waits_for_the_other(tmp_path, environment):
    codes, outputs, seconds = together(tmp_path, "time.sleep(35 if index else 0)", environment(2))
    assert codes == [0, 0] and min(seconds) > 30, outputs
