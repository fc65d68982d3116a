"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Shows step, loss, bits per byte, tokens per second and the time left; a context manager, and a `loop.Report`."""

    def __init__(self, steps: int, start: int, bytes_per_token: float | None, console: Console | None = None):
        """Starts at step `start` of `steps`; bits per byte follow from the mean `bytes_per_token` of the text, and are
        left out where it is None."""
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bytes_per_token = bytes_per_token
        bits = () if bytes_per_token is None else ("{task.fields[bits]} bits/byte",)
        columns = ("loss {task.fields[loss]}", *bits, "{task.fields[speed]} tokens/s")
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            *map(TextColumn, columns),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        fields = {"loss": "-", "bits": "-", "speed": "-"}
        self._task = self._progress.add_task("train", total=steps, completed=start, **fields)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        loss, bits = f"{values['loss']:.3f}", "-"
        if self._bytes_per_token is not None:
            bits = f"{values['nats'] / math.log(2) / self._bytes_per_token:.3f}"
        speed = "-" if math.isnan(values["tokens_per_second"]) else f"{values['tokens_per_second']:,.0f}"
        self._progress.update(self._task, completed=step, loss=loss, bits=bits, speed=speed)
        if "validation_loss" in values:
            line = f"step {step}: loss {loss}, validation loss {values['validation_loss']:.4f}"
            if "validation_bits_per_byte" in values:
                line += f", {values['validation_bits_per_byte']:.4f} bits/byte"
            if "validation_accuracy" in values:
                line += f", accuracy {values['validation_accuracy']:.2%}"
            self._console.print(f"{line}, {speed} tokens/s")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
