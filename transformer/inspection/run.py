"""Run a model while reading and replacing its activations."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from transformer.inspection.captures import Capture, readers
from transformer.inspection.patches import resolve
from transformer.inspection.sites import discover, listed, split_flags
from transformer.models.transformer import Transformer
from transformer.nn.tap import Patch, Tap, Taps


def run(
    model: Transformer,
    params,
    tokens: jax.Array,
    *,
    capture: Iterable[Capture | str] | Capture | str = (),
    patches: Iterable[Patch] | Patch = (),
    **model_arguments,
) -> tuple[jax.Array, Taps]:
    """Logits, and the activations that were asked for.

        logits, taps = run(model, params, tokens, capture=("decoder/*/pattern", "decoder/3/mlp/*"))
        taps["decoder/3/pattern"]  # [B, H, T, S]
        taps["decoder/*/pattern"]  # [L, B, H, T, S]

        ablate = lambda head: run(model, params, tokens, patches=Patch("decoder/3/mixed", 0.0, head=head))[0]
        logits = jax.vmap(ablate)(jnp.arange(heads))  # [heads, B, T, V]

    Compiled once for each capture, structure of patches and set of shapes: other values, layers, heads and positions
    run the same program. It may stand inside `jit`, `vmap` and `grad`.

    Args:
      params: the tree under `"params"`.
      tokens: `[B, T]` ids.
      capture: names of sites, or globs over them: `*` is anything within one step of a name, `**` anything. Of a
        layered site only the matching layers are kept in memory; a `Capture` chooses heads, positions and dtype too.
      patches: one, or several that are applied in this order, each before its site is captured. A site is
        `decoder/3/pattern`, or `decoder/*/pattern` with the patch's `layer`, or without it in every layer.
      **model_arguments: as in `Transformer.__call__`, and `rngs`; booleans are compiled in.

    Returns:
      Logits `[B, T, V]` (with a cache, logits and cache), and the captures, each after its patches.

    Raises:
      ValueError: if a glob matches no site, or a patch does not fit (see `inspection.patches.resolve`).
    """
    arrays, flags = split_flags(model_arguments)
    tokens = jnp.asarray(tokens)
    patches, capture = listed("patches", patches, (Patch,)), listed("capture", capture, (Capture, str))
    if patches:
        found = discover(model, params, tokens, arrays, flags)
        patches = tuple(resolve(patch, found, model.config) for patch in patches)
    return _run(params, tokens, patches, arrays, model=model, capture=capture, flags=flags)


@functools.partial(jax.jit, static_argnames=("model", "capture", "flags"))
def _run(params, tokens, patches, arrays, *, model, capture, flags):
    reads = readers(capture, discover(model, params, tokens, arrays, flags), model.config) if capture else ()
    tap = Tap(reads, patches)
    out = model.apply({"params": params}, tokens, tap=tap, **arrays, **dict(flags))
    return out, tap.taps()
