"""Causal attention by itself, with the heads of GPT-2 small, forward and with gradients."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import peers
from experiments.benchmarks.contest import Case, Program, Settings
from transformer.ops.attention import attend

HEADS, WIDTH = 12, 64
LENGTHS = (256, 1024, 2048, 8192, 32_768)
OURS = ("auto", "explicit")  # how `attend` is asked to do it
LONG = 16_384  # timed only a few times on a CPU


def cases(settings: Settings) -> list[Case]:
    """Every length, precision and direction; programs whose memory is quadratic only where it fits."""
    lengths = settings.choose(LENGTHS, LENGTHS, (32,))
    directions = (("attention forward", False), ("attention gradient", True))
    return [
        _case(f"{name}, {length:,}", settings, length, gradient, precision)
        for length in lengths
        for precision in settings.precisions
        for name, gradient in directions
    ]


def _case(name: str, settings: Settings, length: int, gradient: bool, precision: str) -> Case:
    arguments = {"length": length, "gradient": gradient, "precision": precision, "device": settings.device}
    absent = "its memory is quadratic in the length" * _too_long(length)

    def ours(implementation: str) -> Program:
        chosen = {**arguments, "implementation": implementation}
        quadratic = absent if implementation == "explicit" else ""
        return Program(f"ours, {implementation}", "attention:ours", chosen, absent=quadratic)

    programs = [
        *map(ours, OURS),
        Program("flax", "attention:flax", arguments, absent=absent),
        Program("jax.nn", "attention:jax_nn", arguments, absent=absent * (settings.device == "cpu")),
        Program("torch", "attention:torch_sdpa", arguments, ("torch",)),
    ]
    # Scores and mix, two operations for each multiply-add, for each key that a query meets; backward twice as many.
    flops = 4.0 * HEADS * WIDTH * length * (length + 1) / 2 * (3 if gradient else 1)
    few = 3 if settings.device == "cpu" and length >= LONG else None
    return Case(name, precision, programs, length, "tokens", flops=flops, repeats=few, warmups=1 if few else 2)


def ours(implementation: str, length: int, **options) -> Callable[[], Any]:
    """`ops.attention.attend`, as the model calls it."""
    from transformer.ops import masks

    mask = masks.Mask(causal=True)
    return _jax(lambda *heads: attend(*heads, mask=mask, implementation=implementation), length, **options)


def flax(length: int, **options) -> Callable[[], Any]:
    """What `flax.linen.MultiHeadDotProductAttention` computes between its projections."""
    import flax.linen as nn
    import jax.numpy as jnp

    return _jax(
        lambda *heads: nn.dot_product_attention(*heads, mask=nn.make_causal_mask(jnp.ones((1, length)))),
        length,
        **options,
    )


def jax_nn(length: int, device: str, **options) -> Callable[[], Any]:
    """`jax.nn.dot_product_attention`, on GPUs with the kernel of cuDNN."""
    import jax

    implementation = "xla" if device == "cpu" else "cudnn"

    def mixed(*heads: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*heads, is_causal=True, implementation=implementation)

    return _jax(mixed, length, device=device, **options)


def torch_sdpa(length: int, gradient: bool, precision: str, device: str) -> Callable[[], Any]:
    """`F.scaled_dot_product_attention` on contiguous heads `[B, H, T, K]`."""
    torch, place, wait = peers.torch(device)
    options = {"dtype": getattr(torch, precision), "device": place}
    query, key, value, change = (torch.randn(1, HEADS, length, WIDTH, **options) for _ in range(4))
    heads = [x.requires_grad_(gradient) for x in (query, key, value)]

    def program() -> None:
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        wait(torch.autograd.grad(mixed, heads, change) if gradient else mixed)

    return program


def _jax(mixed: Callable, length: int, gradient: bool, precision: str, device: str) -> Callable[[], Any]:
    """A function of heads `[B, T, H, K]`, compiled, on random ones."""
    import jax

    keys = jax.random.split(jax.random.key(0), 4)
    *heads, change = (jax.random.normal(key, (1, length, HEADS, WIDTH), precision) for key in keys)

    def gradients(change: jax.Array, *heads: jax.Array) -> tuple[jax.Array, tuple]:
        out, pull = jax.vjp(mixed, *heads)
        return out, pull(change)

    compiled = jax.jit(gradients if gradient else lambda change, *heads: mixed(*heads))
    return lambda: jax.block_until_ready(compiled(change, *heads))


def _too_long(length: int) -> bool:
    """Whether three arrays of scores in float32 for each of three programs, which keep their memory while they take
    turns, are more than half of the machine's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 3 * 3 * 4 * HEADS * length**2 > memory / 2
