"""The process that one program of a benchmark runs in: told what to do by lines of JSON, which `contest` writes.

The first line names the program; it is made and warmed up. Each further one asks for a timing, for the memory taken or
for what the program noted.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments import memory

MOST_CALLS = 1000


def main() -> None:
    """Answers each line that comes in with one line, until there are no more."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=channel, flush=True)

    try:
        answers = _prepare(json.loads(sys.stdin.readline()))
        answer(ready=True)
        for line in sys.stdin:
            name, tell = answers[json.loads(line)]
            answer(**{name: tell()})
    except Exception as error:  # a peer's compiler may fail in any way; what it said goes into the report
        answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _prepare(request: dict[str, Any]) -> dict[str, tuple[str, Callable[[], Any]]]:
    """For each question the name of its answer, and what finds that: the seconds of one call, the memory, the notes."""
    if request["device"] == "cpu":
        memory.keep()
    module, name = request["maker"].split(":")
    _start_library(request["needs"])
    maker = getattr(importlib.import_module(f"experiments.benchmarks.{module}"), name)
    start = _peak()
    program = maker(**request["arguments"])
    noted: dict[str, Any] = {}

    def seconds() -> float:
        start = time.perf_counter()
        own = program()
        spent = time.perf_counter() - start
        noted.update(own if isinstance(own, dict) else {})
        return own if isinstance(own, float) else spent

    spent = [seconds() for _ in range(request["warmups"])]
    calls = min(MOST_CALLS, math.ceil(request["least"] / spent[-1]) or 1) if spent and spent[-1] > 0 else 1

    def time_calls() -> float:
        return sum(seconds() for _ in range(calls)) / calls

    def most() -> int:
        return _device_peak() if request["device"] == "gpu" else _peak() - start

    return {"time": ("seconds", time_calls), "memory": ("memory", most), "noted": ("noted", lambda: noted)}


def _start_library(needs: list[str]) -> None:
    """Imports what is needed and runs something small, so that only what a program itself takes is counted."""
    for name in needs:
        importlib.import_module(name)
    if "torch" in needs:
        sys.modules["torch"].ones(2).sum()
    else:
        import jax

        jax.jit(lambda x: x + 1)(1.0).block_until_ready()


def _peak() -> int:
    """The most bytes that this process had resident."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # unlike getrusage it does not begin with the size of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_peak() -> int:
    """The most bytes that this process's library had taken on the accelerator."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return sys.modules["torch"].cuda.max_memory_allocated()
    return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"]


if __name__ == "__main__":
    main()
