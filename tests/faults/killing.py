"""Trains, is killed at moments of somebody's choice and goes on, over and over; imports are paid once.

    python killing.py WORKDIR '[[lines, delay], ...]' FLAGS...

Each life of the run is killed with SIGKILL so many seconds after its metrics have so many lines; the last one may end.
Prints how each life ended.
"""

import gc
import json
import os
import pathlib
import runpy
import signal
import sys
import time

from experiments import command, recipe, writing  # noqa: F401  (what takes long to import, before JAX starts)


def lives(workdir, moments, arguments):
    ends = []
    for moment in [*moments, None]:
        child = os.fork()
        if not child:
            sys.argv = ["experiments.train", *arguments]
            runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
            sys.exit()
        if moment is not None:
            kill(child, workdir / "metrics.jsonl", *moment)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return ends


def kill(child, metrics, lines, delay):
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    gc.freeze()
    print(json.dumps(lives(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])))
