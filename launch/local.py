"""Run a script as several processes on this machine, which train as one.

    python -m launch.local --processes=2 -- python -m experiments.train --config=... --workdir=runs/two
    python -m launch.local --processes=2 --devices=4 --restarts=3 -- python -m experiments.train ...
    python -m launch.local --sweep=training.optimizer.learning_rate=1e-3,3e-4 --seeds=5 --at_once=2 -- python -m ...

What comes after `--` is the command; `python` is the one that runs this program. Each process has a log in
`DIR/process-NUMBER.log`, and all lines come live with the number in front. When a process fails, its last lines are
shown again, the others are ended, and the command is started anew up to `--restarts` times: training goes on from its
last checkpoint. What would come again, such as a mistake on the command line, is not repeated. Ctrl-C is handed to all,
and SIGTERM, which SIGHUP and SIGUSR1 come to as well; a second one ends training at once. The exit code is 0, or that
of the first failure.

A sweep runs one after the other, or `--at_once` several, and goes on after a run that failed; where a signal ends it,
it says which runs are not done, and its exit code is 79. GPUs are shared equally among all processes that run at one
time; `--devices` gives each so many CPU devices in their place.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import command
from launch import FINAL, STOPPED, STOPPED_CODE, sweep
from launch.processes import Failure, Group

PROCESSES = flags.DEFINE_integer("processes", 1, "How many run as one.", lower_bound=1)
RESTARTS = flags.DEFINE_integer("restarts", 0, "How often a run that failed is started anew.", lower_bound=0)
DEVICES = flags.DEFINE_integer("devices", None, "CPU devices of each process; default: what there is.", lower_bound=1)
LOGS = flags.DEFINE_string("logs", None, "The folder of logs; default: a new one for temporary files.")
AT_ONCE = flags.DEFINE_integer("at_once", 1, "Runs of a sweep at one time.", lower_bound=1)
GRACE = flags.DEFINE_float("grace", 20.0, "Seconds that processes have to end when one has failed.", lower_bound=0.0)
SWEEP = sweep.define()

INTERVAL = 0.05  # seconds between looks at the processes


def main(words: list[str]) -> int:
    runs = sweep.runs(SWEEP, words)
    program = _program(words[0])
    gpus = _gpus()
    _share(gpus, AT_ONCE.value * PROCESSES.value, 0)  # here, where an error is the only line
    logs = Path(LOGS.value or tempfile.mkdtemp(prefix="launch-"))
    print(f"logs: {logs}", flush=True)
    with _signals() as received:
        return Supervisor(runs, program, logs, gpus, received).run()


class Active(NamedTuple):
    """A run under way: its processes, its place among those at one time, and how often it was started anew."""

    group: Group
    run: sweep.Run
    place: int
    restarts: int


class Supervisor:
    """Starts runs, as many at one time as there are places, and looks after them."""

    def __init__(self, runs: list[sweep.Run], program: str, logs: Path, gpus: list[str], received: deque[int]):
        self._waiting, self._program, self._logs, self._gpus = deque(runs), program, logs, gpus
        self._received, self._stopping = received, False
        self._places = list(reversed(range(AT_ONCE.value)))
        self._active: list[Active] = []
        self._failed: list[tuple[sweep.Run, int]] = []
        self._undone: list[sweep.Run] = []  # stopped, or never started
        self._total, self._lock = len(runs), threading.Lock()

    def run(self) -> int:
        """Until all have ended; returns the exit code."""
        try:
            while self._active or self._waiting:
                while self._waiting and self._places:
                    self._start(self._waiting.popleft(), self._places.pop(), 0)
                self._forward()
                for one in [one for one in self._active if one.group.poll()]:
                    self._active.remove(one)
                    self._ended(one)
                time.sleep(INTERVAL)
        finally:
            for one in self._active:
                one.group.kill()
        if self._failed and self._total > 1:
            names = ", ".join(run.name for run, _ in self._failed)
            print(f"{len(self._failed)} of {self._total} runs failed: {names}", file=sys.stderr)
        if self._undone and self._total > 1:
            names = ", ".join(run.name for run in self._undone)
            print(f"{len(self._undone)} of {self._total} runs are not done: {names}", file=sys.stderr)
        return self._code()

    def _code(self) -> int:
        if self._failed:
            return self._failed[0][1]
        if not self._undone:
            return 0
        return STOPPED if self._total > 1 else int(os.environ.get(STOPPED_CODE, 0))

    def _start(self, run: sweep.Run, place: int, restarts: int) -> None:
        port = _free_port()
        first = place * PROCESSES.value
        total = AT_ONCE.value * PROCESSES.value
        environments = [
            environment(index, PROCESSES.value, port, DEVICES.value, _share(self._gpus, total, first + index))
            for index in range(PROCESSES.value)
        ]

        def show(index: int, line: str) -> None:
            with self._lock, suppress(OSError):  # whoever read along may have gone; the logs go on
                print(f"[{f'{run.name} {index}'.strip()}] {line}", flush=True)

        command_line = (self._program, *run.command[1:])
        group = Group(command_line, environments, self._logs / run.name, show, GRACE.value)
        self._active.append(Active(group, run, place, restarts))

    def _forward(self) -> None:
        while self._received:
            number = self._received.popleft()
            self._stopping = True
            self._undone += self._waiting
            self._waiting.clear()
            for one in self._active:
                one.group.signal(number)

    def _ended(self, one: Active) -> None:
        failure, restart = one.group.failure, one.restarts + 1
        if failure is not None:
            again = restart <= RESTARTS.value and failure.code not in FINAL and not self._stopping
            self._tell(one.run, failure, f"; restart {restart} of {RESTARTS.value}" if again else "")
            if again:
                self._start(one.run, one.place, restart)
                return
            self._failed.append((one.run, failure.code))
        elif one.group.stopped:
            self._undone.append(one.run)
        self._places.append(one.place)

    def _tell(self, run: sweep.Run, failure: Failure, further: str) -> None:
        where = f"{run.name}: " if run.name else ""
        with self._lock:
            print(
                f"{where}process {failure.process} failed with exit code {failure.code} after {failure.seconds:.0f} s"
                f"{further}; its last lines:",
                *(f"    {line}" for line in failure.lines),
                sep="\n",
                file=sys.stderr,
                flush=True,
            )


def environment(index: int, count: int, port: int, devices: int | None, gpus: str | None) -> dict[str, str]:
    """What tells a process which one of several it is, and which devices it has.

    Args:
      index, count: of the process.
      port: where the first one listens, on this machine alone.
      devices: CPU devices, or None for what there is.
      gpus: the GPUs that it sees, as CUDA numbers them, or None for all.
    """
    out = {"PYTHONUNBUFFERED": "1", STOPPED_CODE: str(STOPPED)}
    if count > 1:
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS")
        out |= dict.fromkeys(names, f"127.0.0.1:{port}")
        out |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    if devices is not None:
        xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
        # Several devices on few cores would wait for each other for ever.
        out |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "PJRT_NPROC": os.environ.get("PJRT_NPROC", "16")}
    elif gpus is not None:
        out["CUDA_VISIBLE_DEVICES"] = gpus
    return out


def _program(name: str) -> str:
    if name in ("python", "python3"):
        return sys.executable
    found = shutil.which(name)
    if found is None:
        raise ValueError(f"there is no program {name!r}: the command after -- begins with one, such as python")
    return found


def _gpus(environment: Mapping[str, str] = os.environ, folder: Path = Path("/dev")) -> list[str]:
    """The GPUs that processes may have, as CUDA numbers them."""
    if DEVICES.value is not None or environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    return sorted((path.name[6:] for path in folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)), key=int)


def _share(gpus: list[str], processes: int, index: int) -> str | None:
    """One process's equal share of the GPUs; None where it has all that there are."""
    if not gpus or processes == 1:
        return None
    if len(gpus) % processes:
        raise ValueError(
            f"{len(gpus)} GPUs cannot be shared equally among {processes} processes: change --processes or --at_once, "
            "name other GPUs in CUDA_VISIBLE_DEVICES, or use CPU devices with --devices"
        )
    share = len(gpus) // processes
    return ",".join(gpus[index * share : (index + 1) * share])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _signals() -> Iterator[deque[int]]:
    """What is to be handed on, in order: SIGINT where that came, SIGTERM for all else that asks to end."""
    received: deque[int] = deque()

    def receive(number: int, frame: Any) -> None:
        received.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    command.run(main, words=True)
