"""The commands for a TPU slice: their text, and what a shell makes of them with a stand-in for gcloud."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TRAIN = ("python", "-m", "experiments.train", "--config=a.py", "--workdir=/mnt/bucket/big")
WHERE = ("--zone=us-east5-a", "--accelerator=v5p-256")
# Runs what it is to run on the hosts, and has the slice at the second question.
GCLOUD = """#!/bin/bash
echo "gcloud ${*:1:6}" >> "$CALLS"
if [[ $4 == describe ]]; then
    [[ $(grep -c describe "$CALLS") == 1 ]] && echo "${FIRST-WAITING}" || echo ACTIVE
fi
for word; do
    [[ $word != --command=* ]] || exec bash -c "${word#--command=}"
done
"""
# Nothing takes long here.
SLEEP = """#!/bin/bash
exec %s 0.05
"""


def launch(*arguments):
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": ROOT}
    return subprocess.run([sys.executable, "-m", "launch.tpu", *arguments], **options)


def written(*arguments):
    process = launch(*arguments)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture
def execute(tmp_path):
    """Runs commands with a stand-in for gcloud, the home folder being empty but for `folder`."""
    for name, text in {"gcloud": GCLOUD, "sleep": SLEEP % shutil.which("sleep")}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    (tmp_path / "folder").mkdir()
    known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "PYTHONIOENCODING": "utf-8"}

    def run(text, **changes):
        options = {"capture_output": True, "text": True, "timeout": 60, "cwd": tmp_path}
        return subprocess.run(["bash"], input=text, env=os.environ | known | changes, **options)

    return run


def test_the_commands_for_a_slice(golden):
    setup = "git clone https://example.org/code transformer-research && pip install './transformer-research[tpu]'"
    golden("slice.sh", written("--name=big", *WHERE, "--project=mine", "--reserved", f"--setup={setup}", "--", *TRAIN))


def test_the_commands_for_a_sweep_on_two_slices(golden):
    sweep = ("--sweep=training.optimizer.learning_rate=1e-3,3e-4", "--slices=2", "--spot", "--restarts=0")
    golden("slices.sh", written("--zone=us-east5-a", "--accelerator=v5litepod-16", *sweep, "--", *TRAIN))


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v4-32", "tpu-ubuntu2204-base"), ("v6e-8", "v2-alpha-tpuv6e"), ("v5p-8", "v2-alpha-tpuv5")],
)
def test_the_software_suits_the_accelerator(accelerator, runtime):
    assert f"--runtime-version={runtime} " in written("--zone=z", f"--accelerator={accelerator}", "--", "true")
    assert "--runtime-version=mine " in written("--zone=z", "--accelerator=v4-8", "--runtime=mine", "--", "true")


def test_arguments_arrive_as_they_are(execute, awkward):
    code = "import os, sys; print(os.getcwd(), os.environ['TRANSFORMER_DISTRIBUTED'], repr(tuple(sys.argv[1:])))"
    process = execute(written(*WHERE, "--folder=folder", "--", sys.executable, "-c", code, *awkward))
    assert process.stderr == ""
    assert process.stdout.startswith("WAITING\nACTIVE\n")
    assert process.stdout.endswith(f"/folder 1 {awkward!r}\n")


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (2, 1), (74, 1), (7, 3)])
def test_a_run_that_fails_is_started_anew_and_a_mistake_is_not(execute, code, starts):
    process = execute(
        written(*WHERE, "--folder=folder", "--restarts=2", "--", "sh", "-c", f"echo started; exit {code}")
    )
    assert process.stdout == "WAITING\nACTIVE\n" + "started\n" * starts
    assert process.returncode == code


def test_a_sweep_goes_on_after_a_run_that_failed_and_deletes_nothing(execute, tmp_path):
    sweep = ("--sweep=model.width=8,16", "--restarts=0")
    line = 'echo "$1"; case $1 in *width=8) exit 7 ;; esac'
    process = execute(written(*WHERE, "--folder=folder", *sweep, "--", "sh", "-c", line, "sh", "--workdir=/mnt/runs"))
    assert process.stdout.splitlines()[2:] == ["--workdir=/mnt/runs/width=8", "--workdir=/mnt/runs/width=16"]
    assert (process.returncode, process.stderr) == (0, "width=8 failed\n")
    assert "delete" not in (tmp_path / "calls").read_text()


def test_what_fails_ends_the_script(execute):
    failed = execute(written(*WHERE, "--folder=folder", "--", "echo", "trained"), FIRST="FAILED")
    assert (failed.returncode, failed.stdout) == (1, "FAILED\n")
    setup = execute(written(*WHERE, "--folder=folder", "--setup=exit 3", "--", "echo", "trained"))
    assert setup.returncode == 3 and "trained" not in setup.stdout


def test_a_run_goes_on_without_a_connection(execute, tmp_path):
    text = written(*WHERE, "--folder=folder", "--", "sh", "-c", "sleep 1; echo done")
    start = text[: text.index("# Wait.")]
    assert execute(start).returncode == 0
    again = execute("set -e\n" + text[text.index("# Wait.") :])
    assert (again.returncode, again.stdout) == (0, "done\n")


def test_setup_comes_where_the_code_is_not_yet(execute):
    process = execute(written(*WHERE, "--folder=new", "--setup=mkdir -p new && echo made", "--", "pwd"))
    assert process.stderr == ""
    assert process.stdout.startswith("WAITING\nACTIVE\nmade\n") and process.stdout.endswith("/new\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (WHERE, "the command is missing"),
        ((WHERE[0], "--", "true"), "--accelerator is missing"),
        ((WHERE[1], "--", "true"), "--zone is missing"),
        ((WHERE[0], "--accelerator=v5p", "--", "true"), "--accelerator=v5p is not known: give KIND-NUMBER"),
        ((WHERE[0], "--accelerator=h100-8", "--", "true"), "KIND one of v4, v5litepod, v5p, v6e"),
        ((*WHERE, "--spot", "--reserved", "--", "true"), "--spot and --reserved exclude each other"),
    ],
)
def test_a_mistake_is_one_line(arguments, said):
    process = launch(*arguments)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and said in line
