"""Runs that are harmed, in processes of their own, and the table of what they did then."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.faults.filling import FAULTS
from tests.faults.runs import Started, end, port

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAULTY = str(pathlib.Path(__file__).with_name("faulty.py"))
# What compiles in little time, and writes nothing at the end.
LONG = (
    "--config.prompts=()", "--config.training.keep=9", "--config.training.accumulation=1", "--config.training.ema=None",
    "--config.training.optimizer.name=sgd", "--config.training.optimizer.momentum=0.9",
)  # fmt: skip


@pytest.fixture
def start(environment, tiny, tmp_path):
    """`start("run", "--flag=1", processes=2, fault="hang:5")` trains the tiny recipe in a working directory."""
    with contextlib.ExitStack() as running:

        def launch(name, *flags, processes=1, devices=1, fault=None, where=None, workdir=None):
            program = ["-m", "experiments.train"] if fault is None else [FAULTY]
            command = [sys.executable, *program, f"--config={tiny / 'recipe.py'}"]
            command += [f"--workdir={workdir or tmp_path / name}", *LONG, *flags]
            variables = environment(devices)
            variables |= {} if fault is None else {"FAULT": fault}
            variables |= {} if where is None else {"FAULT_PROCESS": str(where)}
            if processes > 1:
                variables |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port()}", "JAX_NUM_PROCESSES": str(processes)}
            started, logs = [], []
            for index in range(processes):
                logs.append(tmp_path / f"{name}-{time.monotonic_ns()}-{index}.log")
                file = running.enter_context(logs[-1].open("w"))
                own = variables | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {})
                options = {"cwd": ROOT, "env": own, "stdout": file, "stderr": subprocess.STDOUT}
                started.append(subprocess.Popen(command, **options))
                running.callback(end, started[-1])
            return Started(started, logs)

        yield launch


@pytest.fixture
def table():
    """`table("fault", "what happens", seconds)`: a row for the README of `launch`, where FAULTS_TABLE names a file."""

    def write(fault, happens, seconds):
        assert fault.startswith(FAULTS), f"{fault} is missing in tests/faults/filling.py"
        if "FAULTS_TABLE" in os.environ:
            with open(os.environ["FAULTS_TABLE"], "a") as file:
                file.write(json.dumps({"fault": fault, "happens": happens, "seconds": round(seconds, 1)}) + "\n")

    return write
