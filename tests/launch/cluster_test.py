"""A real Slurm of one machine, installed and started here: two tasks meet, stop when told, and go on from the queue."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # two minutes, and the installation

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch")
CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=15
NodeName={host} CPUs=4 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
BARE = """
import jax, numpy as np
from jax.experimental import multihost_utils
jax.distributed.initialize()
ranks = multihost_utils.process_allgather(np.array([jax.process_index()])).ravel().tolist()
print("met", jax.process_count(), ranks, flush=True)
"""
# Counts with the other task until it is told to stop; goes on where the count was.
COUNTS = """
import pathlib, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from transformer.training import distributed

told = []
distributed.initialize()
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
saved = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
saved.parent.mkdir(parents=True, exist_ok=True)
count = int(saved.read_text()) if saved.exists() else 0
print("begins at", count, "of", jax.process_count(), flush=True)
while not multihost_utils.process_allgather(np.array([len(told)])).any():
    count += 1
    time.sleep(0.05)
with distributed.first_alone("saved"):
    if jax.process_index() == 0:
        saved.write_text(str(count))
print("stops at", count, flush=True)
"""
# One task makes a mistake, and the other ends as a script does that is told to.
MISTAKE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
time.sleep(1 if os.environ["SLURM_PROCID"] == "0" else 60)
sys.exit(2)
"""


def install():
    """Installs Slurm where it can be, and skips, with the reason, where it cannot."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no Slurm, and no apt-get for root that would install it")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", "slurmctld", "slurmd", "slurm-client"]):
        done = subprocess.run(["apt-get", *words], capture_output=True, text=True, timeout=300, env=environment)
        if done.returncode:
            pytest.skip(f"apt-get {words[0]} fails: {done.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which Slurm's commands find a cluster of this machine."""
    install()
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("", 0))
        ports = [one.getsockname()[1] for one in sockets]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], ports=ports, folder=folder))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    with contextlib.ExitStack() as daemons:
        for name in ("slurmctld", "slurmd"):
            log = daemons.enter_context((folder / f"{name}.out").open("w"))
            daemon = subprocess.Popen([name, "-D"], env=environment, stdout=log, stderr=log)
            daemons.callback(daemon.wait)
            daemons.callback(daemon.terminate)
        until(lambda: "idle" in ask(environment, "sinfo", "--noheader", "--format=%T"), 60)
        yield environment
        ask(environment, "scancel", "--full", "--signal=KILL", "--user=root")
        until(lambda: not ask(environment, "squeue", "--noheader", "--states=R,CG"), 60)


def ask(environment, *words):
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment).stdout.strip()


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.3)


def state(cluster, job):
    return re.search(r"JobState=(\w+)", ask(cluster, "scontrol", "show", "job", job))[1]


def submit(cluster, folder, *arguments):
    """The job's number, and its log."""
    words = [sys.executable, "-m", "launch.slurm", f"--logs={folder / 'lo gs'}", "--tasks_per_node=2", *arguments]
    known = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(words, capture_output=True, text=True, timeout=60, env=cluster | known, cwd=folder)
    assert process.returncode == 0, process.stderr
    job = re.match(r"job (\d+): ", process.stdout)[1]
    return job, folder / "lo gs" / f"train-{job}.log"


def lines(log):
    """What the tasks said, without their numbers."""
    return [line.partition(": ")[2] for line in log.read_text().splitlines()] if log.exists() else []


def test_two_tasks_meet_by_what_slurm_tells_jax(cluster, tmp_path):
    job, log = submit(cluster, tmp_path, "--", sys.executable, "-c", BARE)
    until(lambda: state(cluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), 120)
    assert state(cluster, job) == "COMPLETED", log.read_text()
    assert sorted(line for line in log.read_text().splitlines() if "met" in line) == [
        "0: met 2 [0, 1]",
        "1: met 2 [0, 1]",
    ]


def test_tasks_that_are_told_to_stop_save_and_go_on_when_requeued(cluster, tmp_path):
    (tmp_path / "counts.py").write_text(COUNTS)
    job, log = submit(cluster, tmp_path, "--", sys.executable, "counts.py", "saved count")
    until(lambda: lines(log).count("begins at 0 of 2") == 2, 120)
    ask(cluster, "scancel", "--signal=TERM", job)
    until(lambda: state(cluster, job) == "COMPLETED", 60)
    count = (tmp_path / "saved count").read_text()
    assert lines(log).count(f"stops at {count}") == 2
    ask(cluster, "scontrol", "requeue", job)
    ask(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")
    until(lambda: lines(log).count(f"begins at {count} of 2") == 2, 120)
    ask(cluster, "scancel", job)
    until(lambda: state(cluster, job) == "CANCELLED", 60)  # and it does not come back


def test_a_job_near_its_limit_saves_and_goes_back_into_the_queue(cluster, tmp_path):
    (tmp_path / "counts.py").write_text(COUNTS)
    arguments = ("--time=2", "--notice=60", "--", sys.executable, "counts.py", "saved")
    job, log = submit(cluster, tmp_path, *arguments)
    until(lambda: "exit code 0: back into the queue" in (log.read_text() if log.exists() else ""), 180)
    until(lambda: state(cluster, job) == "PENDING", 30)
    assert lines(log).count(f"stops at {(tmp_path / 'saved').read_text()}") == 2


def test_a_mistake_of_one_task_is_not_repeated(cluster, tmp_path):
    job, log = submit(cluster, tmp_path, "--", sys.executable, "-c", MISTAKE)
    until(lambda: state(cluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), 120)
    assert state(cluster, job) == "FAILED" and "back into the queue" not in log.read_text()
    assert "ExitCode=2:0" in ask(cluster, "scontrol", "show", "job", job)


def test_one_job_of_an_array_stops_alone(cluster, tmp_path):
    (tmp_path / "counts.py").write_text(COUNTS)
    words = ("--sweep=model.width=8,16", "--", sys.executable, "counts.py", "--workdir=saved")
    job, _ = submit(cluster, tmp_path, *words)
    logs = [tmp_path / "lo gs" / f"train-{job}_{index}.log" for index in (0, 1)]
    until(lambda: all(lines(log).count("begins at 0 of 2") == 2 for log in logs), 240)
    ask(cluster, "scancel", "--signal=USR1", "--batch", f"{job}_0")
    until(lambda: "back into the queue" in logs[0].read_text(), 60)
    until(lambda: state(cluster, f"{job}_0") == "PENDING", 30)
    assert state(cluster, f"{job}_1") == "RUNNING" and not any(line.startswith("stops") for line in lines(logs[1]))
    ask(cluster, "scancel", job)
    until(lambda: state(cluster, f"{job}_1") == "CANCELLED", 60)


def test_training_runs_as_a_job_of_two_tasks(cluster, tmp_path, tiny):
    words = ("-m", "experiments.train", f"--config={tiny / 'recipe.py'}", "--workdir=run", "--config.training.steps=4")
    job, log = submit(cluster, tmp_path, "--", sys.executable, *words, "--config.prompts=()")
    until(lambda: state(cluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), 240)
    assert state(cluster, job) == "COMPLETED", log.read_text()
    assert "model: 3,448 parameters on 2 cpu device(s)" in lines(log)
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
