"""Learning rates over time, as optax schedules: functions of the number of updates already made.

Below, s = that number + 1 is the update about to be made. So the first one has a rate above zero, unless it is the
only one and falls to zero at once, and update `steps` has the last rate. All rise linearly to the peak over `warmup`
updates, `peak * s / warmup`.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from transformer.training.config import Optimizer


def build(config: Optimizer, steps: int) -> optax.Schedule:
    """The schedule that `config.schedule` names.

    After the warm-up, with t = s - warmup:

    *   constant: `peak`.
    *   inverse_sqrt: `peak * sqrt(warmup / s)`; with `peak = (width * warmup) ** -0.5` it is equation 3 of Vaswani et
        al. 2017 (arXiv:1706.03762).
    *   cosine: `peak * (final + (1 - final) * (1 + cos(pi * t / (steps - warmup))) / 2)` (Loshchilov and Hutter 2017,
        arXiv:1608.03983, equation 5, one period).
    *   warmup_stable_decay: `peak`, then over the last `decay * steps` updates linearly to `final * peak` (Hu et al.
        2024, arXiv:2404.06395, section 4; the linear fall as in Haegele et al. 2024, arXiv:2405.18392).

    Args:
      config: its `schedule`, `learning_rate`, `warmup`, `decay` and `final` are read.
      steps: the number of updates in the whole run.

    Returns:
      A function from the number of updates made to the learning rate.

    Raises:
      ValueError: if the warm-up and the fall are longer than the run.
    """
    peak, warmup = config.learning_rate, config.warmup
    fall = round(config.decay * steps) if config.schedule == "warmup_stable_decay" else 0
    if warmup + fall > steps:
        raise ValueError(f"steps={steps} is too short for warmup={warmup} and a fall of {fall}: shorten one of them")
    boundaries, pieces = [], []
    if warmup:
        pieces.append(optax.linear_schedule(0.0, peak, warmup))
        boundaries.append(warmup)
    if config.schedule == "cosine" and steps > warmup:
        pieces.append(optax.cosine_decay_schedule(peak, steps - warmup, alpha=config.final))
    elif config.schedule == "inverse_sqrt":
        pieces.append(lambda t: peak * jnp.sqrt(warmup / (jnp.maximum(t, 0) + warmup)))
    else:
        pieces.append(optax.constant_schedule(peak))
    if fall:
        pieces.append(optax.linear_schedule(peak, config.final * peak, fall))
        boundaries.append(steps - fall)
    joined = optax.join_schedules(pieces, boundaries)
    return lambda count: joined(count + 1)
