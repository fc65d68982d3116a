"""Optimizers by name, each right on parameters that are stacked over layers `[L, ...]`.

Every one is the same chain; only the direction differs:

    clip by global norm -> direction -> + weight decay * matrices -> * -learning rate

What an optimizer does to a stack is what it would do to each layer alone, and in a layer to each expert: Adafactor's
factored moments, update clipping and parameter scale, and Muon's orthogonalisation, never mix them. (The global norm is
of all gradients, as usual.)

Weight decay falls on matrices: kernels and, as in GPT-2 and BERT, the token, position and type tables. It spares
biases, norm scales and relative-position biases, stacked or not.

Moments are kept in float32 whatever the parameters' type, and gradients are taken to float32 first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from transformer.training import schedules
from transformer.training.config import Optimizer
from transformer.training.parameters import HEADS, Parameter, map_named

MUON_RMS = 0.2  # root mean square of a Muon update: that of AdamW's, so one learning rate serves both
FACTOR_FROM = 128  # Adafactor factors matrices with both sides at least this long


def build(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer that `config.name` names, its schedule and clipping included.

    *   adamw: Loshchilov and Hutter 2019 (arXiv:1711.05101), decay multiplied by the learning rate.
    *   adafactor: Shazeer and Stern 2018 (arXiv:1804.04235) without momentum; the learning rate is relative to each
        parameter's root mean square (algorithm 5). Heads count as one matrix: `[D, H K]` and `[H K, D]`.
    *   lion: Chen et al. 2023 (arXiv:2302.06675), algorithm 2.
    *   muon: Jordan 2024 on the blocks' kernels, scaled as in Liu et al. 2025 (arXiv:2502.16982), equation 4; AdamW on
        all else. See `muon_dimensions` for which axes make a matrix.
    *   sgd: with heavy-ball momentum.

    Args:
      config: the choice and its numbers.
      steps: updates in the whole run, for the schedule.

    Returns:
      An optax transformation for trees with the paths that `parameters` describes.
    """
    links = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    links.append(DIRECTIONS[config.name](config))
    if config.weight_decay:
        links.append(optax.add_decayed_weights(config.weight_decay, mask=decayed))
    links.append(scale_by_learning_rate(schedules.build(config, steps)))
    return in_float32(optax.chain(*links))


def decayed(params: Any) -> Any:
    """True where weight decay falls, for a tree of arrays or shapes."""
    return map_named(lambda parameter, _: parameter.matrix, params)


def muon_dimensions(parameter: Parameter) -> MuonDimensionNumbers | None:
    """The axes that make up the matrices Muon orthogonalises; None where AdamW serves.

    The axes of layers and experts are batch axes. Query, key and value: each head's `[D, K]` on its own, because each
    head forms its scores and values from its slice alone, and orthogonalising the heads together would tie one's update
    to another's gradient. Output: `[H K, D]` as one, because heads add up in one residual. Kernels outside of blocks
    (read-out, pooler) are next to the embeddings or the loss, where Muon's geometry does not hold.
    """
    if not (parameter.stacked and parameter.matrix):
        return None
    if parameter.names[-2] in HEADS:
        return MuonDimensionNumbers(reduction_axis=(1,), output_axis=(3,))
    last = len(parameter.shape) - 1
    return MuonDimensionNumbers(reduction_axis=tuple(range(parameter.alike, last)), output_axis=(last,))


class RateState(NamedTuple):
    """Updates made, and the learning rate of the last one."""

    count: jax.Array
    learning_rate: jax.Array


def scale_by_learning_rate(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies by `-schedule(count)` and keeps the rate in its state, where it can be read and logged."""

    def init(params: Any) -> RateState:
        del params
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: RateState, params: Any = None) -> tuple[Any, RateState]:
        del params
        rate = jnp.asarray(schedule(state.count), jnp.float32)
        return jax.tree.map(lambda u: -rate * u, updates), RateState(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Shows gradients and parameters to `inner` as float32."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return inner.update(cast(updates), state, cast(params))

    return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)


def per_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on every layer and expert of every parameter by itself, heads' matrices laid side by side.

    For transformations that look at the shape of a parameter or take statistics over it. The state is a tree like the
    parameters with `inner`'s state at each leaf, stacked over layers and experts like the leaf.
    """

    def init(params: Any) -> Any:
        def one(parameter: Parameter, leaf: jax.Array) -> Any:
            flat = _flatten(parameter, leaf)
            return _each(parameter, inner.init)(flat)

        return map_named(one, params)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def one(parameter: Parameter, leaf: jax.Array, inner_state: Any, weight: jax.Array) -> _Result:
            flat = _flatten(parameter, leaf), inner_state, _flatten(parameter, weight)
            out, new = _each(parameter, inner.update)(*flat)
            return _Result(out.reshape(leaf.shape), new)

        results = map_named(one, updates, state, params)
        pick = [jax.tree.map(lambda r, i=i: r[i], results, is_leaf=lambda r: isinstance(r, _Result)) for i in (0, 1)]
        return pick[0], pick[1]

    return optax.GradientTransformation(init, update)


class _Result(NamedTuple):
    update: jax.Array
    state: Any


def _each(parameter: Parameter, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function mapped over the axes that count parameters alike."""
    for _ in range(parameter.alike):
        function = jax.vmap(function)
    return function


def _flatten(parameter: Parameter, leaf: jax.Array) -> jax.Array:
    return leaf.reshape(*leaf.shape[: parameter.alike], *parameter.matrix_shape)


def _adamw(config: Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)


def _adafactor(config: Optimizer) -> optax.GradientTransformation:
    del config
    links = (
        optax.scale_by_factored_rms(min_dim_size_to_factor=FACTOR_FROM),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return per_matrix(optax.chain(*links))


def _lion(config: Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_lion(config.beta1, config.beta2)


def _muon(config: Optimizer) -> optax.GradientTransformation:
    def dimensions(tree: Any) -> Any:
        return map_named(lambda parameter, _: muon_dimensions(parameter), tree)

    def labels(tree: Any) -> Any:
        return map_named(lambda parameter, _: "adamw" if muon_dimensions(parameter) is None else "muon", tree)

    orthogonal = optax.chain(
        scale_by_muon(beta=config.momentum, weight_dimension_numbers=dimensions),
        optax.stateless(lambda updates, _: map_named(_scale_orthogonal, updates)),
    )
    return optax.partition({"muon": orthogonal, "adamw": _adamw(config)}, labels)


def _scale_orthogonal(parameter: Parameter, update: jax.Array) -> jax.Array:
    """To a root mean square of MUON_RMS: a matrix [m, n] with orthonormal rows or columns has `1 / sqrt(max(m, n))`."""
    dimensions = muon_dimensions(parameter)
    sides = [math.prod(update.shape[axis] for axis in axes) for axes in dimensions]
    return MUON_RMS * math.sqrt(max(sides)) * update


def _sgd(config: Optimizer) -> optax.GradientTransformation:
    return optax.trace(config.momentum)


DIRECTIONS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon, "sgd": _sgd}
