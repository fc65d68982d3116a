"""Several processes as one run."""

from __future__ import annotations

import os

import jax

HEARTBEAT = 10  # seconds after which a process that gave no sign of life is given up
SHUTDOWN = 10  # seconds that a process which leaves waits for the others


def initialize() -> None:
    """Joins the other processes where JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say so."""
    if "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
