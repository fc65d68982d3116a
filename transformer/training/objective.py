"""From a batch to sums of losses: what `train_step` differentiates and what evaluation adds up."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from transformer.models.transformer import Transformer, unembedding
from transformer.ops import losses
from transformer.training.step import LossFunction


def next_token(model: Transformer, *, smoothing: float = 0.0, z_loss: float = 0.0, chunk: int = 0) -> LossFunction:
    """The cross-entropy of each target given the tokens before it.

    Args:
      smoothing: label smoothing, as in `ops.losses.cross_entropy`.
      z_loss: the weight of the squared log-partition, as there.
      chunk: if positive, logits are formed for so many vocabulary entries at a time and never kept.

    Returns:
      `loss_fn(params, batch, key) -> (sum, sums)`. The batch holds `inputs`, `targets` `[B, T]` integers, `weights`
      `[B, T]`, and optionally `segments` and `positions`. `key` is for dropout; None turns it off. `sums` holds
      `count`, the sum of weights, and `nats`, the weighted negative log-likelihood without smoothing and z-loss.
    """

    def loss_fn(params: dict, batch: Mapping[str, jax.Array], key: jax.Array | None):
        features, _ = model.apply(
            {"params": params},
            batch["inputs"],
            segments=batch.get("segments"),
            positions=batch.get("positions"),
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
            method="features",
        )
        targets, weights = batch["targets"], batch["weights"]
        if chunk > 0:
            kernel, bias = unembedding(model.config, params)
            softcap = model.config.readout.softcap
            loss = losses.chunked_cross_entropy(
                features, kernel, targets, weights,
                bias=bias, softcap=softcap, chunk=chunk, smoothing=smoothing, z_loss=z_loss,
            )  # fmt: skip
        else:
            logits = model.apply({"params": params}, features, method="read")
            loss = losses.cross_entropy(logits, targets, weights, smoothing=smoothing, z_loss=z_loss)
        return loss.sum, {"count": loss.count, "nats": loss.nats}

    return loss_fn
