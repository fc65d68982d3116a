"""Arrays that lie on several devices, and on those of several processes, so this file also runs itself as programs."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.faults.runs import port
from transformer.training import Checkpoints, State, distributed
from transformer.training.restoring import load_params

ROOT = Path(__file__).parents[2]


def plain():
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(8, 12)).astype(np.float32), "bias": np.arange(4, dtype=np.float32)}
    health = {"norm": np.float32(2), "good": np.int32(3), "bad": np.int32(0)}
    return State(np.int32(5), params, {"mu": {"kernel": params["kernel"] * 2}}, None, health)


def laid(spec):
    """How the state lies on all devices: kernels by `spec`, the rest everywhere."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec if leaf.ndim == 2 else P()), plain())


def place(state, shardings):
    return jax.tree.map(
        lambda leaf, where: jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index]), state, shardings
    )


def main(workdir):
    distributed.initialize()
    state, rows, columns = plain(), laid(P("data")), laid(P(None, "data"))
    with Checkpoints(workdir) as checkpoints:
        saved = place(state, rows)
        checkpoints.save(saved, {"a": 1})
        step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
        jax.block_until_ready(step(saved))  # as the next training step, which takes the memory
        restored = checkpoints.restore(state, shardings=columns)
        assert restored.step == 5 and restored.recipe == {"a": 1}
        for leaf, value, where in zip(*map(jax.tree.leaves, (restored.state, state, columns)), strict=True):
            assert leaf.sharding == where
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(shard.data, value[shard.index])
        checkpoints.save(place(state.replace(step=np.int32(6)), columns), {"a": 1})
    print("equal")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_process_writes_and_reads_its_own_part(tmp_path, processes, environment):
    variables = environment(4 // processes)
    started = []
    if processes > 1:
        variables |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port()}", "JAX_NUM_PROCESSES": str(processes)}
    for index in range(processes):
        own = variables | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {})
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT, "env": own}
        started.append(subprocess.Popen([sys.executable, __file__, str(tmp_path)], **options))
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    assert all(text.endswith("equal\n") for text in said)
    loaded = load_params(tmp_path)  # in a process that has one device
    assert loaded.step == 6
    jax.tree.map(np.testing.assert_array_equal, loaded.state, plain().params)


if __name__ == "__main__":
    main(sys.argv[1])
