"""Pairs that a program makes: tasks over characters whose every answer is known."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Iterator
from datetime import date

import numpy as np

from transformer.data.config import RANGES
from transformer.data.sources import Pair

# Not those of `calendar`, which follow the language of the machine.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FORMS = (  # of a date; none leaves open which number is the day
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day} {month:.3} {year}",
    "{month:.3} {day}, {year}",
    "{day:02}-{month:.3}-{year}",
    "{weekday}, {day} {month} {year}",
    "{weekday:.3}, {month} {day}, {year}",
)
_FIRST, _LAST = date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal()


def copy(random: np.random.Generator, length: int) -> tuple[str, str]:
    """`length` lower-case letters, and the same again: "abcd" -> "abcd"."""
    letters = _letters(random, length)
    return letters, letters


def reverse(random: np.random.Generator, length: int) -> tuple[str, str]:
    """`length` lower-case letters, and the same from the end: "abcd" -> "dcba"."""
    letters = _letters(random, length)
    return letters, letters[::-1]


def sort(random: np.random.Generator, length: int) -> tuple[str, str]:
    """`length` lower-case letters, and the same in the order of the alphabet: "dabd" -> "abdd"."""
    letters = _letters(random, length)
    return letters, "".join(sorted(letters))


def addition(random: np.random.Generator, length: int) -> tuple[str, str]:
    """Two numbers, one of `length` digits and one of as many or fewer, and their sum: "27+385" -> "412"."""
    first = random.integers(min(length - 1, 1), 10)  # 0 is a number of one digit; longer ones do not begin with it
    long = int("".join(map(str, (first, *random.integers(10, size=length - 1)))))
    short = int("".join(map(str, random.integers(10, size=length))))
    left, right = (long, short) if random.integers(2) else (short, long)
    return f"{left}+{right}", str(left + right)


def dates(random: np.random.Generator, length: None = None) -> tuple[str, str]:
    """A day of 1900 to 2099 in one of several forms, and as ISO 8601 has it: "March 3, 1987" -> "1987-03-03"."""
    day = date.fromordinal(int(random.integers(_FIRST, _LAST + 1)))
    words = {"month": _MONTHS[day.month - 1], "weekday": _WEEKDAYS[day.weekday()]}
    form = _FORMS[random.integers(len(_FORMS))]
    return form.format(day=day.day, year=day.year, **words), day.isoformat()


TASKS: dict[str, Callable[[np.random.Generator, int | None], tuple[str, str]]] = {
    "copy": copy,
    "reverse": reverse,
    "sort": sort,
    "addition": addition,
    "dates": dates,
}
_LONGEST = {"addition": 4_000}  # digits: Python reads and writes numbers of 4,300
_LONGEST_TEXT = 1_000_000


def generate(name: str, count: int, shortest: int | None = None, longest: int | None = None) -> Iterator[Pair]:
    """`count` pairs of a task, whose lengths are uniform between `shortest` and `longest`.

    Pair i is a function of the name, the range and i alone: more pairs begin with the same ones. Short pairs repeat;
    `pairs.divide_pairs` puts equal ones on the same side.

    Args:
      name: of `TASKS`.
      count: how many pairs.
      shortest, longest: letters of a text, digits of a number; both None: those of `RANGES`.

    Raises:
      ValueError: if there is no such task, or it cannot have such a range.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS) or TASKS
        raise ValueError(f"no task is called {name!r}; the nearest are {', '.join(near)}")
    if shortest is None and longest is None:
        bounds = RANGES[name]
    elif RANGES[name] is None:
        raise ValueError(f"the task {name!r} has no lengths, but was asked for {shortest}-{longest}: leave them out")
    elif shortest is None or longest is None or not 1 <= shortest <= longest:
        lowest, highest = RANGES[name]
        raise ValueError(f"lengths {shortest}-{longest} cannot work: give 1 or more first, such as {lowest}-{highest}")
    elif longest > (most := _LONGEST.get(name, _LONGEST_TEXT)):
        raise ValueError(f"lengths {shortest}-{longest} cannot work: the task {name!r} has at most {most}")
    else:
        bounds = (shortest, longest)
    return (_pair(name, bounds, index) for index in range(count))


def _pair(name: str, bounds: tuple[int, int] | None, index: int) -> Pair:
    random = np.random.default_rng((zlib.crc32(name.encode()), *(bounds or ()), index))
    length = None if bounds is None else int(random.integers(bounds[0], bounds[1] + 1))
    return Pair(f"{name}, pair {index + 1}", *TASKS[name](random, length))


def _letters(random: np.random.Generator, length: int) -> str:
    return random.integers(ord("a"), ord("z") + 1, size=length, dtype=np.uint8).tobytes().decode("ascii")
