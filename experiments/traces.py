"""What a trace of `jax.profiler` says about a device's operations: how often, how long, of which kind, from where."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import jax

from experiments import hlo

Key = tuple[tuple[str, Any], str]  # (name of the program, its number), name of the instruction
XPLANE = "plugins/profile/*/*.xplane.pb"
HOUSEKEEPING = re.compile(r".*::|Wait for |Handle ")  # of the runtime: no operations, and most of a trace


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of a compiled program.

    Attributes:
      name: XLA's.
      category: "matrix product", "copy/transpose", ...; see `hlo.Program.category`.
      calls: how often it ran.
      seconds: that it took in all, without the operations that it calls.
      origin: where in the model it comes from.
    """

    name: str
    category: str
    calls: int
    seconds: float
    origin: str


@dataclasses.dataclass(frozen=True)
class Trace:
    """The operations of all local devices, whose times add up to `busy`.

    Attributes:
      file: that was read.
      operations: in no order.
      busy: seconds in which a device ran an operation, summed over the devices.
      devices: that have a clock of their own; a CPU counts as one.
      compiling: seconds that the host spent compiling.
    """

    file: Path
    operations: tuple[Operation, ...]
    busy: float
    devices: int
    compiling: float

    @property
    def timeline(self) -> Path:
        """The same trace as a file that Perfetto opens."""
        return self.file.with_name(self.file.name.removesuffix("xplane.pb") + "trace.json.gz")


@dataclasses.dataclass(frozen=True, eq=False)
class Event:
    """One run of an operation, in nanoseconds.

    Attributes:
      operation: the program, and the name of the instruction in it.
      line: the thread or stream that it ran on.
      start, end: while its line was occupied with it.
      done: when its result was there, which other threads may have worked on after `end`.
    """

    operation: Key
    line: Any
    start: float
    end: float
    done: float


def read(folder: Path) -> Trace:
    """Reads the newest trace in a folder that `jax.profiler.start_trace` was given.

    The programs that ran must still be there, as their text says what the operations are.
    """
    file = max(folder.glob(XPLANE), key=lambda path: path.stat().st_mtime)
    with warnings.catch_warnings():
        # From Python 3.12 on, jaxlib's own types bring this about when they are first used.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        devices, compiling = _devices(planes), _compiling(planes)
    calls = Counter(event.operation for events in devices for event in events)
    names: dict[Any, set[str]] = defaultdict(set)
    for program, name in calls:
        names[program].add(name)
    programs = {program: hlo.live(program[0], wanted) for program, wanted in names.items()}
    control = {(program, name) for program, name in calls if programs[program].control(name)}
    seconds: Counter = Counter()
    for events in devices:
        seconds.update(exclusive(events, control))
    operations = tuple(
        Operation(name, programs[program].category(name), calls[program, name], taken, programs[program].origin(name))
        for (program, name), taken in seconds.items()
    )
    return Trace(file, operations, sum(seconds.values()), max(len(devices), 1), compiling)


def exclusive(events: Iterable[Event], control: Container[Key] = ()) -> dict[Key, float]:
    """Seconds of each operation, every moment counted once, so that they add up to the time in which any ran.

    A moment belongs to the innermost operation of each line, in equal parts where several lines are at work; where
    none is, to the latest one whose result is still awaited. Operations of `control`, such as loops, only run others
    and get what is left between those.
    """
    ordered = sorted(events, key=lambda event: (event.start, -event.end))
    changes = [(event.start, 1, rank) for rank, event in enumerate(ordered)]
    changes += [(event.end, 0, rank) for rank, event in enumerate(ordered)]
    changes += [(event.done, -1, rank) for rank, event in enumerate(ordered) if event.done > event.end]
    running, awaited = {}, {}
    taken: Counter = Counter()
    before = 0.0
    for now, change, rank in sorted(changes):
        if now > before and (running or awaited):
            working = _working([*running.values()], [*awaited.values()], control)
            for event in working:
                taken[event.operation] += (now - before) / len(working) / 1e9
        before, event = now, ordered[rank]
        if change == 1:
            running[rank] = event
        elif change == 0:
            running.pop(rank, None)
            if event.done > now:
                awaited[rank] = event
        else:
            awaited.pop(rank)
    return taken


def _working(running: list[Event], awaited: list[Event], control: Container[Key]) -> list[Event]:
    """Who gets a moment; the events of each list come in the order in which they began, or were left waiting."""
    innermost = list({event.line: event for event in running}.values())
    if leaves := [event for event in innermost if event.operation not in control]:
        return leaves
    leaves = [event for event in awaited if event.operation not in control]
    return [max(leaves or innermost or awaited, key=lambda event: event.start)]


def _devices(planes: list) -> list[list[Event]]:
    """The events of each device that has a clock of its own, or else of the host, which is the device."""
    found = [_streams(plane) for plane in planes if re.match(r"/device:(GPU|TPU):\d+", plane.name)]
    if not any(found):
        found = [_threads(plane) for plane in planes if plane.name == "/host:CPU"]
    return [events for events in found if events]


def _streams(plane: Any) -> list[Event]:
    """Of an accelerator: a TPU lists its operations in one line, a GPU its kernels by stream."""
    lines = list(plane.lines)
    lines = [line for line in lines if line.name == "XLA Ops"] or [
        line for line in lines if line.name.startswith("Stream")
    ]
    events = []
    for line in lines:
        for event in line.events:
            told = dict(event.stats)
            name = re.match(r"%?([\w.:-]*)", str(told.get("hlo_op", event.name)))[1]
            program = (told.get("hlo_module", ""), told.get("program_id"))
            end = max(event.start_ns + event.duration_ns, event.start_ns + 1)
            events.append(Event((program, name), line.name, event.start_ns, end, end))
    return events


def _threads(plane: Any) -> list[Event]:
    """Of a CPU: the thread that begins an operation may leave it to others; an event of its own tells the end."""
    begun, ends = [], {}
    for rank, line in enumerate(plane.lines):
        for event in line.events:
            if event.name.startswith("end: "):
                ends[dict(event.stats).get("_c")] = event.start_ns
            elif not HOUSEKEEPING.match(event.name) and "hlo_op" in (told := dict(event.stats)):
                begun.append((told, rank, event.start_ns, max(event.duration_ns, 1)))
    return [
        Event(
            ((told["hlo_module"], told.get("program_id")), told["hlo_op"]), rank, start, start + duration,
            max(start + duration, ends.get(told.get("_p"), 0)),
        )
        for told, rank, start, duration in begun
    ]  # fmt: skip


def _compiling(planes: list) -> float:
    """Seconds that the host spent in the compiler."""
    lines = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
    return sum(event.duration_ns for line in lines for event in line.events if "backend_compile" in event.name) / 1e9
