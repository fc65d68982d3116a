"""Plan a training run for a machine that is not here: does it fit, what is sent, how long does a step take at least?

    python -m launch.plan --config=experiments/configs/gpt3_175b.py --topology=v5p:8x8x16 --mesh=fsdp=128,tensor=8
    python -m launch.plan --config=experiments/configs/gpt2_small.py --topology=h100:8 --search

The training step of the recipe is compiled for the machine, ahead of time. For TPUs that is done by their own compiler,
which libtpu brings (extra `tpu`, in an environment of its own); for GPUs by that for CPUs, one CPU device for each, so
that temporaries and collectives are those of a CPU's program, which adds up whole gradients in float32. Times are
floors, by the figures beside them; that of communication between GPUs is the formula's of `launch/estimate.py`.

`--search` compares meshes and rematerialisation policies by formula (`launch/estimate.py`), lists the best that fit and
compiles the first of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from rich.table import Table

from experiments import command, recipe, running, writing
from experiments.devices import amount
from experiments.experiment import Experiment
from launch import collectives, machines
from launch.estimate import Estimate, estimate, repeated
from transformer import models
from transformer.models.config import REMATS
from transformer.ops.sharding import AXES
from transformer.training import meshes, parallel, sharding

CONFIG = recipe.define()
TOPOLOGY = flags.DEFINE_string("topology", None, "The machine: v5p:8x8x16, h100:64, cpu:8.")
MESH = flags.DEFINE_string("mesh", "", "As in experiments.train.")
SHARDING = flags.DEFINE_string("sharding", "", "As in experiments.train.")
SEARCH = flags.DEFINE_boolean("search", False, "Compare meshes and rematerialisation policies, and take the best.")
BEST = 10  # of a search, that are listed
ROOM = 0.92  # of a device's memory, that a program may take; the rest is for what XLA and the runtime keep
# Of the compiler for TPUs: the memory is the same to within 1%, and GPT-3 takes a fifth of the time.
QUICK = {"exec_time_optimization_effort": -1.0}


class Candidate(NamedTuple):
    """A mesh and a policy, and what they would take."""

    sizes: dict[str, int]
    remat: str
    state: float
    estimate: Estimate

    @property
    def bytes(self) -> float:
        """State, gradients (as large as parameters, a third of Adam's state at least) and activations."""
        return self.state * 4 / 3 + self.estimate.activations


def main() -> None:
    experiment = recipe.build(CONFIG)
    if TOPOLOGY.value is None:
        raise ValueError("--topology is missing: name a machine, such as --topology=v5p:8x8x16 or --topology=h100:8")
    if SEARCH.value and MESH.value:
        raise ValueError("--search looks for a mesh: leave --mesh out, or --search")
    machine, console = machines.build(TOPOLOGY.value), writing.console()
    rules, sizes = sharding.parse(SHARDING.value), meshes.parse(MESH.value, len(machine.devices))
    if SEARCH.value:
        found = search(experiment, machine, rules)
        console.print(listed(found))
        sizes, remat = found[0].sizes, found[0].remat
        experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat=remat))
    words = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "data=1"
    console.print(f"{machine.name}, mesh {words}, remat {experiment.model.remat}: compiling")
    for table in plan(experiment, machine, words, rules):
        console.print(table)


def plan(experiment: Experiment, machine: machines.Machine, words: str, rules: sharding.Rules) -> Iterator[Any]:
    """Tables and lines: memory, communication, time."""
    mesh = meshes.build(words, machine.devices)
    parallel.check(experiment.training.batch_size, experiment.training.accumulation, mesh)
    begin = time.perf_counter()
    compiled, state = compile_step(experiment, machine, mesh, rules)
    took = time.perf_counter() - begin
    placed = sharding.explain(mesh, state, rules)
    parts = {part: sum(each.bytes for each in placed if each.path.split("/")[0] == part) for part in PARTS}
    stats = compiled.memory_analysis()
    table = Table("on each device", "")
    for part, size in parts.items():
        if size:
            table.add_row(PARTS[part], amount(size))
    batch = stats.argument_size_in_bytes - sum(parts.values())
    table.add_row("batch, and what else is handed over", amount(batch))
    table.add_row("activations, gradients, temporaries", amount(stats.temp_size_in_bytes))
    kept = stats.output_size_in_bytes - stats.alias_size_in_bytes
    total = stats.argument_size_in_bytes + stats.temp_size_in_bytes + kept + stats.generated_code_size_in_bytes
    table.add_row("program and results", amount(kept + stats.generated_code_size_in_bytes))
    table.add_row("in all", amount(total))
    yield table
    chip = machine.chip
    if chip is not None:
        verdict = "it fits" if total <= ROOM * chip.memory else "it does NOT fit"
        yield f"{verdict}: {amount(total)} of {amount(chip.memory)} ({ROOM:.0%} may be used)"
    sent = collectives.read(compiled.as_text(), len(machine.devices))
    table = Table("collective" + ("" if machine.tpu else ", of CPUs"), "among", "times per step", "sent by each device")
    for each in (each for each in sent if each.bytes):
        table.add_row(each.kind, str(each.group), f"{each.calls:,}", amount(each.bytes))
    yield table
    yield from _times(experiment, machine, mesh.shape, sum(parts.values()), sum(each.bytes for each in sent))
    yield f"compiled in {took:.0f} s"


PARTS = {"params": "parameters", "opt_state": "optimizer state", "ema": "moving average", "step": "step"}


def compile_step(
    experiment: Experiment, machine: machines.Machine, mesh: jax.sharding.Mesh, rules: sharding.Rules = ()
) -> tuple[jax.stages.Compiled, Any]:
    """The training step, compiled for the machine, and the shapes of its state."""
    config = experiment.model
    if machine.tpu and config.attention_implementation == "auto" and _splashes(experiment, mesh):
        # What `auto` takes on the machine itself; here the backend is the CPU's.
        experiment = dataclasses.replace(
            experiment, model=dataclasses.replace(config, attention_implementation="splash")
        )
    steps = running.Steps.of(experiment)
    runner = parallel.build("jit", steps.train, steps.evaluation, mesh, rules)
    state = jax.eval_shape(steps.init)
    placed = jax.tree.map(_placed, state, runner.layout(state))
    batch = {name: _placed(array, runner.batch_sharding(array.shape)) for name, array in shapes(experiment).items()}
    with parallel.using(mesh):
        lowered = runner.compiled(state).lower(placed, batch)
        return lowered.compile(compiler_options=QUICK if machine.tpu else None), state


def shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a global batch, as the objective makes it."""
    shape = (experiment.training.batch_size, experiment.data.length)
    whole, flags_, real = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool, jnp.float32))
    batch = {"inputs": whole, "targets": whole, "weights": real}
    kind = experiment.data.objective.kind
    if kind in ("masked", "prefix"):
        batch["mask"] = flags_
    if kind == "prefix":
        batch["prefix"] = flags_
    if kind in ("pairs", "spans"):
        batch |= {"source": whole, "source_mask": flags_, "mask": flags_}
    return batch


def search(experiment: Experiment, machine: machines.Machine, rules: sharding.Rules) -> list[Candidate]:
    """The meshes and policies that fit, by formula, the fastest first."""
    if machine.chip is None:
        raise ValueError(
            f"--search weighs what is known of a chip, and {machine.name} is of CPUs: name another machine"
        )
    state, found, least = jax.eval_shape(running.Steps.of(experiment).init), [], None
    for sizes in arrangements(len(machine.devices)):
        mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
        try:
            parallel.check(experiment.training.batch_size, experiment.training.accumulation, mesh)
            own = sum(each.bytes for each in sharding.explain(mesh, state, rules))
        except ValueError:  # something does not divide
            continue
        if experiment.data.length % (sizes["sequence"] * sizes["tensor"]):
            continue
        for remat in REMATS:
            policy = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat=remat))
            candidate = Candidate(sizes, remat, own, estimate(policy, sizes, own, machine.chip))
            least = min(least or candidate, candidate, key=lambda each: each.bytes)
            if candidate.bytes <= ROOM * machine.chip.memory:
                found.append(candidate)
    if not found:
        has = f"at least {amount(least.bytes)} per device" if least else "no mesh divides batch and parameters"
        raise ValueError(f"{machine.name} has no mesh that fits: {has}; take more devices, or a smaller batch")
    return sorted(found, key=lambda each: (each.estimate.sum, each.bytes))


def arrangements(devices: int) -> Iterator[dict[str, int]]:
    """Every way to arrange so many devices along `data`, `fsdp`, `sequence` and `tensor`."""
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    for tensor in divisors:
        for sequence in (size for size in divisors if devices % (tensor * size) == 0):
            rest = devices // (tensor * sequence)
            for fsdp in (size for size in divisors if rest % size == 0):
                sizes = {"data": rest // fsdp, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
                yield {axis: sizes.get(axis, 1) for axis in AXES}


def listed(found: list[Candidate]) -> Table:
    """The best of a search."""
    table = Table("mesh", "remat", "per device", "compute s", "network s", "floor s", "without overlap s")
    for each in found[:BEST]:
        words = ",".join(f"{axis}={size}" for axis, size in each.sizes.items() if size > 1) or "one device"
        times = (each.estimate.compute, sum(each.estimate.network.values()), each.estimate.floor, each.estimate.sum)
        table.add_row(words, each.remat, amount(each.bytes), *(f"{seconds:.3f}" for seconds in times))
    return table


def _times(
    experiment: Experiment, machine: machines.Machine, sizes: Mapping[str, int], state: float, sent: float
) -> Iterator[str]:
    """The floors of a step, and what they assume."""
    tokens = experiment.training.batch_size * experiment.data.length
    flops = models.ledger(experiment.model).flops_per_token(experiment.data.length, causal=True)
    again = repeated(experiment)
    total, devices, chip = (flops.training + again) * tokens, len(machine.devices), machine.chip
    yield f"work: {total:.3e} FLOP a step, {total / devices:.3e} per device, {again * tokens / total:.0%} repeated"
    if chip is None:
        return
    compute, memory = total / devices / chip.flops, 2 * state / chip.bandwidth
    formula = sum(estimate(experiment, sizes, state, chip).network.values())
    network = sent / chip.network if machine.tpu else formula
    floor = max(compute, memory, network)
    yield (
        f"a step takes at least {floor:.3f} s: arithmetic {compute:.3f} s, state read and written {memory:.3f} s, "
        f"communication {network:.3f} s; {compute + memory + network:.3f} s where none hides another"
    )
    yield (
        f"assumed and fully used: {chip.flops / 1e12:,.0f} TFLOP/s in bfloat16, {chip.bandwidth / 1e9:,.0f} GB/s from "
        f"memory, {chip.network / 1e9:,.0f} GB/s each way between devices; at most {tokens / floor:,.0f} tokens/s"
    )
    if not machine.tpu:
        said = "communication is by formula (launch/estimate.py), with NVLink between all devices"
        if devices > machines.TOGETHER:
            said += f"; between machines of {machines.TOGETHER} it takes longer"
        yield said


def _splashes(experiment: Experiment, mesh: jax.sharding.Mesh) -> bool:
    """Whether the kernel of TPUs takes this model's attention."""
    config, length = experiment.model, experiment.data.length
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    plain = all(
        stack.position.kind not in ("relative", "alibi")
        and not stack.attention.dropout
        and config.head_width(stack) % 64 == 0
        for stack in stacks
    )
    causal = len(stacks) == 1 and config.decoder is not None and experiment.data.objective.kind == "causal"
    return plain and causal and length % 128 == 0 and mesh.shape["sequence"] == 1


def _placed(array: Any, placement: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placement)


if __name__ == "__main__":
    command.run(main, recipe.check_override)
