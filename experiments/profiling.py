"""Where the time goes: a trace of a few steps or of one call, and a table of the operations that cost most.

    profiling.show(profiling.call(function, Path("profile")), console)

JAX records the trace, and the same files open in Perfetto and in TensorBoard. XLA's names of operations, such as
`fusion.3`, say little, so each is looked up in the compiled program, which knows the part of the model it came from.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import traces
from transformer.ops.products import cores

WARM = 2  # steps between the one that compiles and the first that is traced
STEPS = 5  # that are traced
ROWS = 10  # of the table
PIPE_WIDTH = 140  # wide enough for the table, where no terminal sets the width


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a trace says.

    Attributes:
      folder: where it lies.
      what: what was traced, such as "training steps 4 to 8".
      unit: what was traced several times, or once: "step" or "call".
      count: how many times.
      wall: seconds from the first step's start to the last one's end.
      cpu: seconds that all threads of this process computed meanwhile.
      trace: its operations.
    """

    folder: Path
    what: str
    unit: str
    count: int
    wall: float
    cpu: float
    trace: traces.Trace


class Recording:
    """A trace that runs from here until `end`; whatever the program asked of the devices before must be done."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of a Python function would slow down what is measured
        jax.profiler.start_trace(folder, profiler_options=options)
        self._begin = time.perf_counter(), time.process_time()

    def end(self, what: str, unit: str, count: int) -> Profile:
        """Ends the trace after `count` steps or calls, whose results must be there, and reads it."""
        wall, cpu = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        self.abandon()
        return Profile(self._folder, what, unit, count, wall, cpu, traces.read(self._folder))

    def abandon(self) -> None:
        """Ends the trace, which stays on disk for other programs to read."""
        jax.profiler.stop_trace()


def call(function: Callable[[], Any], folder: Path) -> Profile:
    """Traces a call of a function, which was called before, so that everything is compiled.

    The compiled programs must outlive the call, as a `jax.jit` does that the function does not make itself.
    """
    recording = Recording(folder)
    try:
        jax.block_until_ready(function())
    except BaseException:
        recording.abandon()
        raise
    return recording.end("one call", "call", 1)


class Profiled:
    """A `transformer.training.parallel` that traces some of its training steps and prints what they cost.

        with Profiled(parallel, folder, remaining, console) as parallel:
            training.train(state, parallel=parallel, ...)

    The step that compiles and `WARM` more go by, then `STEPS` are traced; fewer, if an evaluation or a checkpoint comes
    between them or the run ends. Leaving the block ends a trace that still runs.

    Args:
      parallel: the compiled step.
      folder: where the trace goes.
      remaining: steps until the run ends.
      console: where the table goes.
    """

    def __init__(self, parallel: Any, folder: Path, remaining: int, console: Console):
        self._parallel, self._folder, self._console = parallel, folder, console
        self._before = max(min(1 + WARM, remaining - 1), 0)
        self._last = min(self._before + STEPS, remaining)
        self._step, self._recording, self._metrics = 0, None, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parallel, name)

    def __enter__(self) -> Profiled:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is not None:
            if self._recording is not None:
                self._recording.abandon()
            return
        self._finish()
        if self._step <= self._before:
            self._console.print(
                f"--profile traced nothing: {self._step} steps were made, {self._before} of them to warm up"
            )

    def train(self, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        """As `parallel.train`."""
        if self._step == self._before:
            jax.block_until_ready((state, batch))
            self._recording = Recording(self._folder)
        with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
            state, self._metrics = self._parallel.train(state, batch)
        self._step += 1
        if self._step == self._last:
            self._finish()
        return state, self._metrics

    def evaluate(self, *arguments: Any) -> Any:
        """As `parallel.evaluate`; what is not training is not traced."""
        self._finish()
        return self._parallel.evaluate(*arguments)

    def host_state(self, *arguments: Any) -> Any:
        """As `parallel.host_state`; what is not training is not traced."""
        self._finish()
        return self._parallel.host_state(*arguments)

    def _finish(self) -> None:
        if self._recording is None:
            return
        recording, self._recording, steps = self._recording, None, self._step - self._before
        try:
            jax.block_until_ready(self._metrics)
        except BaseException:
            recording.abandon()
            raise
        what = f"training steps {self._before + 1} to {self._step} of this run"
        if steps < STEPS:
            what += f", fewer than {STEPS} as it ended, evaluated or saved then"
        show(recording.end(what, "step", steps), self._console)


def show(profile: Profile, console: Console) -> None:
    """Prints the table, what a step takes, how busy the devices were, and where the trace lies."""
    trace = profile.trace
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    if trace.operations:
        console.print(_table(profile))
    else:
        console.print("the trace holds no operation of a device: nothing was computed, or this backend records none")
    console.print(
        f"wall time: {1e3 * profile.wall / profile.count:,.1f} ms a {profile.unit}; the device works for "
        f"{trace.busy / (profile.wall * trace.devices):.0%} of it, this process's threads for "
        f"{profile.cpu / profile.wall:.1f} of {cores()} cores"
    )
    if trace.compiling:
        console.print(f"compiling: {trace.compiling:.2f} s of the wall time, which says little then; the shares hold")
    console.print(f"trace:     {trace.timeline}\n           for ui.perfetto.dev; tensorboard --logdir={profile.folder}")


def _table(profile: Profile) -> Table:
    trace = profile.trace
    rows = _rows(trace)
    shown = rows[:ROWS]
    covered = sum(row.seconds for row in shown) / trace.busy
    title = f"the {len(shown)} costliest of {len(rows)} operations, {covered:.0%} of the device's time: {profile.what}"
    table = Table(title=Text(title), title_justify="left")
    for name in ("operation", "category"):
        table.add_column(name, no_wrap=name == "category", overflow="fold")
    for name in ("calls", "ms", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from", overflow="fold", ratio=1)
    for row in shown:
        numbers = (f"{row.calls:,}", f"{1e3 * row.seconds:,.2f}", f"{row.seconds / trace.busy:.1%}")
        table.add_row(Text(row.name), row.category, *numbers, Text(row.origin))
    return table


def _rows(trace: traces.Trace) -> list[traces.Operation]:
    """The costliest operations first; those of one origin and kind are one row, whether layers are a loop or not."""
    groups: dict[tuple[str, str], list[traces.Operation]] = defaultdict(list)
    for each in sorted(trace.operations, key=lambda operation: -operation.seconds):
        groups[each.category, each.origin or each.name].append(each)
    rows = [
        dataclasses.replace(
            first,
            name=f"{first.name} +{len(others)}" if others else first.name,
            calls=first.calls + sum(other.calls for other in others),
            seconds=first.seconds + sum(other.seconds for other in others),
        )
        for first, *others in groups.values()
    ]
    return sorted(rows, key=lambda row: -row.seconds)
