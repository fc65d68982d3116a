"""How much of the hardware's arithmetic a run uses: model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311,
appendix B), the FLOPs per second that the model's mathematics needs over those that the devices could do."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

# Part of `device_kind`, in lower case -> bfloat16 FLOP/s of one device, dense. The first match counts.
# NVIDIA: the data sheet of each product. TPU: cloud.google.com/tpu/docs/system-architecture-tpu-vm, a page per version.
PEAKS = (
    ("a100", 312e12),
    ("h100 pcie", 756e12),
    ("h100", 989e12),
    ("h200", 989e12),
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5p", 459e12),
    ("tpu v5", 459e12),
    ("tpu v6 lite", 918e12),
    ("tpu v6e", 918e12),
)


def peak(kind: str | None = None) -> float | None:
    """bfloat16 FLOP/s of one device by its kind; None when not listed, as for CPUs.

    Args:
      kind: as in `jax.Device.device_kind`; None asks the first device.
    """
    kind = jax.devices()[0].device_kind if kind is None else kind
    return next((flops for part, flops in PEAKS if part in kind.lower()), None)


def measure_peak(dtype: jnp.dtype = jnp.float32, side: int = 2048, repeats: int = 3) -> float:
    """FLOP/s of the best of a few square matrix products on the first device, `2 * side ** 3` each.

    Args:
      dtype: of the factors; the product is accumulated in float32.
      side: of the matrices.
      repeats: products timed.
    """
    x = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def utilisation(flops_per_second: float, peak: float | None) -> float | None:
    """The share of the peak that is used; None where no peak is known.

    Args:
      flops_per_second: of the model's mathematics, over all devices.
      peak: of all devices together.

    Raises:
      ValueError: if the peak is not positive.
    """
    if peak is None:
        return None
    if peak <= 0:
        raise ValueError(f"peak={peak} must be positive: take it from `peak`, times the devices, or `measure_peak`")
    return flops_per_second / peak
