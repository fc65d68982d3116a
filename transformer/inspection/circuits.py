"""What heads could do, from their parameters alone: what each compares and moves, and whose output a later one reads.

A residual is a row vector. A head compares residuals x and y with `x query_key y^T` and, attending from x to y, adds
`y output_value` to x. Both matrices are `[D, D]`, and the products of two narrow ones; only those are kept.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.models.config import ModelConfig, Norm, Stack
from transformer.models.transformer import Transformer
from transformer.nn.positions import rotation

ATTENTIONS = {  # the stack, the parameters of its attention, and the name of the half that its norms have
    "decoder": ("decoder", "attention", "attention"),
    "decoder/cross": ("decoder", "cross_attention", "cross"),
    "encoder": ("encoder", "attention", "attention"),
}


class Factors(NamedTuple):
    """Matrices `left right` in float32, `[..., D, D]` of rank K at most.

    Attributes:
      left: `[..., D, K]`.
      right: `[..., K, D]`.
    """

    left: jax.Array
    right: jax.Array

    def dense(self) -> jax.Array:
        """`[..., D, D]`."""
        return self.left @ self.right

    def singular_values(self) -> jax.Array:
        """`[..., min(D, K)]` in falling order, those of the product of the factors' triangles; further ones are 0."""
        first, second = _triangle(self.left), _triangle(self.right.mT)
        return jnp.linalg.svd(first @ second.mT, compute_uv=False)

    def norm(self) -> jax.Array:
        """`[...]`, Frobenius: the root of the sum of squares."""
        return jnp.linalg.norm(_triangle(self.left) @ self.right, axis=(-2, -1))


class Composition(NamedTuple):
    """How much of what one head writes another reads: `[L, H, L, H]`, the writer's layer and head before the reader's.

    0 where the reader's layer is not a later one, or a matrix is 0. Unrelated heads have about `1 / sqrt(D)`, not 0.

    Attributes:
      query, key, value: what it is read as.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array


def query_key(
    model: Transformer,
    params,
    *,
    attention: str | None = None,
    norms: bool = True,
    distance: jax.Array | int | None = None,
) -> Factors:
    """The matrix by which each head compares residuals, `query kernel @ key kernel^T * scale`, `[L, H]` in front.

    Without biases, and without what is added to scores for distance. A head reads its group's key.

    Args:
      attention: `decoder`, `encoder` or `decoder/cross`; None: self-attention of the stack that is read out.
      norms: whether the norm before attention is folded in, its centring and gain but not its division; and so the
        gains of query and key norms. A memory is read as it is, in cross-attention, and so is all in post-norm stacks.
      distance: the query's position less the key's, by which rotary positions turn the two; None: not turned.

    Raises:
      ValueError: if the model has no such attention, or a distance is given and positions are not rotary.
    """
    role, name, half = attention_names(model.config, attention)
    stack, blocks = getattr(model.config, role), params[role]["blocks"]
    check_distance(distance, stack if half == "attention" else None)
    query, key = (_heads(blocks[name][part]["kernel"], stack.attention.heads) for part in ("query", "key"))
    if norms and stack.norm_placement != "post":
        norm = _each_head(blocks[f"{half}_norm"])
        query = before_norm(stack.norm, norm, query)
        key = key if half == "cross" else before_norm(stack.norm, norm, key)
    if norms and stack.attention.query_key_norm:
        gains = [gain(stack.norm, blocks[name][f"{part}_norm"])[:, None, :, None] for part in ("query", "key")]
        query, key = query * gains[0], key * gains[1]
    if distance is not None:
        query, key = _turn(model.config, stack, query, distance), _turn(model.config, stack, key, 0)
    scale = model.config.head_width(stack) ** -0.5 if stack.attention.scale is None else stack.attention.scale
    return Factors(query.mT * scale, key)


def output_value(model: Transformer, params, *, attention: str | None = None, norms: bool = True) -> Factors:
    """What each head adds for what it attends to, `value kernel @ output kernel`, `[L, H]` in front. Without biases.

    Args:
      attention: as in `query_key`.
      norms: whether the norm before attention is folded in as in `query_key`, and likewise one that is on attention's
        output alone.

    Raises:
      ValueError: if the model has no such attention.
    """
    role, name, half = attention_names(model.config, attention)
    stack, blocks = getattr(model.config, role), params[role]["blocks"]
    value = _heads(blocks[name]["value"]["kernel"], stack.attention.heads)  # [L, H, K, D]
    output = blocks[name]["output"]["kernel"].astype(jnp.float32)  # [L, H, K, D]
    if norms and stack.norm_placement != "post" and half == "attention":
        value = before_norm(stack.norm, _each_head(blocks[f"{half}_norm"]), value)
    if norms and stack.norm_placement == "both":
        output = after_norm(stack.norm, _each_head(blocks[f"{half}_post_norm"]), output)
    return Factors(value.mT, output)


def composition(model: Transformer, params, *, role: str | None = None, norms: bool = True) -> Composition:
    """How much of what one head writes a later head reads, as its query, its key or its value.

        |OV1 QK2| / |OV1| |QK2|,  |OV1 QK2^T| / |OV1| |QK2|,  |OV1 OV2| / |OV1| |OV2|

    in Frobenius norms, where QK and OV are the later head's `query_key`, not turned, and a head's `output_value`. No
    `[D, D]` is formed, and only one earlier head's products `[K, K]` with all others are in memory at a time.

    Args:
      role: `decoder` or `encoder`, whose self-attention it is; None: the stack that is read out.
      norms: as in `query_key` and `output_value`.

    Raises:
      ValueError: if the model has no such stack.

    Source: Elhage et al. 2021, on two-layer attention-only transformers.
    """
    if role is not None and role not in ("decoder", "encoder"):
        raise ValueError(f"role={role!r} cannot work: choose decoder or encoder, or leave it out")
    circuit = query_key(model, params, attention=role, norms=norms)
    moves = output_value(model, params, attention=role, norms=norms)
    writes = _triangle(moves.left) @ moves.right  # [L, H, K, D], OV but for a rotation of its rows
    reads = {  # [L, H, D, K], what reads but for a rotation of its columns
        "query": circuit.left @ _triangle(circuit.right.mT).mT,
        "key": circuit.right.mT @ _triangle(circuit.left).mT,
        "value": moves.left @ _triangle(moves.right.mT).mT,
    }
    return Composition(**{name: _composed(writes, read) for name, read in reads.items()})


@jax.jit
def _composed(writes: jax.Array, reads: jax.Array) -> jax.Array:
    """`|W R| / |W| |R|` for writers `[L, H, K, D]` and readers `[L, H, D, K]` of later layers: `[L, H, L, H]`."""
    layers, heads, width = writes.shape[:3]
    flat = jnp.moveaxis(reads, 2, 0).reshape(reads.shape[2], -1)  # [D, L H K]: one product is faster than one a head

    def squares(write: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(write @ flat).reshape(width, layers, heads, -1), axis=(0, 3))

    products = jnp.sqrt(jax.lax.map(squares, writes.reshape(layers * heads, width, -1)))
    sizes, others = (jnp.linalg.norm(matrices, axis=(-2, -1)) for matrices in (writes, reads))
    sizes = sizes[..., None, None] * others
    later = (jnp.arange(layers)[:, None] < jnp.arange(layers))[:, None, :, None]
    return jnp.where(later & (sizes > 0), products.reshape(sizes.shape) / sizes, 0.0)


def _heads(kernel: jax.Array, heads: int) -> jax.Array:
    """Kernels `[L, D, G, K]` as `[L, H, K, D]` in float32, a group's for each of its heads."""
    return jnp.repeat(jnp.moveaxis(kernel, 1, -1), heads // kernel.shape[2], axis=1).astype(jnp.float32)


def _each_head(norm):
    """A norm's parameters `[L, D]` beside `[L, H, K, D]`."""
    return jax.tree.map(lambda leaf: leaf[:, None, None], norm)


def _turn(config: ModelConfig, stack: Stack, kernels: jax.Array, position: jax.Array | int) -> jax.Array:
    """Kernels `[L, H, K, D]` that give queries or keys turned as at a position."""
    turn = rotation(config, stack, jnp.full((1, config.width), position))
    return jnp.moveaxis(turn(jnp.moveaxis(kernels, -1, 1)), 1, -1)


def _triangle(matrices: jax.Array) -> jax.Array:
    """R of `[..., D, K]` = QR, `[..., min(D, K), K]`: Q changes neither norms nor singular values of products."""
    return jnp.linalg.qr(matrices, mode="r")


def before_norm(norm: Norm, params, directions: jax.Array) -> jax.Array:
    """Directions `[..., D]` along which a norm's output is read, as directions of its input, had it divided by 1."""
    directions = directions.astype(jnp.float32) * gain(norm, params)
    return directions - jnp.mean(directions, axis=-1, keepdims=True) if norm.kind == "layer" else directions


def after_norm(norm: Norm, params, x: jax.Array) -> jax.Array:
    """What becomes of a part `[..., D]` of a norm's input, had it divided by 1, and without its bias."""
    x = x.astype(jnp.float32)
    return (x - jnp.mean(x, axis=-1, keepdims=True) if norm.kind == "layer" else x) * gain(norm, params)


def gain(norm: Norm, params) -> jax.Array:
    """What a norm multiplies each feature by, in float32."""
    scale = params["scale"].astype(jnp.float32)
    return 1.0 + scale if norm.zero_centred else scale


def attention_names(config: ModelConfig, attention: str | None) -> tuple[str, str, str]:
    """A row of `ATTENTIONS`; raises ValueError if the model lacks it."""
    chosen = read_out(config)[0] if attention is None else attention
    both = None not in (config.encoder, config.decoder)
    there = [name for name in ATTENTIONS if getattr(config, name.split("/")[0]) and (both or "/" not in name)]
    if chosen not in there:
        raise ValueError(f"attention={attention!r} is not in this model: choose one of {', '.join(there)}")
    return ATTENTIONS[chosen]


def check_distance(distance: jax.Array | int | None, stack: Stack | None) -> None:
    """Raise ValueError where a distance would turn nothing; cross-attention has no stack."""
    if distance is not None and (stack is None or stack.position.kind != "rotary"):
        fix = "only self-attention with rotary positions turns; leave it out"
        raise ValueError(f"distance={distance} cannot work: {fix}")


def read_out(config: ModelConfig) -> tuple[str, Stack]:
    """The stack whose residual becomes logits, with its role."""
    return ("encoder", config.encoder) if config.decoder is None else ("decoder", config.decoder)


def check_linear(config: ModelConfig) -> None:
    """Raise ValueError where the read-out does more than scale what it reads."""
    if config.readout.transform:
        fix = "the activation in it leaves no part a logit of its own; read whole residuals with logit_lens"
        raise ValueError(f"readout.transform=True cannot be attributed: {fix}")
