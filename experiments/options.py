"""What a training run is told beside its recipe: what may differ, where to go on from, how long to stand still."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping

from absl import flags

WATCHDOG = 600.0  # seconds


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run goes on, and who watches it.

    Attributes:
      accept: dotted names of fields, or of what holds them, that may differ from the run that is resumed.
      from_step: the checkpoint to go back to; later ones are set aside. None: the last one.
      watchdog: seconds without progress that end the process; 0: it is not watched.
    """

    accept: tuple[str, ...] = ()
    from_step: int | None = None
    watchdog: float = 0.0

    def accepts(self, field: str) -> bool:
        """Whether a field may differ."""
        return any(f"{field}.".startswith(f"{name}.") for name in self.accept)

    def refuse(self, changes: Mapping[str, str], where: str) -> None:
        """Raises ValueError, naming what changed and the flag to accept it, unless all of it is accepted.

        Args:
          changes: by field, what is said of it.
          where: whose fields they are, such as "runs/x holds a run of another recipe".
        """
        left = {field: said for field, said in changes.items() if not self.accepts(field)}
        if left:
            flag = ",".join([*self.accept, *left])
            raise ValueError(
                f"{where}: {'; '.join(left.values())}; use a new --workdir, or go on on purpose with --accept={flag}"
            )

    def check(self, fields: Iterable[str]) -> None:
        """Raises ValueError unless everything that is accepted is one of these fields, or holds some of them."""
        known = {".".join(parts[:count]) for parts in (field.split(".") for field in fields) for count in range(1, 9)}
        for name in self.accept:
            if name not in known:
                near = difflib.get_close_matches(name, known, cutoff=0.5)
                advice = f"the nearest are {', '.join(near)}" if near else "name a field of the recipe, such as seed"
                raise ValueError(f"--accept={name} is no field: {advice}")


DEFAULT = Options()


def define() -> flags.FlagHolder:
    """Defines the flags; `read` has their values."""
    flags.DEFINE_list("accept", [], "Fields that may differ from the run that is resumed, such as seed,data.content.")
    flags.DEFINE_integer(
        "from_step", None, "Go back to this checkpoint and set later ones aside; given again, go on.", lower_bound=0
    )
    meaning = "End the process, with every thread's stack, after so many seconds without progress; 0: never."
    flags.DEFINE_float("watchdog", WATCHDOG, meaning, lower_bound=0)


def read() -> Options:
    """What the command line says."""
    values = flags.FLAGS
    return Options(tuple(values.accept), values.from_step, values.watchdog)
