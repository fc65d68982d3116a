"""Where the time of a run goes, and when it last moved."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.table import Table

Item = TypeVar("Item")

FILE = "report.jsonl"
PHASES = {
    "restart": "until the first batch: data, model, last checkpoint",
    "compile": "programs made for the devices",
    "data": "devices waited for a batch",
    "step": "training steps",
    "evaluation": "validation, and measurements of heads",
    "checkpoint": "the loop waited for a checkpoint",
    "lost": "steps that were rolled back",
}
COMPILING = "/jax/core/compile/"  # what JAX calls the events of tracing, lowering and compiling, in seconds


class Phases:
    """Seconds by phase of one process's run, which is in one phase at any time; a context manager.

    While the block runs, what JAX takes to compile is told apart in every phase.
    """

    def __init__(self, phase: str = "restart"):
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.phase = phase
        self.moved = self._since = time.perf_counter()
        self.step, self.steps, self.tokens = 0, 0, 0.0
        self._saved = (0.0, 0, 0.0)
        self._compiled: list[tuple[float, float]] = []

    def enter(self, phase: str) -> None:
        """Ends the phase that runs, and begins this one."""
        now = time.perf_counter()
        self.seconds[self.phase] += now - self._since
        self.phase, self._since, self.moved = phase, now, now

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """This phase for a block, then the one before it."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def move(self) -> None:
        """Something is done: whoever watches begins to wait anew."""
        self.moved = time.perf_counter()

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each of which is something done."""
        for item in items:
            self.move()
            yield item

    def count(self, tokens: float) -> None:
        """A step on so many tokens is done, and counts."""
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        self.move()

    def save(self) -> None:
        """What was done until now is what `lose` leaves."""
        self._saved = self.seconds["step"], self.steps, self.tokens

    def lose(self) -> None:
        """The steps since `save` were for nothing."""
        self.enter(self.phase)
        seconds, self.steps, self.tokens = self._saved
        self.shift(self.seconds["step"] - seconds, "lost", "step")

    def shift(self, seconds: float, to: str, source: str | None = None) -> None:
        """So many seconds of a phase, of the one that runs if none is named, belong to another one."""
        self.seconds[source or self.phase] -= seconds
        self.seconds[to] += seconds

    def __enter__(self) -> Phases:
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)
        self.enter(self.phase)

    def report(self, first: int, last: int) -> dict[str, Any]:
        """What a run did, and where its time went, as JSON can hold it.

        Args:
          first, last: its step before and after.

        Returns:
          These; `steps` whose updates are in the parameters, and `tokens` on which they were made; `seconds` by phase
          and in `all`; and `useful`, the share of them in which those steps were made.
        """
        self.enter(self.phase)
        seconds = {phase: round(value, 3) for phase, value in self.seconds.items()}
        total = sum(self.seconds.values())
        counts = {"first_step": first, "last_step": last, "steps": self.steps, "tokens": int(self.tokens)}
        return counts | {
            "seconds": seconds | {"all": round(total, 3)},
            "useful": round(self.seconds["step"] / total, 4),
        }

    def _hear(self, event: str, seconds: float, **_: Any) -> None:
        """JAX was busy to compile for so long until now; what lies within it came before, and is not counted again."""
        if not event.startswith(COMPILING):
            return
        begin, inside = time.perf_counter() - seconds, 0.0
        while self._compiled and self._compiled[-1][0] >= begin:
            inside += self._compiled.pop()[1]
        self._compiled.append((begin, seconds))
        self.shift(seconds - inside, "compile")
        self.move()


def write(workdir: str | Path, report: dict[str, Any]) -> None:
    """Adds a report to those of earlier runs in a working directory, in the first process."""
    if not jax.process_index():
        with (Path(workdir) / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")


def table(report: dict[str, Any]) -> Table:
    """A report for a person to read."""
    title = (
        f"steps {report['first_step']:,} to {report['last_step']:,}: {report['steps']:,} steps, "
        f"{report['tokens']:,} tokens, {report['useful']:.1%} of the time useful"
    )
    shown = Table("phase", "seconds", "share", "what", title=title, title_justify="left", title_style="", box=None)
    for phase, what in PHASES.items():
        seconds = report["seconds"][phase]
        if seconds:
            shown.add_row(phase, f"{seconds:,.1f}", f"{seconds / report['seconds']['all']:.1%}", what)
    return shown
