"""What a residual already says, layer by layer, and which parts of a model a logit comes from.

lens = logit_lens(model, params, tokens, top=5)  # lens.ids [L + 1, B, T, 5]: the likeliest next tokens, layer by layer
parts = attribute_logits(model, params, tokens, targets)  # parts.heads [L, H, B, T]; parts.total is the logit
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.inspection.captures import Capture, Indices
from transformer.inspection.circuits import before_norm, check_linear, read_out
from transformer.inspection.run import run
from transformer.inspection.sites import split_flags
from transformer.models.config import ModelConfig, Norm, Stack
from transformer.models.transformer import Transformer, unembedding
from transformer.nn.norms import Normalize


class Lens(NamedTuple):
    """What a model would say if it stopped early; row 0 is the input of the first block, row l + 1 block l's output.

    Attributes:
      logits: `[L + 1, B, T, k]` in float32.
      ids: `[L + 1, B, T, k]`, of which tokens; None: of all V in order.
      ranks: `[L + 1, B, T, k]`, how many tokens have a higher logit, -1 outside the vocabulary; None without ids.
      log_sum_exp: `[L + 1, B, T]`, of all V logits.
    """

    logits: jax.Array
    ids: jax.Array | None
    ranks: jax.Array | None
    log_sum_exp: jax.Array

    @property
    def log_probabilities(self) -> jax.Array:
        """`[L + 1, B, T, k]`, in nats."""
        return self.logits - self.log_sum_exp[..., None]


class Attribution(NamedTuple):
    """What each part adds to a logit or to a difference of two, in float32; None where a model has no such part.

    Attributes:
      embedding: `[B, T]`, tokens and their types.
      positions: `[B, T]`, learned or sinusoidal ones.
      heads: `[L, H, B, T]`, of self-attention.
      cross: `[L, H, B, T]`, heads of cross-attention.
      mlp: `[L, B, T]`, feed-forward halves with their biases.
      biases: `[L, B, T]`, those of attention's outputs and of the norms behind a half.
      constant: `[B, T]`, biases of the read-out and of the norms before and after the blocks.
    """

    embedding: jax.Array
    positions: jax.Array | None
    heads: jax.Array
    cross: jax.Array | None
    mlp: jax.Array | None
    biases: jax.Array
    constant: jax.Array

    @property
    def total(self) -> jax.Array:
        """`[B, T]`: the logit, before a soft cap."""
        over = {"heads": (-4, -3), "cross": (-4, -3), "mlp": -3, "biases": -3}
        parts = {name: part for name, part in self._asdict().items() if part is not None}
        return sum(jnp.sum(part, axis=over.get(name, ())) for name, part in parts.items())


def residuals(
    model: Transformer,
    params,
    tokens: jax.Array,
    *,
    positions: Indices | None = None,
    role: str | None = None,
    **model_arguments,
) -> jax.Array:
    """The residual before the first block and after each one, `[L + 1, B, T, D]`, without the cost of logits.

    Args:
      positions: which of T to keep, negative ones from the end; None: all.
      role: `encoder` or `decoder`; None: the stack that is read out.
      **model_arguments: as in `run`.

    Raises:
      ValueError: as `run`.
    """
    role = role or read_out(model.config)[0]
    capture = tuple(Capture(f"{role}/{name}", position=positions) for name in ("0/residual_pre", "*/residual_post"))
    arrays, flags = split_flags(model_arguments)
    return _residuals(params, tokens, arrays, model=model, capture=capture, flags=flags)


@functools.partial(jax.jit, static_argnames=("model", "capture", "flags"))
def _residuals(params, tokens, arrays, *, model, capture, flags):
    taps = run(model, params, tokens, capture=capture, **arrays, **dict(flags))[1]
    return jnp.concatenate(list(taps.stacked().values()))  # in forward order, and the first block alone of the one


def read(model: Transformer, params, residual: jax.Array) -> jax.Array:
    """Logits `[..., V]` of `[..., D]` as if it were the last block's output: final norm, read-out, soft cap.

    A post-norm stack has no final norm, and its residuals are read as they are.
    """
    role, stack = read_out(model.config)
    if stack.norm_placement != "post":
        residual = Normalize(model.config, stack.norm).apply({"params": params[role]["final_norm"]}, residual)
    method = lambda model, x: model.read(model.readout.features(x))  # noqa: E731
    return model.apply({"params": params}, residual, method=method)


def logit_lens(
    model: Transformer,
    params,
    tokens: jax.Array,
    *,
    top: int | None = None,
    ids: jax.Array | None = None,
    positions: Indices | None = None,
    **model_arguments,
) -> Lens:
    """`read` of the residual before the first block and after each one; after the last it is the model's own answer.

    With `top` or `ids` only one layer's `[B, T, V]` are in memory at a time. To see a run with patches, capture its
    `residual_post` and `read` that.

    Args:
      top: the k highest logits of each place, in falling order.
      ids: these tokens, `[k]` or what broadcasts to `[B, T, k]`; one outside the vocabulary gives NaN.
      positions: which of T to read, negative ones from the end; None: all.
      **model_arguments: as in `run`.

    Raises:
      ValueError: as `run`, or if top is out of range, or ids do not fit or come beside top.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    if top is not None and not 1 <= top <= model.config.vocab:
        raise ValueError(f"top={top} is out of range: there are 1 to {model.config.vocab} tokens")
    if top is not None and ids is not None:
        raise ValueError(f"top={top} cannot be asked for beside ids: leave one of them out")
    layers = residuals(model, params, tokens, positions=positions, **model_arguments)
    if ids is not None:
        ids = jnp.atleast_1d(jnp.asarray(ids))
        ids = _broadcast("ids", ids, (*layers.shape[1:3], ids.shape[-1]))
    return _read_layers(params, layers, ids, model=model, top=top)


@functools.partial(jax.jit, static_argnames=("model", "top"))
def _read_layers(params, layers, ids, *, model, top):
    def one(residual: jax.Array) -> Lens:
        logits = read(model, params, residual)  # [B, T, V]
        total = jax.nn.logsumexp(logits, axis=-1)
        if ids is None:
            chosen = (logits, None) if top is None else jax.lax.top_k(logits, top)
            return Lens(*chosen, None, total)
        known = (ids >= 0) & (ids < logits.shape[-1])
        chosen = jnp.where(known, jnp.take_along_axis(logits, jnp.where(known, ids, 0), axis=-1), jnp.nan)
        ranks = jnp.sum(logits[..., None, :] > chosen[..., None], axis=-1)
        return Lens(chosen, ids, jnp.where(known, ranks, -1), total)

    return jax.lax.map(one, layers)


def attribute_logits(
    model: Transformer,
    params,
    tokens: jax.Array,
    targets: jax.Array,
    *,
    against: jax.Array | None = None,
    positions: Indices | None = None,
    **model_arguments,
) -> Attribution:
    """Direct logit attribution: what each part of a model adds to the logit of a token.

        logit[target] = sum over parts of <part, direction> + biases

    A residual is a sum of parts, and a norm is linear once what it divides by is held at its value in this run. Every
    norm between a part and the logit is held so, in pre-norm, post-norm and doubly normed stacks; the parts then sum to
    the logit, up to rounding in the model's dtype. A part counts for what it writes itself, not for what later blocks
    make of that; an encoder beside a decoder counts through the heads of cross-attention. With a soft cap on logits the
    sum is the logit before the cap.

    Args:
      targets: ids that broadcast to `[B, T]`; one outside the vocabulary gives NaN.
      against: more ids; then the parts are those of `logit[targets] - logit[against]`.
      positions: which of T to attribute, negative ones from the end; targets are then theirs alone. None: all. (What
        the model itself calls `positions` cannot be given.)
      **model_arguments: as in `run`, without dropout.

    Raises:
      ValueError: as `run`, or if ids do not fit, dropout is on, or the read-out has a transform, which is not linear.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; differences of two logits: Wang et
    al. 2022 (arXiv:2211.00593), section 3.
    """
    check_linear(model.config)
    if model_arguments.get("train"):
        raise ValueError("train=True cannot work: dropout hides what each part adds; leave it out")
    sites = tuple(Capture(site, position=positions) for site in _sites(model.config))
    shape = (tokens.shape[0], tokens.shape[1] if positions is None else len(sites[0].position))
    named = {"targets": targets} if against is None else {"targets": targets, "against": against}
    ids = [_broadcast(name, array, shape) for name, array in named.items()]
    arrays, flags = split_flags(model_arguments)
    return _attribute(params, tokens, ids, arrays, model=model, sites=sites, flags=flags)


@functools.partial(jax.jit, static_argnames=("model", "sites", "flags"))
def _attribute(params, tokens, ids, arrays, *, model, sites, flags):
    role, stack = read_out(model.config)
    own, parts = params[role], dict.fromkeys(Attribution._fields)
    taps = run(model, params, tokens, capture=sites, **arrays, **dict(flags))[1].stacked()
    taps = {name.removeprefix(f"{role}/"): array.astype(jnp.float32) for name, array in taps.items()}
    blocks = {name.removeprefix("*/"): array for name, array in taps.items() if "*" in name}
    direction, constant = _reads(model.config, params, ids)
    if stack.norm_placement != "post":
        direction, offset = _before(stack.norm, own["final_norm"], blocks.pop("residual_post")[0], direction)
        constant += offset
    block = lambda direction, layer: _block(stack, *layer, direction)  # noqa: E731
    direction, of_blocks = jax.lax.scan(block, direction, (own["blocks"], blocks), reverse=True)
    start = {name: taps[name] for name in ("embedding", "positions") if name in taps}
    if stack.embedding_norm:
        direction, offset = _before(stack.norm, own["embedding_norm"], sum(start.values()), direction)
        constant += offset
    start = {name: jnp.sum(array * direction, axis=-1) for name, array in start.items()}
    return Attribution(**parts | of_blocks | start | {"constant": constant})


def _block(stack: Stack, params, taps, direction: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """From the direction along which a block's output is read to that of its input, and the parts of the block."""
    parts, biases = {}, jnp.zeros(direction.shape[:-1])
    for half, (name, before, output, mixed) in reversed(_halves(stack, "cross_attention" in params).items()):
        if stack.norm_placement == "post":
            direction, offset = _before(stack.norm, params[f"{half}_norm"], taps[before] + taps[output], direction)
            biases += offset
        along = direction
        if stack.norm_placement == "both":
            along, offset = _before(stack.norm, params[f"{half}_post_norm"], taps[output], direction)
            biases += offset
        if mixed is None:
            parts[half] = jnp.sum(taps[output] * along, axis=-1)
            continue
        own = {leaf: array.astype(jnp.float32) for leaf, array in params[name]["output"].items()}
        heads = jnp.einsum("HKD,BTD->BTHK", own["kernel"], along)
        parts["heads" if half == "attention" else half] = jnp.einsum("BTHK,BTHK->HBT", taps[mixed], heads)
        biases += along @ own["bias"] if "bias" in own else 0.0
    return direction, {**parts, "biases": biases}


def _halves(stack: Stack, crosses: bool) -> dict[str, tuple[str, str, str, str | None]]:
    """Of each half of a block in order: its parameters, and the sites of what it adds to, its output and its heads."""
    halves = {"attention": ("attention", "residual_pre", "output", "mixed")}
    if crosses:
        halves["cross"] = ("cross_attention", "residual_mid", "cross/output", "cross/mixed")
    if stack.mlp is not None:
        halves["mlp"] = ("mlp", "residual_cross" if crosses else "residual_mid", "mlp/outer", None)
    return halves


def _sites(config: ModelConfig) -> list[str]:
    """What an attribution needs to know of a run."""
    role, stack = read_out(config)
    sites = ["embedding", "positions"] if stack.position.kind in ("learned", "sinusoidal") else ["embedding"]
    for _, before, output, mixed in _halves(stack, None not in (config.encoder, config.decoder)).values():
        sites += [f"*/{mixed}"] if mixed else [f"*/{output}"]
        sites += [f"*/{output}"] if mixed and stack.norm_placement != "pre" else []
        sites += [f"*/{before}"] if stack.norm_placement == "post" else []
    sites += [] if stack.norm_placement == "post" else [f"{stack.depth - 1}/residual_post"]
    return [f"{role}/{site}" for site in sites]


def _reads(config: ModelConfig, params, ids: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The direction `[B, T, D]` along which the read-out reads a logit, or the first less the second, and its bias."""
    kernel, bias = unembedding(config, params)
    pick = lambda array, i: array.at[..., i].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)  # noqa: E731
    signed = list(zip((1.0, -1.0), ids, strict=False))
    direction = sum(sign * jnp.moveaxis(pick(kernel, i), 0, -1).astype(jnp.float32) for sign, i in signed)
    offset = sum(sign * pick(bias, i) for sign, i in signed) if bias is not None else jnp.zeros(ids[0].shape)
    return direction * (config.width**-0.5 if config.readout.scale else 1.0), offset.astype(jnp.float32)


def _before(norm: Norm, params, x: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`direction'` and `offset` in `<norm(x), direction> = <x, direction'> + offset`, divided by what divides x."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True) if norm.kind == "layer" else x
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + norm.epsilon)
    offset = direction @ params["bias"].astype(jnp.float32) if norm.bias else jnp.zeros(x.shape[:-1])
    return before_norm(norm, params, direction) * scale, offset


def _broadcast(name: str, ids: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    try:
        return jnp.broadcast_to(jnp.asarray(ids), shape)
    except ValueError:
        raise ValueError(f"{name} of shape {jnp.shape(ids)} do not fit: give ids that broadcast to {shape}") from None
