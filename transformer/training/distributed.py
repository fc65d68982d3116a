"""Several processes as one program: joins JAX's distributed runtime where the environment says that there are others.

What says so, the first that is there:

1. `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, as `launch.local` and `launch.kubernetes` set
   them. JAX itself reads only the first of the three.
2. A step of Slurm with more than one task, as `srun` starts them.
3. `TRANSFORMER_DISTRIBUTED=1`: JAX finds out itself, as it can on the hosts of a TPU slice or under Open MPI.

A process that dies is missed after `HEARTBEAT` seconds; then JAX ends the others, with a fatal error.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from jax._src.distributed import global_state

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
DETECT = "TRANSFORMER_DISTRIBUTED"
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")

MEET = 1800  # seconds that a process waits for the others at the start; 300 by default
HEARTBEAT = 15  # seconds without a sign of life until a process counts as dead; 100 by default
SHUTDOWN = 120  # seconds that a process which is done waits for the others; 300 by default
ASKS = 2  # seconds between questions of those that wait for the first process

SERVICE = "jax_enable_preemption_service"
LOST = re.compile(r"gloo|nccl|coordination ?service|coordination agent|heartbeat|socket closed", re.IGNORECASE)


def initialize() -> None:
    """Joins the other processes, if there are any; to be called before JAX looks for devices.

    Raises:
      ValueError: if the variables contradict each other, or JAX is to find other processes and does not.
    """
    found = settings(os.environ)
    if found is None:
        return
    jax.config.update(SERVICE, False)  # it would take SIGTERM before there is anything to save
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=MEET,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except ValueError as error:
        raise ValueError(f"JAX cannot join other processes ({error}): set {', '.join(VARIABLES)}") from error
    finally:
        jax.config.update(SERVICE, True)


@functools.cache
def preemption() -> Callable[[], None]:
    """Starts JAX's preemption service, by which processes agree on a step to stop at; returns what tells it to.

    The service takes SIGTERM for itself; its handler is what is returned, and SIGTERM is free for another one.
    """
    global_state.initialize_preemption_sync_manager()
    get = ctypes.pythonapi.PyOS_getsig
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_int]
    return functools.partial(ctypes.CFUNCTYPE(None, ctypes.c_int)(get(signal.SIGTERM)), signal.SIGTERM)


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone: of Gloo, NCCL or the service by which processes meet."""
    return jax.distributed.is_initialized() and LOST.search(str(error)) is not None


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
    """The first process runs the block before the others do, so that they find what it leaves on a disk they share.

    However long that takes: the others ask the coordinator, which is that process, and end when it does.
    """
    client, key = global_state.client, f"first_alone/{name}"
    while jax.process_index():
        try:
            client.blocking_key_value_get(key, ASKS * 1000)
            break
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise
    yield
    if client is not None and not jax.process_index():
        client.key_value_set(key, "done")
