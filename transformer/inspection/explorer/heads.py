"""What single heads do: to the prediction when they are silenced, and to the residual and the logits by themselves."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer.inspection.circuits import after_norm, read_out
from transformer.inspection.explorer.attentions import Attention, Layers
from transformer.inspection.explorer.forward import logits_at
from transformer.models.config import ModelConfig, Norm
from transformer.models.transformer import Transformer, unembedding
from transformer.nn.tap import Patch, Tap

SIDES = 4  # tokens of each sign in `promotes`
MEMORY = 2**27  # bytes that the silenced runs of one time may take; with more of them CPUs wait for memory
TOGETHER = 8  # positions that share a pass over the vocabulary
READ = ("query", "key", "value", "mixed")


def silence(
    model: Transformer, params, inputs: dict, features: jax.Array, position: int, layers: Layers
) -> dict[Attention, np.ndarray]:
    """What silencing each head does at one position: the divergence in nats of its next token's probabilities.

        effect[layer, head] = KL(before || after) = sum_v before[v] log(before[v] / after[v])

    Args:
      features: `[1, T, D]`, what the read-out reads when no head is silent.

    Returns:
      By attention `[layers, H]`: each head by itself, its mixed values set to zero.
    """
    grids = [np.meshgrid([n], layers[a], range(a.sizes(model.config)[0]), indexing="ij") for n, a in enumerate(layers)]
    places = [np.concatenate([grid[axis].ravel() for grid in grids]).astype(np.int32) for axis in range(3)]
    chunk = max(1, min(len(places[0]), MEMORY // _bytes_of_a_run(model.config, inputs)))
    out = _silence(params, inputs, features, position, places, model=model, order=tuple(layers), chunk=chunk)
    ends = np.cumsum([grid[0].size for grid in grids])[:-1]
    return {
        attention: part.reshape(grid[0].shape[1:])
        for attention, grid, part in zip(layers, grids, np.split(np.asarray(out), ends), strict=True)
    }


@functools.partial(jax.jit, static_argnames=("model", "order", "chunk"))
def _silence(params, inputs, features, position, places, *, model, order, chunk):
    before = jax.nn.log_softmax(logits_at(params, features, position, model=model))
    probabilities = jnp.exp(before)

    def one(place):
        which, layer, head = place
        sites = enumerate(attention.site("*", "mixed") for attention in order)
        # A layer below 0 is none, so of all patches one is at work.
        patches = [Patch(site, 0.0, layer=jnp.where(which == n, layer, -1), head=head) for n, site in sites]
        silent, _ = model.apply({"params": params}, **inputs, tap=Tap(patches=patches), method="features")
        after = jax.nn.log_softmax(logits_at(params, silent, position, model=model))
        return jnp.maximum(jnp.sum(jnp.where(probabilities > 0, probabilities * (before - after), 0.0)), 0.0)

    return jax.lax.map(one, places, batch_size=chunk)


def _bytes_of_a_run(config: ModelConfig, inputs: dict) -> int:
    """About what one run of a layer holds at a time, its scores and weights above all."""
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    longest = max(array.shape[1] for array in inputs.values())
    wide = max(8 * config.width + 3 * config.mlp_width(stack) for stack in stacks)
    heads = max(stack.attention.heads for stack in stacks)
    return 4 * (longest * wide + 3 * heads * longest**2 + 2 * config.vocab)


class Detail(NamedTuple):
    """One layer of one attention, for one text.

    Attributes:
      query: `[T, H, K]`; key, value: `[S, G, K]`.
      length: of what each head adds to the residual, `[T, H]`; cosine: of that with the residual before it.
      ids, values: `[T, H, 8]`, the logits that each head's direct path raises and lowers most; None where there is no
        such path.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    length: jax.Array
    cosine: jax.Array
    ids: jax.Array | None
    values: jax.Array | None


def direct(config: ModelConfig, attention: Attention) -> bool:
    """Whether heads reach the logits through nothing but a last norm and a matrix."""
    role, stack = read_out(config)
    return attention.role == role and stack.norm_placement != "post" and not config.readout.transform


@functools.partial(jax.jit, static_argnames=("model", "layers"))
def detail(
    params, inputs: dict, *, model: Transformer, layers: tuple[tuple[Attention, tuple[int, ...]], ...]
) -> dict[str, dict[int, Detail]]:
    """By name of an attention and layer: queries, keys, values and what each head writes."""
    capture = []
    for attention, chosen in layers:
        capture.append(_end(model.config, attention))
        for layer in chosen:
            capture += [*(attention.site(layer, name) for name in READ), attention.before(layer)]
    tap = Tap(capture)
    model.apply({"params": params}, **inputs, tap=tap, method="features")
    one = functools.partial(_detail, model, params, tap.taps())
    return {attention.name: {layer: one(attention, layer) for layer in chosen} for attention, chosen in layers}


def _end(config: ModelConfig, attention: Attention) -> str:
    """The site of the residual that the stack of an attention ends in."""
    return f"{attention.role}/{attention.stack(config).depth - 1}/residual_post"


def _detail(model: Transformer, params, taps, attention: Attention, layer: int) -> Detail:
    query, key, value, mixed = (taps[attention.site(layer, name)][0] for name in READ)
    block = jax.tree.map(lambda leaf: leaf[layer], params[attention.role]["blocks"])
    added = _added(model.config, block, attention, mixed)
    before = taps[attention.before(layer)][0, :, None].astype(jnp.float32)  # [T, 1, D]
    length = jnp.linalg.norm(added, axis=-1)
    cosine = jnp.sum(added * before, axis=-1) / jnp.maximum(length * jnp.linalg.norm(before, axis=-1), 1e-30)
    promotes = None, None
    if direct(model.config, attention):
        promotes = _promotes(model, params, added, taps[_end(model.config, attention)][0, :, None])
    return Detail(query, key, value, length, cosine, *promotes)


def _added(config: ModelConfig, block: dict, attention: Attention, mixed: jax.Array) -> jax.Array:
    """What each head adds to the residual, `[T, H, D]`, from what it mixes `[T, H, K]`."""
    half = "cross" if attention.crosses else "attention"
    output = block["cross_attention" if attention.crosses else "attention"]["output"]
    added = jnp.einsum("THK,HKD->THD", mixed, output["kernel"].astype(mixed.dtype)).astype(jnp.float32)
    stack = attention.stack(config)
    if stack.norm_placement != "both":
        return added
    whole = jnp.sum(added, axis=1, keepdims=True) + output.get("bias", 0.0)
    return _share(stack.norm, block[f"{half}_post_norm"], added, whole)


def _promotes(model: Transformer, params, added: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ends of each head's list of logits, `[T, H, 8]`, from what it adds `[T, H, D]` and the residual it ends in.

    The last norm keeps the scale that it has for the whole residual, so the parts of all heads, of the feed-forward
    layers and of the embedding add up to the logits. Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits".
    """
    config = model.config
    role, stack = read_out(config)
    shares = _share(stack.norm, params[role]["final_norm"], added, end)
    kernel, _ = unembedding(config, params)
    factor = config.width**-0.5 if config.readout.scale else 1.0
    count = min(SIDES, config.vocab // 2)

    def one(shares):  # [H, D]
        logits = jnp.matmul(shares * factor, kernel.astype(shares.dtype), preferred_element_type=jnp.float32)
        (best, most), (worst, least) = jax.lax.top_k(logits, count), jax.lax.top_k(-logits, count)
        return jnp.concatenate([most, least], axis=-1), jnp.concatenate([best, -worst], axis=-1)

    return jax.lax.map(one, shares, batch_size=TOGETHER)


def _share(norm: Norm, params: dict, part: jax.Array, whole: jax.Array) -> jax.Array:
    """A part's share of norm(whole), without the bias: divided by what the whole is divided by, linear in the part.

    `[..., D]`; the shares of parts that add up to the whole add up to its norm.
    """
    whole = whole.astype(jnp.float32)
    centred = whole - jnp.mean(whole, axis=-1, keepdims=True) if norm.kind == "layer" else whole
    divisor = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + norm.epsilon)
    return after_norm(norm, params, part) * divisor
