"""Attribution patching: what every patch from another run would do, to first order, from one gradient.

Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Kramar et al. 2024
(arXiv:2403.00745), section 2.2, for its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from transformer.inspection.run import run
from transformer.inspection.sites import listed, without_cache
from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer
from transformer.nn.tap import SITES, Patch, Taps

FEATURES = frozenset("DKFV")  # axes whose entries are of no interest one by one


def attribute(
    model: Transformer,
    params,
    tokens: jax.Array,
    other: jax.Array,
    *,
    metric: Callable[[jax.Array], jax.Array],
    sites: Iterable[str] | str,
    other_arguments: dict | None = None,
    **model_arguments,
) -> dict[str, jax.Array]:
    """For every place of some sites, about how much a patch with the other run's activation there changes a metric.

        effect = sum over features of (other - own) * d metric / d own

    Two forward passes and one backward pass, however many places there are. It is exact where the metric is linear in
    the site, and can be far off where it is not: `sweep` computes the few that matter.

    Args:
      tokens: `[B, T]` ids of the run that is patched.
      other: `[B, T]` ids of the run that the patches come from.
      metric: logits `[B, T, V]` to a scalar.
      sites: whole sites such as `decoder/*/mixed`, or globs over them.
      other_arguments: what the other run's model arguments differ in, such as `source`.
      **model_arguments: as in `run`, of both runs.

    Returns:
      By site, `[L, B, T, H]` for heads, `[L, B, T]` for vectors, `[L, B, H, T, S]` for scores and patterns; without L
      at sites outside the layers. In float32.

    Raises:
      ValueError: as `run`, or if the two runs differ in shape or the metric is no scalar.
    """
    without_cache(model_arguments)
    chosen = listed("sites", sites, (str,))
    _, theirs = run(model, params, other, capture=chosen, **model_arguments | (other_arguments or {}))
    _, ours = run(model, params, tokens, capture=chosen, **model_arguments)
    differences = {site: theirs.stacked()[site] - own for site, own in _same(model.config, ours, theirs).items()}

    def patched(added: dict[str, jax.Array]) -> jax.Array:
        patches = [Patch(site, value, "add") for site, value in added.items()]
        value = metric(run(model, params, tokens, patches=patches, **model_arguments)[0])
        if value.shape:
            raise ValueError(f"metric gives an array of shape {value.shape}: it must give a scalar, such as a mean")
        return value

    slopes = jax.grad(patched)(jax.tree.map(jnp.zeros_like, differences))
    return {site: _without_features(site, differences[site], slopes[site]) for site in differences}


def _same(config: ModelConfig, ours: Taps, theirs: Taps) -> dict[str, jax.Array]:
    """Our arrays, if both runs have the same places, in every layer."""
    for site, array in ours.stacked().items():
        if "*" in site and len(ours.layers(site)) < getattr(config, site.split("/")[0]).depth:
            raise ValueError(f"{site} is asked for in layers {ours.layers(site)} alone: write * for the layer")
        if theirs.stacked()[site].shape != array.shape:
            raise ValueError(
                f"{site} is {array.shape} in one run and {theirs.stacked()[site].shape} in the other: "
                "both need as many rows and tokens"
            )
    return ours.stacked()


def _without_features(site: str, difference: jax.Array, slope: jax.Array) -> jax.Array:
    effect = difference.astype(jnp.float32) * slope.astype(jnp.float32)
    return effect.sum(axis=-1) if SITES[site][-1] in FEATURES else effect
