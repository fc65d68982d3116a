"""Lines of metrics from the metrics of steps, which are read while the devices go on."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

Values = dict[str, float]
Metrics = Mapping[str, Any]  # of one step: scalars

HIDDEN = ("finite", "bad", "count", "fingerprint")  # what no line says as it is


class Lines:
    """Lines from the metrics of steps, which a thread reads as soon as the devices are done; a context manager.

    Args:
      rates: more values of a line, from its tokens per second.
      judge: of a step and its metrics, whether it counts; called for each in order.
    """

    def __init__(self, rates: Callable[[float], Values], judge: Callable[[int, Metrics], bool]):
        self._rates, self._judge = rates, judge
        self._reader = ThreadPoolExecutor(1, "metrics")
        self._steps: deque[tuple[int, Future[tuple[Metrics, float]], bool]] = deque()
        self._rows: list[tuple[Metrics, bool]] = []
        self._begin: float | None = None
        self._free = -math.inf

    def start(self, step: int, metrics: Metrics, ends: bool) -> None:
        """The devices were given a step; `ends` says whether a line ends with it."""
        self._steps.append((step, self._reader.submit(_read, metrics), ends))

    def land(self, left: int) -> Iterator[tuple[int, Values]]:
        """Waits until at most `left` steps are under way; gives each line that ended, and its last step.

        The tokens per second of the first are NaN, as its first step compiles.
        """
        while len(self._steps) > left:
            step, metrics, ends = self._steps.popleft()
            row, self._free = metrics.result()
            self._rows.append((row, self._judge(step, row)))
            if not ends:
                continue
            values = _mean(self._rows)
            tokens = values.pop("tokens")
            speed = math.nan if self._begin is None else tokens / (self._free - self._begin)
            self._rows, self._begin = [], self._free
            yield step, values | {"tokens_per_second": speed} | self._rates(speed)

    def idle(self, since: float) -> float:
        """Seconds from a time until now in which the devices had nothing to do."""
        if self._steps:
            last = self._steps[-1][1]
            if not last.done():
                return 0.0
            self._free = last.result()[1]
        return max(time.perf_counter() - max(self._free, since), 0.0)

    def drop(self) -> None:
        """Forgets the steps that are under way, and the line that has begun."""
        while self._steps:
            self._steps.popleft()[1].result()
        self._rows = []

    def resume(self) -> None:
        """What passed since the last line was no training."""
        self._begin = time.perf_counter()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.shutdown()


def _read(metrics: Metrics) -> tuple[Metrics, float]:
    return jax.device_get(metrics), time.perf_counter()


def _mean(rows: list[tuple[Metrics, bool]]) -> Values:
    """One line from the metrics of several steps: `loss` and `nats` over all tokens of those that count, the rest as
    at the last step, and how many were skipped, if any."""
    good = [row for row, counts in rows if counts]
    counts = np.asarray([row["count"] for row in good], np.float64)
    values = {name: float(value) for name, value in rows[-1][0].items() if name not in HIDDEN}
    for name in ("loss", "nats"):
        total = np.asarray([row[name] for row in good], np.float64) @ counts
        values[name] = float(total / max(counts.sum(), 1.0)) if good else math.nan
    skipped = {"skipped": float(len(rows) - len(good))} if len(good) < len(rows) else {}
    return values | skipped | {"tokens": float(counts.sum())}
