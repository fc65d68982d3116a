"""The watchdog ends the process, so each case is a program of its own; these import JAX and compute nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transformer.training import exits
from transformer.training.phases import Phases
from transformer.training.watchdog import FIRST, Watchdog

ROOT = Path(__file__).parents[2]
BEGIN = """
import ctypes, time
from transformer.training.phases import Phases
from transformer.training.watchdog import Watchdog

def stuck(phases):
    {stuck}

phases = Phases("step")
with phases, Watchdog(phases, 0.5):
    phases.seconds["step"] = 1.0  # the first step is over
    stuck(phases)
print("over")
"""
CASES = {  # what hangs: how long until the end at least, the exit code, what stderr says
    "time.sleep(60)": (0.5, exits.HUNG, "nothing moved for 1 s in phase 'step' (--watchdog=0.5)"),
    # In C, without the interpreter's lock and with it: then only the interpreter's own timer can run.
    "ctypes.CDLL(None).sleep(60)": (0.5, exits.HUNG, "in stuck"),
    "ctypes.PyDLL(None).sleep(60)": (0.7, exits.FAILED, "in stuck"),
    'with phases.within("evaluation"): time.sleep(60)': (0.5 * FIRST, exits.HUNG, "phase 'evaluation'"),
    "[(time.sleep(0.2), phases.move()) for _ in range(6)]": (1.2, 0, ""),
}


@pytest.fixture(scope="module")
def ended():
    """All cases at one time: exit code, stdout, stderr and seconds of each."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": variables, "cwd": ROOT}
    programs = [[sys.executable, "-c", BEGIN.format(stuck=case)] for case in CASES]
    begin = time.monotonic()
    started = [subprocess.Popen(program, **options) for program in programs]
    found = {}
    for case, process in zip(CASES, started, strict=True):
        out, err = process.communicate(timeout=100)
        found[case] = process.returncode, out, err, time.monotonic() - begin
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_process_that_does_not_move_ends_with_every_stack_and_one_that_does_goes_on(ended, case):
    least, code, said = CASES[case]
    returned, out, err, seconds = ended[case]
    assert returned == code, err
    assert seconds >= least and said in err
    assert (out == "over\n") == (code == 0)
    if code:
        assert "most recent call first" in err and "in stuck" in err


def test_it_may_be_turned_off_and_its_seconds_are_checked():
    phases = Phases()
    with Watchdog(phases, 0):
        pass
    with pytest.raises(ValueError, match="watchdog=-1 cannot work"):
        Watchdog(phases, -1)
