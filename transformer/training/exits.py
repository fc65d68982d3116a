"""With what exit code a training run ends, so that a launcher knows whether to start it again.

| code | name | what happened | starting it again |
| --- | --- | --- | --- |
| 0 | `FINISHED` | the last step is done, or a signal came and the state is saved | goes on from the last checkpoint |
| 79 | `STOPPED` | a signal came and the state is saved, under a launcher | goes on from the last checkpoint |
| 1 | `FAILED` | an error with a traceback | may meet it again |
| 2 | `MISTAKE` | one line says what to change: a flag, the recipe, the directory | meets it again |
| 65 | `NOT_FINITE` | more bad steps than `training.skips` and `training.rollbacks` allow | meets it again |
| 69 | `LOST` | another process of the run is gone | goes on from the last checkpoint |
| 74 | `NOT_SAVED` | a checkpoint could not be written | needs room first |
| 75 | `HUNG` | nothing moved for as long as `--watchdog` says | goes on from the last checkpoint |
| 76 | `DRIFTED` | copies of one array differ between devices | goes on from the last checkpoint |

A process that lost another one of its run is ended by JAX with SIGABRT, where it does not find out by itself, and a
second signal ends it by that signal. Launchers that start again set `TRANSFORMER_STOPPED_CODE`, so that they can tell
what is stopped from what is finished.
"""

import os

STOPPED_CODE = "TRANSFORMER_STOPPED_CODE"

FINISHED = 0
FAILED = 1
MISTAKE = 2
NOT_FINITE = (
    65  # the numbers from 64 on are those of sysexits.h: data, no service, input and output, try again, protocol
)
LOST = 69
NOT_SAVED = 74
HUNG = 75
DRIFTED = 76
STOPPED = 79  # the first that sysexits.h leaves free


def stopped(otherwise: int = FINISHED) -> int:
    """The code of a run that a signal stopped: what a launcher asks for, or `otherwise`."""
    return int(os.environ.get(STOPPED_CODE, otherwise))


class Ended(ValueError):
    """A run that cannot go on; `exit_code` is what the process ends with."""

    exit_code = MISTAKE


class NonFinite(Ended):
    """The loss or a gradient became infinite, NaN or far too large; the last checkpoint from before stays."""

    exit_code = NOT_FINITE


class NotSaved(Ended):
    """A checkpoint could not be written; earlier ones are as they were."""

    exit_code = NOT_SAVED


class Drifted(Ended):
    """Copies of one array differ between devices."""

    exit_code = DRIFTED
