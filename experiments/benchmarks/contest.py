"""Programs that do the same work, each in a process of its own, timed in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

PRECISIONS = ("float32", "bfloat16")
TORCH = ("torch", "experiments.benchmarks.torch_gpt")
HUGGING_FACE = ("torch", "transformers", "experiments.benchmarks.hugging_face")
SCARCE = 0.1  # the share of memory below which files that programs are read from are dropped and read again
LEAST = 0.2  # seconds that one timing lasts at least, by calling a quick program several times


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line asks of every workload.

    Attributes:
      device: "cpu" or "gpu".
      tiny: sizes at which numbers mean nothing.
      precisions: the classes within which programs are compared.
    """

    device: str = "cpu"
    tiny: bool = False
    precisions: tuple[str, ...] = PRECISIONS

    def choose(self, cpu: Any, gpu: Any, tiny: Any) -> Any:
        """A size by where it runs."""
        return tiny if self.tiny else cpu if self.device == "cpu" else gpu


@dataclasses.dataclass(frozen=True)
class Program:
    """One way to do the work of a case.

    Attributes:
      name: for people; what this repository does begins with "ours".
      maker: `module:function` in this folder; called with `arguments` in the program's own process, it returns what
        is timed. That takes nothing, waits for what it computes, and may return the seconds that count, or a
        dictionary of what is to be noted in the program's row.
      arguments: what JSON can hold.
      needs: what is imported first and not counted as its memory; packages of the extra `oracle` may be missing.
      absent: why it cannot take part, or "".
      repeats: timings at most, fewer than those of the case; None: as many.
    """

    name: str
    maker: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    absent: str = ""
    repeats: int | None = None

    @property
    def ours(self) -> bool:
        """Whether it is this repository's, not a peer."""
        return self.name.startswith("ours")


@dataclasses.dataclass(frozen=True)
class Case:
    """Work that several programs do in the same precision, and how much one call of them does.

    Attributes:
      amount, unit: what a call gets through, for rates.
      flops: that a call's mathematics needs; 0: its share of the products' ceiling is not given.
      traffic: bytes that a call has to read at least; 0: no share of the memory's ceiling.
      repeats: timings at most; None: as many as the command line says.
      warmups: calls before the first timing, which compile and fill caches.
    """

    name: str
    precision: str
    programs: Sequence[Program]
    amount: float
    unit: str
    flops: float = 0.0
    traffic: float = 0.0
    repeats: int | None = None
    warmups: int = 2


@dataclasses.dataclass
class Result:
    """What became of a program: timings in seconds, most bytes of memory, what it noted; or why there are none."""

    program: Program
    seconds: list[float] = dataclasses.field(default_factory=list)
    memory: int | None = None
    noted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failure: str = ""


class Failure(Exception):
    """A program that could not be made or run."""


class Worker:
    """The process of one program; it does nothing between two timings."""

    def __init__(self, program: Program, case: Case, settings: Settings, folder: str):
        """Starts it; what it writes to temporary files is to go to `folder`."""
        command = [sys.executable, "-m", "experiments.benchmarks.worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._process = subprocess.Popen(command, env={**os.environ, "TMPDIR": folder}, **pipes)
        request = {"maker": program.maker, "arguments": dict(program.arguments), "needs": program.needs}
        least = 0.0 if settings.tiny else LEAST
        self._ask({**request, "warmups": case.warmups, "least": least, "device": settings.device})

    def seconds(self) -> float:
        """One timing, of one call."""
        return self._ask("time")["seconds"]

    def memory(self) -> int | None:
        """The most bytes of memory so far, without what the libraries take before the program is made."""
        return self._ask("memory")["memory"]

    def noted(self) -> dict[str, Any]:
        """What the program's last call returned for its row."""
        return self._ask("noted")["noted"]

    def end(self) -> None:
        """Takes the process away, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what was not sent before it ended
            self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, question: Any) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:  # it has ended
            answer = ""
        ended = f"its process ended with exit code {self._process.wait()}" if not answer else ""
        answer = json.loads(answer or json.dumps({"error": f"{ended}; -9 is what lack of memory leads to"}))
        if "error" in answer:
            self.end()
            raise Failure(answer["error"])
        return answer


def missing(program: Program) -> str:
    """How to get what a program needs and is not installed; "" if nothing is."""
    names = [name for name in program.needs if importlib.util.find_spec(name) is None]
    return f"{' and '.join(names)}: not installed, left out: pip install 'transformer-research[oracle]'" * bool(names)


def run(case: Case, settings: Settings, repeats: int, say: Callable[[str], None] = lambda line: None) -> list[Result]:
    """Times the programs of a case in turn, another one first each time, and returns a result for each."""
    results = [Result(program) for program in case.programs]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        running: list[tuple[Result, Worker]] = []
        for result in results:
            result.failure = missing(result.program) or result.program.absent
            if not result.failure:
                say(f"{case.name}, {case.precision}: {result.program.name}")
                with _noting(result):
                    running.append((result, Worker(result.program, case, settings, folder)))
                    stack.callback(running[-1][1].end)
        if (left := memory_left()) < SCARCE:
            say(f"{case.name}, {case.precision}: {left:.0%} of memory is left, so times are too long: see --programs")
        for repeat in range(min(repeats, case.repeats or repeats)):
            first = repeat % max(1, len(running))
            for result, worker in running[first:] + running[:first]:
                if not result.failure and repeat < (result.program.repeats or repeats):
                    with _noting(result):
                        result.seconds.append(worker.seconds())
        for result, worker in running:
            if not result.failure:
                with _noting(result):
                    result.memory, result.noted = worker.memory(), worker.noted()
    return results


def memory_left() -> float:
    """The share of the machine's memory that programs could still get; 1 where it is not told."""
    told = pathlib.Path("/proc/meminfo")
    sizes = dict(line.split()[:2] for line in told.read_text().splitlines()) if told.exists() else {}
    return int(sizes["MemAvailable:"]) / int(sizes["MemTotal:"]) if "MemAvailable:" in sizes else 1.0


@contextlib.contextmanager
def _noting(result: Result) -> Iterator[None]:
    """What goes wrong is the program's result, and costs the others nothing."""
    try:
        yield
    except Failure as failure:
        result.failure = f"failed: {failure}"
