"""A learned linear map between any number of trailing axes, as one two-dimensional matrix product."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer.ops.products import matmul
from transformer.ops.sharding import mesh_sizes

if TYPE_CHECKING:
    from transformer.models.config import Init, ModelConfig


def standard_deviation(init: Init, inputs: int, outputs: int) -> float:
    """Of a matrix's entries at step 0; Xavier is Glorot and Bengio 2010, equation 16, as a normal distribution."""
    factor = {"normal": 1.0, "fan_in": inputs**-0.5, "xavier": math.sqrt(2 / (inputs + outputs))}[init.kind]
    return init.scale * factor


def project(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    inputs: int = 1,
    dtype: jnp.dtype | None = None,
    transposed: bool = False,
) -> jax.Array:
    """Contract the last `inputs` axes of x with the first ones of kernel: `[..., I] x [I, O] -> [..., O]`.

    Everything is flattened to two dimensions first: the weight gradient of a `[B, T, D]` product is up to twice as slow
    on CPUs as that of a `[B * T, D]` one. Not so on a mesh, where rows and positions may both be shared among devices,
    and an axis made of them could not be. `dtype` is that of the sums, None that of x;
    `transposed` says that kernel is `[*outputs, I]`.
    """
    leading, width = x.shape[: x.ndim - inputs], math.prod(x.shape[x.ndim - inputs :])
    if mesh_sizes():
        out = jnp.tensordot(
            x, jnp.moveaxis(kernel, -1, 0) if transposed else kernel, inputs, preferred_element_type=dtype
        )
    else:
        outputs = kernel.shape[:-1] if transposed else kernel.shape[inputs:]
        matrix = kernel.reshape((-1, width) if transposed else (width, -1))
        out = matmul(x.reshape(-1, width), matrix, dtype, transposed=transposed).reshape(*leading, *outputs)
    return out if bias is None else out + bias


class Projection(nn.Module):
    """`[..., *inputs] -> [..., *outputs]` with parameters `kernel [*inputs, *outputs]` and `bias [*outputs]`.

    What is given `turned [*outputs, I]` for a kernel (see `decoding.loop.prepare`) multiplies with that.

    Attributes:
      multiplier: of the initial standard deviation that `config.init` gives.
    """

    config: ModelConfig
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    use_bias: bool = False
    multiplier: float = 1.0

    def setup(self):
        fans = math.prod(self.inputs), math.prod(self.outputs)
        deviation = standard_deviation(self.config.init, *fans) * self.multiplier
        dtype = jnp.dtype(self.config.param_dtype)
        self.turned = self.get_variable("params", "turned")
        if self.turned is None:
            self.kernel = self.param("kernel", nn.initializers.normal(deviation), (*self.inputs, *self.outputs), dtype)
        else:
            self.kernel = jnp.moveaxis(self.turned, -1, 0).reshape(*self.inputs, *self.outputs)
        self.bias = self.param("bias", nn.initializers.zeros, self.outputs, dtype) if self.use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        bias = None if self.bias is None else self.bias.astype(dtype)
        kernel, turned = (self.kernel, False) if self.turned is None else (self.turned, True)
        return project(x.astype(dtype), kernel.astype(dtype), bias, inputs=len(self.inputs), transposed=turned)
