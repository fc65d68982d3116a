"""Several processes as one program: joins JAX's distributed runtime where the environment says that there are others.

What says so, the first that is there:

1. `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, as `launch.local` and `launch.kubernetes` set
   them. JAX itself reads only the first of the three.
2. A step of Slurm with more than one task, as `srun` starts them.
3. `TRANSFORMER_DISTRIBUTED=1`: JAX finds out itself, as it can on the hosts of a TPU slice or under Open MPI.

A process that dies is missed after `HEARTBEAT` seconds; then JAX ends the others, with a fatal error.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
DETECT = "TRANSFORMER_DISTRIBUTED"
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")

HEARTBEAT = 10  # seconds without a sign of life until a process counts as dead; 100 by default
SHUTDOWN = 120  # seconds that a process which is done waits for the others; 300 by default


def initialize() -> None:
    """Joins the other processes, if there are any; to be called before JAX looks for devices.

    Raises:
      ValueError: if the variables contradict each other, or JAX is to find other processes and does not.
    """
    found = settings(os.environ)
    if found is None:
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(**found, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN)
    except ValueError as error:
        raise ValueError(f"JAX cannot join other processes ({error}): set {', '.join(VARIABLES)}") from error
    signal.signal(signal.SIGTERM, handler)  # JAX's own, installed meanwhile, would swallow it


def check_alone() -> None:
    """Raises ValueError if there are other processes: for a program that does not join them, but would do all again."""
    if settings(os.environ) is not None:
        raise ValueError(
            "the environment says that there are other processes, which this program cannot join: start it as one"
        )


def settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is called with; None where this process is alone.

    Raises:
      ValueError: if the variables contradict each other.
    """
    if any(name in environment for name in VARIABLES[1:]):
        return _named(environment)
    if all(name in environment for name in SLURM) and int(environment["SLURM_NTASKS"]) > 1:
        # JAX gives a task the one device that has its number on the node. A task that was given devices of its own
        # sees no others, and takes them all: an empty list.
        own = {"local_device_ids": []} if "SLURM_GPUS_PER_TASK" in environment else {}
        return {"cluster_detection_method": "slurm", **own}
    detect = environment.get(DETECT, "0")
    if detect not in ("0", "1"):
        raise ValueError(f"{DETECT}={detect} cannot work: set it to 1 where JAX is to find other processes, or to 0")
    return {} if detect == "1" else None


def _named(environment: Mapping[str, str]) -> dict[str, Any] | None:
    missing = [name for name in VARIABLES if name not in environment]
    if missing:
        raise ValueError(f"{missing[0]} is missing: set all of {', '.join(VARIABLES)}, or none")
    address, *numbers = (environment[name] for name in VARIABLES)
    if not all(number.isdecimal() for number in numbers) or not int(numbers[1]) < int(numbers[0]):
        raise ValueError(
            f"JAX_NUM_PROCESSES={numbers[0]} and JAX_PROCESS_ID={numbers[1]} cannot work: "
            "processes are numbered from 0 to one less than there are"
        )
    if ":" not in address:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address} cannot work: give HOST:PORT")
    count, index = map(int, numbers)
    if count == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


@contextmanager
def first_alone(name: str) -> Iterator[None]:
    """The first process runs the block before the others do, so that they find what it leaves on a disk they share."""
    if jax.process_index():
        multihost_utils.sync_global_devices(name)
    yield
    if not jax.process_index():
        multihost_utils.sync_global_devices(name)
