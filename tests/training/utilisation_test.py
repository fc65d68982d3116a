import jax.numpy as jnp
import pytest

from transformer.training import utilisation


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks_by_kind(kind, flops):
    assert utilisation.peak(kind) == flops


def test_utilisation_is_a_share():
    assert utilisation.utilisation(30.0, 120.0) == 0.25
    assert utilisation.utilisation(30.0, None) is None
    with pytest.raises(ValueError, match="peak=0"):
        utilisation.utilisation(30.0, 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_peak_can_be_measured(dtype):
    # Between a pocket calculator and any one device of today.
    assert 1e6 < utilisation.measure_peak(dtype, side=64, repeats=2) < 1e16
