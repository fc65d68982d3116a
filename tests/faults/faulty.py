"""`experiments.train` in which something goes wrong: FAULT=KIND:STEP, in the process FAULT_PROCESS if that is set.

What happens when the batch of a step is read: `hang`, `raise`, `nan` (its weights), or a signal by its name; and
`flip`, a bit of the first parameter in the last device's copy after that step.
"""

import os
import runpy
import signal
import time

import jax
import numpy as np

from transformer.data import iteration
from transformer.training import parallel

KIND, STEP = os.environ["FAULT"].split(":")[0], [int(step) for step in os.environ["FAULT"].split(":")[1].split(",")]
read, train = iteration.Batches.__next__, parallel.Jit.train


def here():
    return int(os.environ.get("FAULT_PROCESS", jax.process_index())) == jax.process_index()


def faulty_read(self):
    step, batch = self.step, read(self)
    if step not in STEP or not here():
        return batch
    if KIND == "hang":
        time.sleep(600)
    if KIND == "raise":
        raise RuntimeError("something broke")
    if KIND == "nan":
        return batch | {"weights": batch["weights"] * np.float32(np.nan)}
    if KIND.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, KIND))
    return batch


def faulty_train(self, state, batch):
    state, metrics = train(self, state, batch)
    if KIND == "flip" and int(state.step) in STEP:
        leaves, tree = jax.tree.flatten(state.params)
        copies = [np.array(shard.data) for shard in leaves[0].addressable_shards]
        copies[-1].view(np.uint32).flat[0] ^= 1
        devices = [shard.device for shard in leaves[0].addressable_shards]
        placed = [jax.device_put(copy, device) for copy, device in zip(copies, devices, strict=True)]
        leaves[0] = jax.make_array_from_single_device_arrays(leaves[0].shape, leaves[0].sharding, placed)
        state = state.replace(params=tree.unflatten(leaves))
    return state, metrics


iteration.Batches.__next__, parallel.Jit.train = faulty_read, faulty_train
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
