"""Ends a process that no longer moves: JAX waits for ever for a peer that hangs, and nobody would notice."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

from transformer.training import exits
from transformer.training.phases import Phases

COMPILES = ("restart", "step", "evaluation")  # phases that may take longer the first time
FIRST = 6  # times as long
POLLS = 20  # looks within the time allowed
SPARE = 1.5  # times the seconds allowed, after which the process ends though no thread of Python can run


class Watchdog:
    """Watches phases while its block runs, from a thread of its own; a context manager.

    When nothing has moved for so long, it writes every thread's stack to stderr and ends the process with
    `exits.HUNG`, whatever the main thread does. Where C code holds the interpreter's lock, so that no thread of Python
    can run, the interpreter's own timer writes the stacks a little later, and the exit code is 1.

    Args:
      phases: what moves.
      seconds: that are allowed; 0 for no watch.

    Raises:
      ValueError: if they are negative.
    """

    def __init__(self, phases: Phases, seconds: float):
        if seconds < 0:
            raise ValueError(
                f"watchdog={seconds} cannot work: give the seconds that a step may take, or 0 for no watch"
            )
        self._phases, self._seconds = phases, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._arm()
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / POLLS):
            allowed = self._arm()
            still = time.perf_counter() - self._phases.moved
            if still > allowed:
                self._end(still)

    def _arm(self) -> float:
        """Sets the timer of the interpreter too; returns the seconds that are allowed from now on."""
        phase = self._phases.phase
        first = phase in COMPILES and self._phases.seconds[phase] <= 0
        allowed = self._seconds * (FIRST if first else 1)
        faulthandler.dump_traceback_later(allowed * SPARE, exit=True, file=sys.__stderr__)
        return allowed

    def _end(self, still: float) -> None:
        name, number = self._phases.phase, exits.HUNG
        print(
            f"error: nothing moved for {still:.0f} s in phase {name!r} (--watchdog={self._seconds:g}); "
            f"the process ends with code {number}, and the same command goes on from the last checkpoint",
            file=sys.__stderr__,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os._exit(number)
