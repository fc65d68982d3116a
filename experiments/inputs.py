"""What a script reads: texts, one a line, in a file or from standard input as they come."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

MARK = "\ufeff"  # a byte order mark is no part of the text
PATIENCE = 0.01  # seconds that what is under way waits for a line


def lines(path: str | Path, kind: str) -> list[bytes]:
    """The lines of the file that the flag `--input` names, as `spelt` takes them; `kind` is what each of them is.

    Raises:
      ValueError: if it cannot be read, or has none.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"--input={path} cannot be read: {error.strerror}") from None
    if not content.removeprefix(MARK.encode()).strip():
        raise ValueError(f"--input={path} is empty: give a file with one {kind} a line")
    return content.removesuffix(b"\n").split(b"\n")


def spelt(origin: str, number: int, line: bytes) -> str:
    """The text of a line, whose number counts from 1; raises ValueError naming `origin` if it is not UTF-8."""
    try:
        content = line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"{origin} is not UTF-8 (byte {error.start}): convert it") from None
    return content.removeprefix(MARK) if number == 1 else content


def check_open() -> None:
    """Raises ValueError if standard input is closed."""
    if sys.stdin is None:
        raise ValueError("standard input is closed: name a file with --input")


def arriving() -> Iterator[bytes | None]:
    """The lines of standard input, without their ends, and None while none comes.

    Raises:
      ValueError: if it cannot be read, such as where it is closed.
    """
    lines = queue.Queue(maxsize=1)

    def follow() -> None:
        # A file object of its own: the interpreter closes the usual one at exit, and would wait for its reader.
        try:
            with open(0, "rb", closefd=False) as stream:
                for line in stream:
                    lines.put(line.removesuffix(b"\n"))
            lines.put(None)
        except OSError as error:
            lines.put(error)

    threading.Thread(target=follow, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        if isinstance(line, OSError):
            raise ValueError(f"standard input cannot be read ({line.strerror}): name a file with --input")
        yield line
