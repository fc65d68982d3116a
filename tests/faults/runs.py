"""Processes of one run, and waiting for what they do."""

import re
import socket
import time


class Started:
    """Processes of one run."""

    def __init__(self, processes, logs):
        self.processes, self.logs, self.begin = processes, logs, time.monotonic()

    def wait(self, seconds=200):
        """The exit codes of all, and how long it took since the last `mark`."""
        end = time.monotonic() + seconds
        codes = [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]
        return codes, time.monotonic() - self.begin

    def mark(self):
        self.begin = time.monotonic()

    def said(self, index=0):
        """What a process wrote, without what JAX and its parts log in their own way."""
        text = self.logs[index].read_text()
        return "\n".join(line for line in text.splitlines() if not re.match(r"[EWIF]\d{4} |\[Gloo\]|^$", line))


def end(process):
    process.kill()
    process.wait()


def port():
    """A free one."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def until(condition, seconds=150):
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
