"""From a batch to sums of losses: what `train_step` differentiates and what evaluation adds up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from transformer.models.config import ModelConfig
from transformer.models.feed_forward import Experts
from transformer.models.transformer import Transformer, unembedding
from transformer.nn.tap import Tap
from transformer.ops import losses, routing, sharding
from transformer.training.step import LossFunction

# What a batch may tell the model beside its inputs, by the names of the model's own arguments.
SEEN = (
    "source",
    "mask",
    "source_mask",
    "segments",
    "source_segments",
    "prefix",
    "positions",
    "source_positions",
    "token_types",
)

# Where a device has so many logits of a batch, they are formed for an eighth of its positions at a time, but for no
# fewer than these: with few, adding up the matrix's gradient takes longer than is gained by logits that fit a cache.
MANY_LOGITS = 2**24
FEW_POSITIONS = 512

PLACES = ("rows", "residual")  # how devices of a mesh share positions


def prediction(
    model: Transformer, *, smoothing: float = 0.0, z_loss: float = 0.0, chunk: int = 0, accuracy: bool = False
) -> LossFunction:
    """The cross-entropy of each target that counts, given what the model sees of the batch.

    What is seen and what counts is the data's matter, so this is the loss of a causal, a prefix and a masked language
    model and of sequence to sequence alike.

    Args:
      smoothing: label smoothing, as in `ops.losses.cross_entropy`.
      z_loss: the weight of the squared log-partition, as there.
      chunk: logits are formed for so many positions at a time, of all devices together, and never kept; 0 takes all
        positions together, or a part of them where a device has `MANY_LOGITS`.
      accuracy: whether `sums` holds `accuracy`, the weight of the targets that are the likeliest token.

    Returns:
      `loss_fn(params, batch, key) -> (sum, sums)`. The batch holds `inputs`, `targets` `[B, T]` integers, `weights`
      `[B, T]`, and any of the arguments in `SEEN`. `key` is for dropout; None turns it off. `sums` holds `count`, the
      sum of weights, and `nats`, the weighted negative log-likelihood without smoothing and z-loss; for a model with
      experts also what `of_routers` gives, whose losses are part of the sum.
    """

    def loss_fn(params: dict, batch: Mapping[str, jax.Array], key: jax.Array | None):
        mixtures = routers(model.config)
        depths = {role: getattr(model.config, role).depth for role in mixtures}
        tap = Tap([f"{role}/{layer}/mlp/router" for role, depth in depths.items() for layer in range(depth)])
        features, _ = model.apply(
            {"params": params},
            batch["inputs"],
            **{name: batch[name] for name in SEEN if name in batch},
            tap=tap,
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
            method="features",
        )
        targets, weights = batch["targets"], batch["weights"]
        own = math.prod(sharding.local_shape(targets.shape, *PLACES))
        size = chunk_size(own, targets.size, model.config.vocab, chunk)
        if size:
            kernel, bias = unembedding(model.config, params)
            softcap = model.config.readout.softcap
            loss = _per_device(
                partial(losses.chunked_cross_entropy, softcap=softcap, smoothing=smoothing, z_loss=z_loss),
                size, features, kernel.astype(features.dtype), targets, weights, bias,
            )  # fmt: skip
        else:
            logits = model.apply({"params": params}, features, method="read")
            loss = losses.cross_entropy(logits, targets, weights, smoothing=smoothing, z_loss=z_loss)
        sums = {"count": loss.count, "nats": loss.nats}
        if accuracy:
            sums["accuracy"] = loss.hits
        if not mixtures:
            return loss.sum, sums
        logits = {role: tap.captured[f"{role}/*/mlp/router"] for role in mixtures}
        added, more = of_routers(model.config, mixtures, logits, batch)
        return loss.sum + added, sums | more

    return loss_fn


def _per_device(function, chunk: int, features, kernel, targets, weights, bias) -> losses.Loss:
    """The loss of all positions, of which each device of a mesh takes its own, in chunks."""

    def one(features, kernel, targets, weights, bias) -> losses.Loss:
        loss = function(features, kernel, targets, weights, bias=bias, chunk=chunk)
        return jax.tree.map(lambda x: x[None, None], loss)  # to be added up over devices outside

    arrays = (features, kernel, targets, weights, bias)
    meanings = ((*PLACES, None), (None, None), PLACES, PLACES, None if bias is None else (None,))
    own = sharding.local_shape(targets.shape, *PLACES)
    counts = tuple(whole // part for whole, part in zip(targets.shape, own, strict=True))
    parts = sharding.per_device(one, arrays, meanings, losses.Loss(*[(counts, PLACES)] * 4))
    return jax.tree.map(jnp.sum, parts)


def routers(config: ModelConfig) -> dict[str, Experts]:
    """The experts of each stack whose routers have a loss, by `encoder` and `decoder`."""
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    found = {role: stack.mlp.experts for role, stack in stacks.items() if stack and stack.mlp and stack.mlp.experts}
    return {role: experts for role, experts in found.items() if experts.balance or experts.router_z}


def of_routers(
    config: ModelConfig,
    mixtures: Mapping[str, Experts],
    logits: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted losses of routers as a sum over rows, and what they measure.

    A row's loss is the mean over layers of its `ops.routing.balance` and `router_z`, as in OLMoE (arXiv:2409.02060);
    Switch adds layers up. A row weighs as much as its targets, so that no way of sharing rows among devices and
    micro-batches changes the loss; in a decoder a token weighs as its target does, in an encoder each that is not
    padding alike.

    Args:
      logits: of each stack in `mixtures`, `[L, B, T, N]`.

    Returns:
      The sum, and sums by name, means over the stacks that have any: `balance` (1 where all experts are used alike),
      `router_z`, and, where room is bounded, `dropped`, the share of assignments that found none.
    """
    weights = batch["weights"].astype(jnp.float32)
    rows, loss, seen = jnp.sum(weights, axis=-1), jnp.zeros((), jnp.float32), {}
    for role, experts in mixtures.items():
        real = _real(role, config, batch)
        tokens = weights if role == "decoder" else jnp.ones(logits[role].shape[1:3]) if real is None else real
        values = {
            "balance": routing.balance(logits[role], experts.active, tokens),
            "router_z": routing.router_z(logits[role], tokens),
        }
        capacity = experts.places(logits[role].shape[2])
        if capacity is not None:
            values["dropped"] = routing.dropped(logits[role], experts.active, capacity, tokens, real)
        sums = {name: jnp.sum(rows * jnp.mean(value, axis=0)) for name, value in values.items()}
        loss += experts.balance * sums["balance"] + experts.router_z * sums["router_z"]
        for name, value in sums.items():
            seen.setdefault(name, []).append(jax.lax.stop_gradient(value))
    return loss, {name: sum(values) / len(values) for name, values in seen.items()}


def _real(role: str, config: ModelConfig, batch: Mapping[str, jax.Array]) -> jax.Array | None:
    """Which tokens of a stack are not padding, `[B, T]`, as the data says; None where it does not."""
    front = "source_" if role == "encoder" and config.decoder is not None else ""
    if front and f"{front}mask" not in batch and "source_segments" in batch:
        return batch["source_segments"] > 0  # of packed pairs, counted from 1
    return batch.get(f"{front}mask")


def chunk_size(own: int, whole: int, vocabulary: int, chunk: int = 0) -> int:
    """How many of its `own` positions, of `whole`, a device forms logits of at one time; 0 for all of them."""
    if chunk:
        return max(1, chunk * own // whole)
    return max(FEW_POSITIONS, -(-own // 8)) if own * vocabulary >= MANY_LOGITS else 0
