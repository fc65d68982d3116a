"""Where a script writes, refused before all other work: a file, there as a whole or not at all, or standard output."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def replacing(path: str) -> Iterator[Path]:
    """A new file beside what the flag `--output` names, which takes its place at the end, or goes after an error.

    A link stays, and leads to the new file; a file that was there hands its permissions on.

    Raises:
      ValueError: at once, if there can be none, or what is there is no file, such as a folder or a pipe.
    """
    try:
        target = Path(path).resolve()
        temporary = target.with_name(f".{secrets.token_hex(8)}")  # short: the file's own name may be as long as any
        if (target.exists() and not target.is_file()) or target.is_relative_to("/proc"):
            raise OSError(None, "it is there, and no file")
        temporary.touch(exist_ok=False)
        if target.exists():
            shutil.copymode(target, temporary)
    except (OSError, RuntimeError, ValueError) as error:  # a RuntimeError: links that lead to each other
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"--output={path} cannot be written ({reason}): name a file in a folder that is there"
        ) from None
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_apart(path: str | Path, read: str | Path) -> None:
    """Raises ValueError if the flag `--output` names the file that is read."""
    if Path(path).exists() and Path(path).samefile(read):
        raise ValueError(f"--output={path} is the file of --input, which would be lost: name another")


def standard() -> TextIO:
    """Standard output, where what its encoding cannot spell becomes "?"; raises ValueError if it is closed."""
    if sys.stdout is None:
        raise ValueError("standard output is closed, and nothing can be written there: open it")
    sys.stdout.reconfigure(errors="replace")
    return sys.stdout
