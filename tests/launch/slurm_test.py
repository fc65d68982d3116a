"""The batch script: its text, and what bash makes of it with stand-ins for Slurm's commands."""

import os
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

TRAIN = ("python", "-m", "experiments.train", "--config=a.py", "--workdir=runs/big")
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
# Stands for Slurm's commands: says how it was called.
CALLED = """#!/bin/bash
echo "${0##*/} $*" >> "$CALLS"
[[ ${0##*/} != sbatch ]] || echo "17;cluster"
[[ ${0##*/} != scancel ]] || kill -TERM "$(cat "$CALLS.pid")"
"""


def launch(*arguments, path=None):
    environment = os.environ if path is None else os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": ROOT, "env": environment}
    return subprocess.run([sys.executable, "-m", "launch.slurm", *arguments], **options)


def script(*arguments):
    process = launch("--dry-run", *arguments)
    assert process.returncode == 0, process.stderr
    checked = subprocess.run(["bash", "-n"], input=process.stdout, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    return process.stdout


@pytest.fixture
def cluster(tmp_path):
    """A folder of stand-ins, and where they say how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {"srun": SRUN, "scontrol": CALLED, "scancel": CALLED, "sbatch": CALLED}.items():
        (folder / name).write_text(body)
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def start(text, cluster, log=subprocess.PIPE, **environment):
    """A batch script as Slurm would start it."""
    path = cluster.parent / "script"
    path.write_text(text)
    known = {"PATH": f"{cluster}:{os.environ['PATH']}", "CALLS": str(cluster.parent / "calls"), "SLURM_JOB_ID": "17"}
    options = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
    return subprocess.Popen(["bash", str(path)], env=os.environ | known | environment, **options)


def calls(cluster):
    path = cluster.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_script_of_one_job(golden):
    options = ("--nodes=2", "--tasks_per_node=8", "--gpus_per_task=1", "--cpus_per_task=12", "--memory=200G")
    where = ("--partition=gpu", "--account=lab", "--time=1-00:00:00", "--notice=300", "--modules=cuda/12.4,python")
    text = script("--name=big", *options, *where, "--option=--exclusive", "--logs=/runs/big/logs", "--", *TRAIN)
    golden("job.sbatch", text.replace(str(ROOT), "HERE"))


def test_the_script_of_a_sweep_in_containers(golden):
    sweep = ("--sweep=training.optimizer.learning_rate=1e-3,3e-4", "--seeds=2", "--at_once=2")
    container = ("--container=nvcr.io#nvidia/jax:25.01", "--mounts=/data:/data,/runs:/runs")
    text = script(*sweep, *container, "--logs=/runs/my logs", "--restarts=0", "--", *TRAIN)
    golden("array.sbatch", text.replace(str(ROOT), "HERE"))


def test_arguments_arrive_as_they_are(cluster, awkward):
    code = "import sys; print(repr(tuple(sys.argv[1:])))"
    with start(script("--", sys.executable, "-c", code, *awkward), cluster, PYTHONIOENCODING="utf-8") as process:
        assert process.stdout.read() == f"{awkward!r}\n"
    assert process.returncode == 0 and not calls(cluster)


def test_each_task_of_an_array_runs_its_own(cluster):
    text = script("--sweep=model.width=8,16", "--seeds=2", "--", "echo", "--workdir=/runs")
    for task, (width, seed) in enumerate(((8, 0), (8, 1), (16, 0), (16, 1))):
        with start(text, cluster, SLURM_ARRAY_TASK_ID=str(task)) as process:
            expected = f"--workdir=/runs/width={width},seed={seed} --config.model.width={width} --config.seed={seed}\n"
            assert process.stdout.read() == expected


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (7, 0, True), (7, 2, True), (7, 3, False), (2, 0, False), (65, 0, False), (79, 0, False)],
)
def test_a_job_that_failed_goes_back_into_the_queue_some_times(cluster, code, restarts, again):
    with start(script("--", "sh", "-c", f"exit {code}"), cluster, SLURM_RESTART_COUNT=str(restarts)) as process:
        said = process.stderr.read()
    assert process.returncode == code
    assert calls(cluster) == ["scontrol requeue 17"] * again
    assert said == f"exit code {code}: back into the queue\n" * again


@pytest.mark.parametrize(("first", "code"), [(2, 2), (7, 143)])
def test_a_mistake_of_one_task_is_final_whatever_the_others_end_with(cluster, first, code):
    said = f"""
        echo "srun: error: node1: task 0: Exited with exit code {first}" >&2
        echo "1: srun: error: node1: task 0: Exited with exit code 74" >&2
        echo "srun: error: node2: tasks 1-3: Exited with exit code 143" >&2
        exit 143
    """
    log = cluster.parent / "log"
    log.write_text("srun: error: node1: task 0: Exited with exit code 65\n")  # of an earlier start
    with log.open("a") as file, start(script("--", "sh", "-c", said), cluster, file) as process:
        assert process.wait(timeout=30) == code
    assert calls(cluster) == ["scontrol requeue 17"] * (code == 143)


def test_before_the_limit_the_tasks_are_told_and_the_job_goes_back_once_they_have_saved(cluster):
    saved = cluster.parent / "saved"
    task = (
        f'trap "sleep 0.3; touch {saved}; exit $TRANSFORMER_STOPPED_CODE" TERM; '
        "echo $$ > $CALLS.pid; echo ready; while :; do sleep 0.1; done"
    )
    with start(script("--", "sh", "-c", task), cluster, SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="3") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=30) == 79
    assert saved.exists()
    assert calls(cluster) == ["scancel --signal=TERM 17_3", "scontrol requeue 17_3"]


def test_a_job_whose_tasks_do_not_end_in_time_is_taken_from_them(cluster):
    task = 'trap "" TERM; echo $$ > $CALLS.pid; echo ready; until grep -q requeue $CALLS; do sleep 0.1; done; exit 9'
    with start(script("--notice=2", "--", "sh", "-c", task), cluster) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        process.wait(timeout=30)
    assert calls(cluster)[:2] == ["scancel --signal=TERM 17", "scontrol requeue 17"]


def test_a_job_that_is_cancelled_does_not_come_back(cluster):
    with start(script("--", "sh", "-c", "echo $$ > $CALLS.pid; echo ready; exec sleep 30"), cluster) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
        os.kill(int((cluster.parent / "calls.pid").read_text()), signal.SIGTERM)
    time.sleep(0.1)
    assert not calls(cluster)


def test_what_is_submitted_is_what_was_written(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    process = launch("--name=a", f"--logs={tmp_path / 'lo gs'}", "--", "true", path=cluster)
    path = tmp_path / "lo gs" / "a.sbatch"
    assert process.stdout == f"job 17: {path}\n"
    assert calls(cluster) == [f"sbatch --parsable {path}"]
    assert path.read_text() == script("--name=a", f"--logs={tmp_path / 'lo gs'}", "--", "true")
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no such partition' >&2; exit 1\n")
    refused = launch("--name=a", f"--logs={tmp_path}", "--", "true", path=cluster)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: sbatch refuses .*a\.sbatch: sbatch: error: no such partition\n", refused.stderr)


def test_limits_are_read_as_slurm_reads_them(imported_slurm):
    given = {"90": 5400, "1:30": 90, "1:00:30": 3630, "1-2": 93600, "1-2:30": 95400, "1-00:00:01": 86401}
    assert {limit: imported_slurm.seconds(limit) for limit in given} == given
    assert imported_slurm.seconds("UNLIMITED") is imported_slurm.seconds("0") is None
    for limit in ("1:2:3:4", "1-", "-1", "1h", "1-2:3:4:5", ""):
        with pytest.raises(ValueError, match="is no limit of Slurm's"):
            imported_slurm.seconds(limit)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dry-run",), "the command is missing"),
        (("--name=two words", "--", "true"), "--name=two words cannot work"),
        (("--logs=a%b", "--", "true"), "cannot work: Slurm would replace what follows a %"),
        (("--mounts=/a:/a", "--dry-run", "--", "true"), "--mounts are of a container"),
        (("--partition=a\nb", "--dry-run", "--", "true"), "cannot stand in a batch script"),
        (("--time=nonsense", "--dry-run", "--", "true"), "--time=nonsense is no limit of Slurm's: give MINUTES,"),
        (("--time=2", "--dry_run", "--", "true"), "--notice=120 s is not less than --time=2 (120 s)"),
    ],
)
def test_a_mistake_is_one_line(arguments, said):
    process = launch(*arguments)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and said in line
