"""Memory, work and communication of a training step by formula: what a search for a mesh compares.

All of it is for one device and one step. A token is a row of the residual; `local` counts those of one device in one
micro-batch. Sources: activations, Korthikanti et al. 2022 (arXiv:2205.05198), section 4; what fully sharded data
parallelism sends, Rajbhandari et al. 2020 (arXiv:1910.02054), section 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from experiments.experiment import Experiment
from launch.machines import Chip
from transformer import models
from transformer.models import Stack
from transformer.training import objective

BACKWARD = 2  # passes' worth of work, beside the forward one


class Estimate(NamedTuple):
    """Bytes of activations; seconds of arithmetic, of reading and writing the state, and of what each axis sends."""

    activations: float
    compute: float
    memory: float
    network: dict[str, float]

    @property
    def floor(self) -> float:
        """Seconds of a step in which everything is done at the same time."""
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def sum(self) -> float:
        """Seconds of a step in which nothing is."""
        return self.compute + self.memory + sum(self.network.values())


def estimate(experiment: Experiment, sizes: Mapping[str, int], state: float, chip: Chip) -> Estimate:
    """A step of an experiment on a mesh of these sizes.

    Args:
      state: bytes of parameters and optimizer state on one device.
    """
    config, training = experiment.model, experiment.training
    devices = math.prod(sizes.values())
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    rows = training.batch_size / training.accumulation / (sizes["data"] * sizes["fsdp"] * sizes["expert"])
    positions = rows * experiment.data.length / sizes["sequence"]  # of one device, before `tensor` cuts the residual
    width = jnp.dtype(config.dtype).itemsize
    recompute = 1 if config.remat == "full" else 0
    attends = 1 + BACKWARD + (config.remat in ("full", "dots_without_batch"))

    flops = models.ledger(config).flops_per_token(experiment.data.length, causal=True)
    work = (flops.training + repeated(experiment)) * training.batch_size * experiment.data.length
    saved = sum(stack.depth * _saved(experiment, stack) for stack in stacks)
    own = math.ceil(positions / sizes["tensor"])
    chunk = objective.chunk_size(own, own * devices, config.vocab, training.loss_chunk)
    logits = min(own, chunk or own) * config.vocab * 4

    count = models.ledger(config).total
    part = count / sizes["tensor"] / sizes["expert"] * width  # of the parameters, that fsdp gathers
    gather, rate = _share(sizes["fsdp"]), chip.network
    residual = positions * config.width * width
    blocks = sum(stack.depth * (3 if stack is config.decoder and len(stacks) > 1 else 2) for stack in stacks)
    keys = sum(2 * stack.depth * config.kv_heads(stack) * config.head_width(stack) for stack in stacks)
    network = {
        # Gathered for every pass of every micro-batch, and gradients added up once.
        "fsdp": (2 + recompute) * training.accumulation * part * gather + part * gather,
        "data": 2 * part / sizes["fsdp"] * _share(sizes["data"]),
        # Each half gathers the residual's positions and scatters what it adds.
        "tensor": 2 * blocks * residual * _share(sizes["tensor"]) * (BACKWARD + recompute) * training.accumulation,
        "sequence": rows
        * experiment.data.length
        * keys
        / sizes["tensor"]
        * width
        * _share(sizes["sequence"])
        * attends,
    }
    return Estimate(
        activations=positions / sizes["tensor"] * saved * width + logits,
        compute=work / devices / chip.flops,
        memory=2 * state / chip.bandwidth,
        network={axis: sent / rate for axis, sent in network.items() if sent},
    )


def repeated(experiment: Experiment) -> float:
    """The operations for one token that the backward pass does again.

    With `full` it is the whole forward pass; `dots` keeps what every product gives, and `dots_without_batch` all but
    those of attention, scores and mix.
    """
    config = experiment.model
    if config.remat not in ("full", "dots_without_batch"):
        return 0.0
    book = models.ledger(config)
    forward = book.flops_per_token(experiment.data.length, causal=True).forward
    if config.remat == "full":
        return forward
    return forward - 2 * (book.tally.active - book.tally.subtotal("embedding").active)


def _saved(experiment: Experiment, stack: Stack) -> float:
    """Numbers that a layer keeps of each token for the backward pass, on all devices of `tensor` together."""
    config = experiment.model
    residual = config.width
    if config.remat == "full":
        return residual
    heads, groups, head = stack.attention.heads, config.kv_heads(stack), config.head_width(stack)
    inner = config.mlp_width(stack) * (2 if stack.mlp is not None and stack.mlp.gated else 1)
    products = (2 * heads + 2 * groups) * head + inner + 2 * residual
    if config.remat != "none":
        return residual + products
    return residual + 2 * products + 2 * residual


def _share(size: int) -> float:
    """Of what a group of this size gathers, the part that each member has to be sent."""
    return (size - 1) / size
