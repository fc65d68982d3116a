"""Copies need several devices, so this file also runs itself as a program that has four."""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.training import drift, exits

SHAPE, AXES = (2, 2), ("data", "tensor")
SPECS = {"whole": P(), "halves": P("tensor"), "quarters": P("data", "tensor"), "columns": P(None, ("tensor",))}
TYPES = {"whole": np.float32, "halves": jnp.bfloat16, "quarters": np.int32, "columns": np.bool_}


def state():
    """Arrays that lie on four devices in every way, of several types."""
    mesh = jax.make_mesh(SHAPE, AXES, axis_types=(AxisType.Auto,) * 2)
    random = np.random.default_rng(0)
    values = {name: random.normal(size=(4, 6)).astype(TYPES[name]) for name in SPECS}
    return {name: jax.device_put(value, NamedSharding(mesh, SPECS[name])) for name, value in values.items()}


def flipped(array, device, bit):
    """The array after a bit of one device's copy was flipped."""
    copies = [np.array(shard.data) for shard in array.addressable_shards]
    copies[device].reshape(-1).view(np.uint8)[bit // 8] ^= np.uint8(1 << bit % 8)
    places = [shard.device for shard in array.addressable_shards]
    placed = [jax.device_put(copy, place) for copy, place in zip(copies, places, strict=True)]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, placed)


def judged(watch, tree):
    """What is said of a state, "" if all is well."""
    try:
        watch.check(np.asarray(watch.sums(tree)), 7)
    except exits.Drifted as error:
        return str(error)
    return ""


def main():
    tree = state()
    watch = drift.Watch(tree)
    found = {"intact": judged(watch, tree)}
    for name, array in tree.items():
        bits = [0] if TYPES[name] is np.bool_ else [0, 7, 8 * array.addressable_shards[1].data.nbytes - 1]
        found[name] = [judged(watch, tree | {name: flipped(array, 1, bit)}) for bit in bits]
    big = jax.device_put(np.ones((25_000_000,), np.float32), tree["whole"].sharding)
    watch = drift.Watch([big])
    watch.sums([big]).block_until_ready()
    begin = time.perf_counter()
    watch.sums([big]).block_until_ready()
    print(json.dumps(found | {"seconds": time.perf_counter() - begin}))


@pytest.fixture(scope="module")
def found(environment):
    options = {"capture_output": True, "text": True, "timeout": 120, "env": environment(4)}
    process = subprocess.run([sys.executable, __file__], **options)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_a_bit_in_one_copy_is_found_wherever_it_flips_and_named(found):
    assert found["intact"] == ""
    for name in ("whole", "halves", "columns"):
        for said in found[name]:
            assert said.startswith(f"copies of {name} differ after step 7: device 1 of process 0 against device ")
    assert found["whole"][0].count("device") > found["halves"][0].count("device")  # three others against one


def test_what_no_other_device_holds_is_not_compared(found):
    assert found["quarters"] == ["", "", ""]


if __name__ == "__main__":
    main()
