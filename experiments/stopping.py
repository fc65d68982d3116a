"""Signals that ask a run to stop in good order, at one step in all of its processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

from transformer.training import distributed

# Ctrl-C; what ends programs, and what schedulers send before they do; the other one that Slurm can be told to send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Whether a signal came, for the loop to ask after every step.

    With several processes, any of which may have got it, JAX's preemption service agrees on a step that none is beyond
    yet: its threads talk over the coordinator, so that asking costs nothing.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._asked, self._reached = 0, False

    def __call__(self, step: int) -> bool:
        """In every process the same, at the same of its calls."""
        del step  # which may go back
        if jax.process_count() == 1:
            return bool(self.received)
        self._asked += 1
        self._reached = self._reached or multihost_utils.reached_preemption_sync_point(self._asked)
        return self._reached

    @property
    def signal(self) -> int | None:
        """What stopped the run, if anything did; of several processes in all or in none."""
        if jax.process_count() > 1 and not self._reached:
            return None
        return self.received[0] if self.received else (signal.SIGTERM if self._reached else None)


@contextmanager
def signals() -> Iterator[Stop]:
    """While the block runs, the first signal only asks to stop; a second one ends the process at once."""
    stop, before = Stop(), {number: signal.getsignal(number) for number in SIGNALS}
    tell = distributed.preemption() if jax.process_count() > 1 else None

    def receive(number: int, frame: Any) -> None:
        stop.received.append(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if tell is not None:
            tell()

    for number in SIGNALS:
        signal.signal(number, receive)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
