"""Machines that a plan can be made for, without having one."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One accelerator: dense bfloat16 FLOP/s, bytes of memory, bytes/s from it and, each way, to its neighbours."""

    flops: float
    memory: float
    bandwidth: float
    network: float


# TPU: docs.cloud.google.com/tpu/docs, a page per version; the network is half of the "bidirectional inter-chip
# interconnect bandwidth per chip", which is that of all links together. The page of v4 has none: it is six links of
# 50 GB/s, Jouppi et al. 2023 (arXiv:2304.01433), table 4. GPU: the data sheet of each product; the network is NVLink,
# one way.
CHIPS = {
    "v4": Chip(275e12, 32e9, 1228e9, 300e9),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
    "v6e": Chip(918e12, 32e9, 1640e9, 400e9),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9),
}
TPUS = ("v4", "v5e", "v5p", "v6e")
TOGETHER = 8  # GPUs of one machine, that NVLink joins


class Machine(NamedTuple):
    """Devices to compile for, and what is known of each; None for CPUs."""

    name: str
    devices: list[jax.Device]
    chip: Chip | None
    tpu: bool


def count(topology: str) -> tuple[str, int]:
    """The kind and the number of devices that `v5p:8x8x16`, `h100:64` or `cpu:8` name.

    Raises:
      ValueError: if it names none.
    """
    kind, _, shape = topology.partition(":")
    if kind not in (*CHIPS, "cpu") or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ValueError(
            f"--topology={topology}: write KIND:SHAPE, such as v5p:8x8x16 or h100:64, the kind one of "
            f"{', '.join((*CHIPS, 'cpu'))}"
        )
    return kind, math.prod(map(int, shape.split("x")))


def build(topology: str) -> Machine:
    """The machine; to be called before JAX has looked for devices.

    TPUs are described by libtpu, which need not find one. Others are stood for by CPU devices: programs are cut in the
    same way for them, and what they take and exchange is the same but for what each compiler makes of it.

    Raises:
      ValueError: if the name is none, or libtpu is missing or knows no such topology.
    """
    kind, devices = count(topology)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if kind not in TPUS:
        # Another number in the environment would be preferred.
        os.environ["XLA_FLAGS"] = re.sub(r"--\w*_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        jax.config.update("jax_num_cpu_devices", devices)
        found = jax.devices("cpu")[:devices]
        return Machine(topology, found, CHIPS.get(kind), False)
    if importlib.util.find_spec("libtpu") is None:
        wanted = "pip install 'transformer-research[tpu]', in an environment of its own"
        raise ValueError(f"--topology={topology} needs libtpu, which describes TPUs without one: {wanted}")
    # What libtpu asks machines in a cloud for; elsewhere it would wait for answers.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(topology, "tpu")
    except Exception as error:  # of JAX's own kinds, and of libtpu's
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--topology={topology}: libtpu knows no such topology ({reason})") from error
    return Machine(topology, list(described.devices), CHIPS[kind], True)
