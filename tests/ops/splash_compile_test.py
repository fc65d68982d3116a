"""The TPU kernel, compiled for a machine that is not here, by the compiler that libtpu brings."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each program is attention as a model on TPUs asks for it: the entry picks the kernel by itself.
COMPILE = """
import jax
from launch import machines
chip = machines.build("v5e:2x2").devices[0]
import jax.numpy as jnp
from transformer.ops import attention
from transformer.ops.masks import Mask

jax.default_backend = lambda: "tpu"
place = jax.sharding.SingleDeviceSharding(chip)
masks = {"open": {}, "causal": {"causal": True}, "window": {"causal": True, "window": 100}}
for dtype in ("float32", "bfloat16"):
    for heads, groups in ((4, 4), (4, 2)):
        for name, settings in masks.items():
            def loss(query, key, value):
                mixed = attention.attend(query, key, value, mask=Mask(**settings), softcap=30.0)
                return mixed.astype(jnp.float32).sum()

            arrays = [jax.ShapeDtypeStruct((2, 256, n, 64), dtype, sharding=place) for n in (heads, groups, groups)]
            text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().as_text()
            print(dtype, heads, groups, name, text.count("tpu_custom_call"))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")
def test_the_kernel_and_its_gradient_compile_for_a_tpu():
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 12 and all(int(line.split()[-1]) >= 2 for line in lines), done.stdout  # forward and backward
