"""The processes of one run on this machine: started together, read together, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, NamedTuple

from launch import FINAL, LOST, STOPPED

TAIL = 20  # lines of a process that failed which are shown again
LAST = 2.0  # seconds for the last lines of processes that have ended: what they have started may keep a pipe open


class Failure(NamedTuple):
    """The process that failed first: its number, exit code as a shell tells it, seconds it ran, and last lines.

    Of several that failed between two looks, it is one that would fail again, else one that says why, else one that was
    killed; those that only lost another one come last.
    """

    process: int
    code: int
    seconds: float
    lines: tuple[str, ...]


class Group:
    """Processes of one command that live and die together; each in a session of its own, so that only this program
    hears the terminal's Ctrl-C.

    Attributes:
      failure: the first one, or None.
      stopped: whether a process ended as one that was told to stop, saved and is not finished.
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
          OSError: if a log cannot be opened or a process not be started; none is left then.
        """
        self.failure: Failure | None = None
        self.stopped = False
        self._grace, self._show, self._deadline = grace, show, None
        self._begin = time.monotonic()
        self._processes: list[subprocess.Popen] = []
        self._readers: list[threading.Thread] = []
        self._tails: list[deque[str]] = []
        logs.mkdir(parents=True, exist_ok=True)
        paths = [logs / f"process-{index}.log" for index in range(len(environments))]
        with ExitStack() as opened:
            files = [opened.enter_context(path.open("ab")) for path in paths]
            try:
                for added, file in zip(environments, files, strict=True):
                    self._start(command, os.environ | added, file)
            except BaseException:
                self.kill()
                raise
            opened.pop_all()  # they are the readers' now

    def poll(self) -> bool:
        """Whether all have ended; once one has failed, ends the others."""
        codes = [_code(process) for process in self._processes]
        self.stopped = self.stopped or STOPPED in codes
        failed = [(_blame(code), index) for index, code in enumerate(codes) if code not in (None, 0, STOPPED)]
        if failed and self.failure is None:
            _, index = min(failed)
            self._fail(index, codes[index])
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.signal(signal.SIGKILL)
        if None in codes:
            return False
        self.kill()  # what they have started
        return True

    def signal(self, number: int) -> None:
        """Sends a signal to those that still run, and to what they have started."""
        for process in self._processes:
            if _code(process) is None:
                _signal(process, number)

    def kill(self) -> None:
        """Leaves nothing running, and no line unread."""
        for process in self._processes:
            if process.returncode is None:  # until it is waited for, no other group can have its number
                _signal(process, signal.SIGKILL)
            process.wait()
        end = time.monotonic() + LAST
        for reader in self._readers:
            reader.join(timeout=max(end - time.monotonic(), 0.0))

    def _start(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> None:
        pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipe)
        self._processes.append(process)
        self._tails.append(deque(maxlen=TAIL))
        self._readers.append(threading.Thread(target=self._read, args=(len(self._readers), process, log), daemon=True))
        self._readers[-1].start()

    def _read(self, index: int, process: subprocess.Popen, log: IO[bytes]) -> None:
        """To the end, whatever becomes of the log: a process whose lines nobody reads stands still."""
        written = True
        with suppress(OSError), log, process.stdout as stream:
            for line in stream:
                try:
                    if written:
                        log.write(line)
                        log.flush()
                except OSError as error:
                    written = False
                    self._show(index, f"launch: {log.name} is not written any more ({error.strerror})")
                text = line.decode(errors="replace").rstrip("\r\n")
                self._tails[index].append(text)
                self._show(index, text)

    def _fail(self, index: int, code: int) -> None:
        seconds = time.monotonic() - self._begin
        self._readers[index].join(timeout=LAST)
        self.failure = Failure(index, code, seconds, tuple(self._tails[index]))
        self._deadline = time.monotonic() + self._grace
        self.signal(signal.SIGTERM)


def _code(process: subprocess.Popen) -> int | None:
    """The exit code as a shell tells it; None while it runs. A process that has ended is not waited for."""
    if process.returncode is not None:
        return process.returncode if process.returncode >= 0 else 128 - process.returncode
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def _blame(code: int) -> int:
    """How far back in the line of those to blame a process stands that failed."""
    if code in FINAL:
        return 0
    return 3 if code in LOST else 1 + (code > 128)


def _signal(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)  # its group has its number
