"""Activations on meshes; those of several devices are tested where this file runs itself with two."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from transformer.ops import attention, sharding
from transformer.ops.masks import Mask

POSITIONS, KEYS, HEADS, WIDTH = 16, 18, 2, 4


def mesh(name):
    return jax.make_mesh((jax.device_count(),), (name,), axis_types=(AxisType.Auto,))


def attend(queries, **mask):
    """The last so many of the positions look at all of them; behind them are more keys, as in a cache."""
    random = np.random.default_rng(queries)
    query, key, value = (
        jnp.asarray(random.normal(size=(1, length, HEADS, WIDTH)), jnp.float32) for length in (queries, KEYS, KEYS)
    )
    mask = Mask(causal=True, offset=jnp.asarray([POSITIONS - queries], jnp.int32), **mask)
    # A function of its own each time, as programs are kept by what they were made of.
    return jax.jit(lambda *arrays: attention.attend(*arrays, mask=mask))(query, key, value)


def positions_that_do_not_divide_are_whole_on_every_device():
    for queries, window in ((1, 0), (15, 0), (15, 4), (16, 0), (16, 4)):
        expected = attend(queries, window=window)
        with jax.set_mesh(mesh("sequence")):
            found = attend(queries, window=window)
        for shard in found.addressable_shards:  # each device has a copy, of which NumPy would see the first
            said = f"{queries} queries, window {window}, {shard.device}"
            np.testing.assert_allclose(shard.data, expected[shard.index], atol=1e-6, err_msg=said)


def a_mesh_whose_axes_have_other_names_leaves_arrays_as_they_are():
    built = mesh("mine")
    rows = jax.sharding.NamedSharding(built, jax.sharding.PartitionSpec("mine"))
    with jax.set_mesh(built):
        x = jax.device_put(jnp.zeros((4, 2)), rows)
        assert jax.jit(lambda x: sharding.constrain(x, "rows", None))(x).sharding == rows
        assert sharding.mesh_sizes() == {}


def test_on_two_devices(environment):
    done = subprocess.run([sys.executable, __file__], env=environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    assert jax.device_count() == 2
    jax.config.update("jax_disable_most_optimizations", True)
    positions_that_do_not_divide_are_whole_on_every_device()
    a_mesh_whose_axes_have_other_names_leaves_arrays_as_they_are()
