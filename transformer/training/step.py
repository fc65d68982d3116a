"""One training step and one evaluation step, as pure functions.

Loss functions return sums, never means. Sums over micro-batches and devices are divided once, by the global count, so
every token weighs the same however ragged the batch and however many devices share it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer.training.state import State, average

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]
LossFunction = Callable[[Any, Batch, jax.Array | None], tuple[jax.Array, Sums]]

SETTLED = 16  # good steps after which their gradients' mean norm says what is usual
WINDOW = 128  # steps over which it is taken


def train_step(
    state: State,
    batch: Batch,
    *,
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    accumulation: int = 1,
    seed: int = 0,
    ema: float | None = None,
    spike: float | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """Takes one step on one batch.

    The step counts batches, so it always advances. When the step is bad, or nothing in the batch counts, parameters,
    optimizer state and average stay as they were: the last good state survives, and the next batch is tried. Bad is a
    loss, gradient or update that is not finite, or a gradient norm above `spike` times the usual one.

    Args:
      state: the state before.
      batch: arrays `[B, ...]`; under `pmap` this device's rows.
      loss_fn: `(params, batch, key) -> (loss, sums)`, float32 sums over the batch; `sums` holds at least `count`, what
        to divide by, and `nats`, the negative log-likelihood without smoothing or other terms.
      optimizer: as from `optimizers.build`.
      axis_name: the mapped axis under `pmap`; None when the batch is the global one, as under `jit` over a mesh.
      accumulation: micro-batches; row i is in micro-batch `i % accumulation`.
      seed: of dropout; each step, device and micro-batch has a key of its own.
      ema: decay of the moving average, where the state keeps one.
      spike: how many times the running mean of the gradient's norm is too much; None: any is fine.

    Returns:
      The state after, and float32 scalars: `loss`, `nats` and every other sum, each divided by the count; `count`;
      `grad_norm` before clipping, `param_norm`, `update_norm`; `learning_rate` where the optimizer tells it; `bad`, how
      many bad steps there were in a row until this one; and `finite`, a boolean.

    Raises:
      ValueError: if the rows cannot be shared equally among the micro-batches, or `ema` does not fit the state.
    """
    if (ema is None) != (state.ema is None):
        raise ValueError(
            f"ema={ema} does not fit a state {'with' if ema is None else 'without'} an average: create it so"
        )
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    totals = _accumulate(loss_fn, state.params, batch, key, accumulation)
    if axis_name is not None:
        totals = jax.lax.psum(totals, axis_name)
    (loss, sums), gradients = totals
    inverse = jnp.where(sums["count"] > 0, 1.0 / sums["count"], 0.0)
    gradients = jax.tree.map(lambda g: g * inverse, gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    norms = {"grad_norm": optax.tree.norm(gradients), "update_norm": optax.tree.norm(updates)}
    finite = jnp.isfinite(loss) & jnp.isfinite(norms["grad_norm"]) & jnp.isfinite(norms["update_norm"])
    good = finite & ~_spikes(state.health, norms["grad_norm"], spike)

    params = optax.apply_updates(state.params, updates)
    mean = None if state.ema is None else average(state.ema, params, state.step, ema)
    candidate = State(state.step + 1, params, opt_state, mean, _healthy(state.health, norms["grad_norm"]))
    kept = state.replace(step=state.step + 1, health=state.health | {"bad": state.health["bad"] + ~good})
    chosen = jax.tree.map(lambda new, old: jnp.where(good & (inverse > 0), new, old), candidate, kept)

    metrics = {name: total * inverse for name, total in sums.items() if name != "count"}
    metrics |= {"loss": loss * inverse, "count": sums["count"], "finite": finite, **norms}
    metrics["bad"] = jnp.where(good, 0, chosen.health["bad"])
    metrics["param_norm"] = optax.tree.norm(chosen.params)
    rate = optax.tree_utils.tree_get(opt_state, "learning_rate")
    return chosen, metrics if rate is None else metrics | {"learning_rate": rate}


def evaluation_step(params: Any, batch: Batch, *, loss_fn: LossFunction, axis_name: str | None = None) -> Sums:
    """The sums of `loss_fn` without dropout (its key is None), over all devices."""
    _, sums = loss_fn(params, batch, None)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _spikes(health: dict[str, jax.Array], norm: jax.Array, spike: float | None) -> jax.Array:
    """Whether a gradient's norm is far above what is usual, once that is known."""
    return jnp.asarray(False) if spike is None else (health["good"] >= SETTLED) & (norm > spike * health["norm"])


def _healthy(health: dict[str, jax.Array], norm: jax.Array) -> dict[str, jax.Array]:
    """After a good step: the mean of all norms so far, later one that forgets over `WINDOW` steps."""
    good = health["good"] + 1
    mean = health["norm"] + (norm - health["norm"]) / jnp.minimum(good, WINDOW)
    return {"norm": mean, "good": good, "bad": jnp.zeros_like(health["bad"])}


def _accumulate(loss_fn: LossFunction, params: Any, batch: Batch, key: jax.Array, accumulation: int) -> Any:
    """`((loss, sums), gradients)` summed over micro-batches, in float32."""

    def one(micro: Batch, index: jax.Array | int) -> Any:
        value, gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, micro, jax.random.fold_in(key, index))
        return jax.tree.map(lambda x: x.astype(jnp.float32), (value, gradients))

    if accumulation == 1:
        return one(batch, 0)
    rows = len(jax.tree.leaves(batch)[0])
    if rows % accumulation:
        raise ValueError(f"accumulation={accumulation} must divide the {rows} rows of a device's batch: change either")
    # Strided, not contiguous: rows that lie on one device stay on it, so a sharded batch is not moved.
    micros = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(totals: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, totals, one(*item)), None

    first = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micros), 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    return jax.lax.scan(add, zeros, (micros, jnp.arange(accumulation)))[0]
