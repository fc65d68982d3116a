"""Plans of small recipes; what needs TPUs' compiler is skipped where libtpu is not installed."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from experiments.experiment import Experiment
from launch import machines
from launch.estimate import estimate
from transformer.training.meshes import parse

# A plan, and beside it what a run of the same step on the same devices holds and sends.
CHECK = """
import json, sys
from launch import machines
machine = machines.build("cpu:4")
import jax, numpy as np
from experiments import running
from experiments.experiment import Experiment
from launch import collectives, plan
from transformer.training import meshes, parallel, sharding
import importlib.util
spec = importlib.util.spec_from_file_location("recipe", sys.argv[1])
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
experiment = Experiment.build(recipe.get_config())
mesh = meshes.build(sys.argv[2], machine.devices)
compiled, abstract = plan.compile_step(experiment, machine, mesh)
planned = compiled.memory_analysis()
steps = running.Steps.of(experiment)
runner = parallel.build("jit", steps.train, steps.evaluation, mesh)
state = runner.init_state(steps.init)
batch = {name: np.ones(array.shape, array.dtype) for name, array in plan.shapes(experiment).items()}
batch = runner.place_batch(batch)
held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves((state, batch))
    for shard in leaf.addressable_shards
    if shard.device == jax.devices()[0]
)
explained = sum(each.bytes for each in sharding.explain(mesh, abstract))
print(json.dumps({
    "planned": planned.argument_size_in_bytes, "held": held, "explained": explained,
    "temporaries": planned.temp_size_in_bytes, "sent": collectives.read(compiled.as_text(), 4),
    "finite": bool(runner.train(state, batch)[1]["finite"]),
}))
"""


@pytest.fixture
def run(environment):
    root = str(machines.__file__).rsplit("/launch/", 1)[0]

    def run(*command):
        options = {"cwd": root, "env": environment(None), "capture_output": True, "text": True, "timeout": 300}
        return subprocess.run([sys.executable, *command], **options)

    return run


def test_a_plan_is_what_the_run_then_holds(tiny, run):
    done = run("-c", CHECK, str(tiny / "recipe.py"), "data=2,fsdp=2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"] == found["held"] and found["finite"]
    assert 0 < found["held"] - found["explained"] < 4000  # the batch
    assert found["temporaries"] > 0
    assert {"all-gather", "all-reduce"} <= {kind for kind, *_ in found["sent"]}


@pytest.mark.slow
def test_what_is_printed(tiny, run):
    arguments = (f"--config={tiny / 'recipe.py'}", "--topology=h100:4", "--search", "--config.training.accumulation=1")
    done = run("-m", "launch.plan", *arguments)
    assert done.returncode == 0, done.stderr
    for words in (
        "h100:4, mesh ",
        "optimizer state",
        "it fits",
        "sent by each",
        "a step takes at least",
        "989 TFLOP/s",
        "communication is by formula",
        "collective, of CPUs",
    ):
        assert words in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")
def test_gpt3_on_a_pod(run):
    arguments = ("--topology=v5p:8x8x16", "--mesh=fsdp=128,tensor=8")
    done = run("-m", "launch.plan", "--config=experiments/configs/gpt3_175b.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "it fits" in done.stdout and "reduce-scatter" in done.stdout


MISTAKES = (
    ([], "--topology is missing"),
    (["--topology=v5p"], "--topology=v5p: write KIND:SHAPE"),
    (["--topology=m1:4"], "--topology=m1:4: write KIND:SHAPE"),
    (["--topology=cpu:0"], "--topology=cpu:0: write KIND:SHAPE"),
    (["--topology=cpu:2", "--mesh=data=4"], "is of 4 devices, but there are 2"),
    (["--topology=cpu:2", "--search"], "--search weighs what is known of a chip"),
    (["--topology=h100:2", "--search", "--mesh=data=2"], "--search looks for a mesh"),
    (["--topology=cpu:3"], "batch_size=8 must be a multiple of 3 devices"),
)


def test_what_cannot_work_is_one_line(scripts, tiny):
    requests = [["launch.plan", f"--config={tiny / 'recipe.py'}", *arguments] for arguments, _ in MISTAKES]
    for done, (_, message) in zip(scripts(requests, devices=None), MISTAKES, strict=True):
        assert done.returncode == 2 and message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def of(tiny, **model):
    spec = importlib.util.spec_from_file_location("recipe", tiny / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    experiment = Experiment.build(recipe.get_config())
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **model))


def test_logits_are_counted_as_they_are_formed(tiny):
    def logits(words, vocab, length, **training):
        one = of(tiny, vocab=vocab, remat="full", length=length)
        one = dataclasses.replace(one, data=dataclasses.replace(one.data, length=length))
        one = dataclasses.replace(one, training=dataclasses.replace(one.training, accumulation=1, **training))
        activations = estimate(one, parse(words, 4), 1e6, machines.CHIPS["h100"]).activations
        positions = 8 * length / 4
        return (activations - positions * 8 * 4) / vocab / 4  # what is kept of one layer is its float32 input

    assert logits("data=4", 300, 16) == pytest.approx(32)  # few: all at one time
    assert logits("data=4", 50_000, 4096) == pytest.approx(1024)  # an eighth of a device's
    assert logits("data=4", 50_000, 1024) == pytest.approx(512)  # but no fewer than pay
    assert logits("data=4", 50_000, 4096, loss_chunk=1024) == pytest.approx(256)


def test_the_estimate_follows_what_is_known_of_each_axis(tiny):
    chip = machines.CHIPS["h100"]

    def at(words, **model):
        return estimate(of(tiny, **model), parse(words, 4), 1e6, chip)

    one = estimate(of(tiny), parse("data=1", 1), 1e6, chip)
    assert one.network == {} and one.compute == pytest.approx(4 * at("data=4").compute)
    assert set(at("data=4").network) == {"data"} and set(at("fsdp=2,tensor=2").network) == {"fsdp", "tensor"}
    full, none = at("data=4", remat="full"), at("data=4")
    assert full.activations < at("data=4", remat="dots").activations < none.activations
    assert full.compute == pytest.approx(none.compute * 4 / 3)
    # Of 3 passes, the products of attention make 4 H K T / 2 in each layer, H K being 8 and T 16, of 2 N + that.
    attention, matrices = 4 * 8 * 17 / 2, 2 * (4 * 8 * 8 + 2 * 8 * 32 + 8 * 300)
    share = attention / (attention + matrices) / 3
    assert at("data=4", remat="dots").compute == none.compute
    assert at("data=4", remat="dots_without_batch").compute == pytest.approx(none.compute * (1 + share), rel=1e-3)
    assert at("data=2,sequence=2").activations == pytest.approx(at("data=4").activations, rel=0.5)
    assert jax.device_count() == 1  # nothing was made up for it
