"""The commands for a TPU slice: their text, and what a shell makes of them with a stand-in for gcloud."""

import os
import stat
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TRAIN = ("python", "-m", "experiments.train", "--config=a.py", "--workdir=gs://bucket/big")
WHERE = ("--zone=us-east5-a", "--accelerator=v5p-256")
# Runs what it is to run on the hosts.
GCLOUD = """#!/bin/bash
echo "gcloud ${*:1:6}" >> "$CALLS"
for word; do
    [[ $word != --command=* ]] || bash -c "${word#--command=}"
done
exit 0
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
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(stat.S_IRWXU)
    (tmp_path / "folder").mkdir()
    known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "PYTHONIOENCODING": "utf-8"}

    def run(text):
        options = {"capture_output": True, "text": True, "timeout": 60, "cwd": tmp_path}
        return subprocess.run(["bash"], input=text, env=os.environ | known, **options)

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
    assert process.stdout.endswith(f"/folder 1 {awkward!r}\n")


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (2, 1), (74, 1), (7, 3)])
def test_a_run_that_fails_is_started_anew_and_a_mistake_is_not(execute, code, starts):
    process = execute(
        written(*WHERE, "--folder=folder", "--restarts=2", "--", "sh", "-c", f"echo started; exit {code}")
    )
    assert process.stdout == "started\n" * starts


def test_setup_comes_where_the_code_is_not_yet(execute):
    process = execute(written(*WHERE, "--folder=new", "--setup=mkdir -p new && echo made", "--", "pwd"))
    assert process.stderr == ""
    assert process.stdout.startswith("made\n") and process.stdout.endswith("/new\n")


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
