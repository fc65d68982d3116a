"""Everything that a training step reads and writes. No leaf has a device axis."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class State:
    """The state of training.

    Attributes:
      step: int32 scalar, the number of batches consumed; data and dropout are functions of it.
      params: the model's parameters.
      opt_state: the optimizer's state.
      ema: a moving average of the parameters in float32, or None.
      health: what tells a bad step: `norm`, the running mean of good steps' gradient norms, float32; `good`, how many
        there were; and `bad`, how many bad ones came since the last good one; int32 scalars.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any | None
    health: dict[str, jax.Array]


def create(params: Any, optimizer: optax.GradientTransformation, ema: float | None = None) -> State:
    """The state before the first step.

    Args:
      params: the model's initial parameters.
      optimizer: as from `optimizers.build`.
      ema: the decay of the moving average; None keeps none.
    """
    average = None if ema is None else jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
    health = {"norm": jnp.zeros(()), "good": jnp.zeros((), jnp.int32), "bad": jnp.zeros((), jnp.int32)}
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, health)


def average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """`d * ema + (1 - d) * params` with `d = min(decay, (1 + step) / (10 + step))`, so early averages forget the
    initial parameters soon.

    Args:
      ema: the average so far, float32.
      params: the parameters after this step.
      step: int32 scalar, steps before this one.
      decay: the limit of d.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: d * a + (1.0 - d) * p.astype(jnp.float32), ema, params)
