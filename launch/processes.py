"""The processes of one run on this machine: started together, read together, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TAIL = 20  # lines of a process that failed which are shown again


class Failure(NamedTuple):
    """The first process that failed: its number, exit code as a shell tells it, seconds it ran, and last lines."""

    process: int
    code: int
    seconds: float
    lines: tuple[str, ...]


class Group:
    """Processes of one command that live and die together; each in a session of its own, so that only this program
    hears the terminal's Ctrl-C.

    Attributes:
      failure: the first one, or None.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        logs: Path,
        show: Callable[[int, str], None],
        grace: float,
    ):
        """Starts one process for each environment.

        Args:
          command: the program and its arguments.
          environments: what each process adds to this program's environment.
          logs: the folder of `process-NUMBER.log`, appended to.
          show: called with a process's number and each line of its output, from threads of its own.
          grace: seconds from SIGTERM to SIGKILL for those that are left when one has failed.

        Raises:
          OSError: if a process cannot be started; none is left then.
        """
        self.failure: Failure | None = None
        self._grace, self._show, self._deadline = grace, show, None
        self._begin = time.monotonic()
        self._processes: list[subprocess.Popen] = []
        self._readers: list[threading.Thread] = []
        self._tails: list[deque[str]] = []
        logs.mkdir(parents=True, exist_ok=True)
        try:
            for index, added in enumerate(environments):
                self._start(index, command, os.environ | added, logs / f"process-{index}.log")
        except BaseException:
            self.kill()
            raise

    def poll(self) -> bool:
        """Whether all have ended; once one has failed, ends the others."""
        for index, process in enumerate(self._processes):
            if process.poll() and self.failure is None:
                self._fail(index, process.returncode)
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.signal(signal.SIGKILL)
        if any(process.poll() is None for process in self._processes):
            return False
        self.kill()  # what they have started
        return True

    def signal(self, number: int) -> None:
        """Sends a signal to those that still run, and to what they have started."""
        for process in self._processes:
            if process.poll() is None:
                _signal(process, number)

    def kill(self) -> None:
        """Leaves nothing running, and no line unread."""
        for process in self._processes:
            _signal(process, signal.SIGKILL)
            process.wait()
        for reader in self._readers:
            reader.join()

    def _start(self, index: int, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipe)
        self._processes.append(process)
        self._tails.append(deque(maxlen=TAIL))
        self._readers.append(threading.Thread(target=self._read, args=(index, process, log), daemon=True))
        self._readers[-1].start()

    def _read(self, index: int, process: subprocess.Popen, log: Path) -> None:
        with log.open("ab") as file, process.stdout as stream:
            for line in stream:
                file.write(line)
                file.flush()
                text = line.decode(errors="replace").rstrip("\r\n")
                self._tails[index].append(text)
                self._show(index, text)

    def _fail(self, index: int, code: int) -> None:
        seconds = time.monotonic() - self._begin
        self._readers[index].join(timeout=1.0)  # its last lines; what it has started may keep the pipe open
        self.failure = Failure(index, code if code > 0 else 128 - code, seconds, tuple(self._tails[index]))
        self._deadline = time.monotonic() + self._grace
        self.signal(signal.SIGTERM)


def _signal(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # its group has its number
