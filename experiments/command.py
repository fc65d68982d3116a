"""The one way in which scripts run: a mistake on the command line is one line on stderr and exit code 2.

A script ends with `command.run(main)` under `if __name__ == "__main__":`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from experiments import memory

MISTAKES = (flags.Error, ValueError, ImportError, OSError)

# Of the programs that JAX compiled: bytes that are kept, the least recently used ones going first, and the seconds that
# one must have taken.
KEPT = {"jax_compilation_cache_max_size": 2**30, "jax_persistent_cache_min_compile_time_secs": 0.2}

NO_ADDRESS = "is no folder: mount the bucket (gcsfuse) or a shared file system, and name the folder where it is"

_TRACEBACK = flags.DEFINE_boolean("traceback", False, "Show where an error was raised, not only what it says.")


def run(
    main: Callable[..., int | None], check: Callable[[str], None] = lambda name: None, *, words: bool = False
) -> None:
    """Parse the flags, call `main`, and leave the process with what it returns.

    Everything on the command line must be a flag, unless the script asks for words: absl hands the rest to the program,
    where `config.a=3` without its dashes would be ignored. An error of the kinds in `MISTAKES`, from a flag or from
    `main`, becomes one line `error: ...` on stderr and exit code 2, unless `--traceback` is given; other errors keep
    their traceback. Ctrl-C leaves quietly with exit code 130.

    One of several processes under `jax.distributed` that an error ends does so at once: JAX's way out waits for the
    others, which wait for it. An error that says that another one is gone has exit code 69.

    Memory that is freed is kept for what comes next (`experiments.memory`). What JAX compiles is kept for the next
    start in `~/.cache/transformer-research` or below `XDG_CACHE_HOME`, unless JAX's own variables say where
    (`JAX_COMPILATION_CACHE_DIR`) or that it is not (`JAX_ENABLE_COMPILATION_CACHE=0`).

    Args:
      main: takes nothing, or the list of words where there may be some; returns the exit code, None for 0.
      check: called with the name of every flag on the command line before any is parsed; raises ValueError.
      words: whether what is no flag is given to `main`, in the place of an error.
    """
    app.run(
        lambda argv: _call(partial(main, argv[1:]) if words else main),
        flags_parser=lambda argv: _parse(argv, check, words),
    )


def _call(main: Callable[[], int | None]) -> int | None:
    # A program that is told to end does so as after an error, and takes away what it has not finished.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    memory.keep()
    _keep_compiled()
    try:
        with _one_line(_TRACEBACK.value):
            code = main()
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where an error is still one line
            return code
    except SystemExit as end:
        if _joined() and end.code:
            _leave(end.code)
        raise
    except Exception as error:
        if _joined():
            traceback.print_exc()
            _leave(_lost(error) or 1)
        raise


def _joined() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _lost(error: Exception) -> int | None:
    """The exit code of one of several processes which an error tells that another one is gone."""
    if not _joined():
        return None
    from transformer.training import distributed, exits

    return exits.LOST if distributed.lost(error) else None


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def _keep_compiled() -> None:
    jax = sys.modules.get("jax")  # a script that has not imported it compiles nothing
    if jax is None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    places = Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.path.expanduser("~/.cache"))
    cache = next((place for place in places if place.is_absolute()), None)
    if cache is None:  # a user without a home
        return
    folder = cache / "transformer-research" / "compiled"
    for name, value in KEPT.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Where the folder is read-only or full, programs are compiled as if there was none.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it will be run
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink()  # half of one, from when the disk was full; with it JAX would keep nothing more


def _parse(argv: list[str], check: Callable[[str], None], words: bool) -> list[str]:
    # The flag itself is not set yet where parsing another one before it fails.
    with _one_line("--traceback" in argv):
        for argument in argv:
            if argument.startswith("-"):
                check(argument.lstrip("-").split("=")[0])
        try:
            program, *rest = flags.FLAGS(_underscored(argv))
        except (flags.Error, ValueError):
            raise
        except Exception as error:  # a recipe is a program, which may fail in any way
            raise ValueError(f"--config cannot be read: {type(error).__name__}: {error}") from error
        if "workdir" in flags.FLAGS and "://" in (flags.FLAGS.workdir or ""):
            raise ValueError(f"--workdir={flags.FLAGS.workdir} {NO_ADDRESS}")
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING  # the checkpoint library reports every file it touches
        if rest and not words:
            raise ValueError(f"unexpected argument {rest[0]!r}: {_advice(rest[0])}")
        return [program, *rest]


def _underscored(argv: list[str]) -> list[str]:
    """Flags by the names that they are defined with, where dashes were written for underscores; not behind `--`."""
    end = argv.index("--") if "--" in argv else len(argv)
    found = list(argv)
    for index, argument in enumerate(argv[:end]):
        name, equals, value = argument.partition("=")
        known = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and name.lstrip("-") not in flags.FLAGS and known in flags.FLAGS:
            found[index] = f"--{known}{equals}{value}"
    return found


def _advice(argument: str) -> str:
    return f"write it with dashes, --{argument.lstrip('-')}" if "=" in argument else "every argument is a --flag=value"


class Interrupted(Exception):
    """A signal ended the program in good order."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


@contextmanager
def _one_line(traceback: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as stop:
        from transformer.training import exits

        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(exits.stopped(128 + stop.signal))
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is still buffered has nowhere to go.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except MISTAKES as error:
        if traceback:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        # Errors that end a training run have a code of their own.
        sys.exit(getattr(error, "exit_code", None) or _lost(error) or 2)
