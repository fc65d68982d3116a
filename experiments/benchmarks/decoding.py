"""Tokens per second of greedy decoding, beside a bare loop of the same matrix products.

    python -m experiments.benchmarks.decoding --model=gpt2-small --batch=8

Weights are random. Both programs are warmed up, then timed in turn, `--repeats` times; medians are printed. The time of
decoding is that of a call for `--tokens` more tokens minus that of a call for one, so it has no part of the prompt. The
bare loop multiplies one vector a row by each of the decoder's matrices and by the read-out: no attention, norms, cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from experiments import command
from transformer import decoding, models

_MODEL = flags.DEFINE_string("model", "gpt2-small", "A decoder's name in the zoo.")
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_PROMPT = flags.DEFINE_integer("prompt", 16, "Tokens in each prompt.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 64, "Tokens added to each row.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings of which the median counts.", lower_bound=1)


def main() -> None:
    """Print one line for decoding and one for the bare loop."""
    model = models.Transformer(models.get(_MODEL.value))
    prompt = jnp.arange(_BATCH.value * _PROMPT.value, dtype=jnp.int32).reshape(_BATCH.value, -1) % model.config.vocab
    params = jax.jit(model.init)(jax.random.key(0), prompt)["params"]
    capacity = _PROMPT.value + _TOKENS.value

    def decode(length: int) -> jax.Array:
        return decoding.generate(model, params, prompt, length=length, capacity=capacity)

    bare = _bare_loop(params, model.config.readout.tied)
    timings = {"decoding": [], "bare products": []}
    for repeat in range(_REPEATS.value + 1):
        spent = _seconds(decode, _TOKENS.value + 1) - _seconds(decode, 1)
        products = _seconds(bare, _BATCH.value)
        if repeat:  # the first ones compile
            timings["decoding"].append(spent)
            timings["bare products"].append(products)
    for name, seconds in timings.items():
        rate = _BATCH.value * _TOKENS.value / statistics.median(seconds)
        print(f"{name:14} {rate:8.1f} tokens/s at batch {_BATCH.value}")


def _seconds(function: Callable, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def _bare_loop(params: dict, tied: bool) -> Callable[[int], jax.Array]:
    """A compiled loop over tokens of nothing but products; each feeds the next, so that none can be left out."""
    blocks = params["decoder"]["blocks"]
    width = params["embedding"]["table"].shape[1]
    attention = [blocks["attention"][name]["kernel"] for name in ("query", "key", "value", "output")]
    mlp = [blocks["mlp"][name]["kernel"] for name in ("gate", "up", "down") if name in blocks["mlp"]]
    layers = [[kernel[layer] for kernel in (*attention, *mlp)] for layer in range(len(attention[0]))]
    kernel = params["embedding"]["table"].T if tied else params["readout"]["kernel"]

    def token(_, x: jax.Array, layers: list, kernel: jax.Array) -> jax.Array:
        for query, key, value, output, *rest in layers:
            read = [x @ matrix.reshape(width, -1) for matrix in (query, key, value)]
            mixed = read[0] + sum(jnp.mean(part) for part in read[1:])
            x = jnp.tanh(x + mixed @ output.reshape(-1, width))
            *inward, down = rest
            x = jnp.tanh(x + sum(x @ matrix for matrix in inward) @ down)
        return x + jnp.max(x @ kernel, axis=-1, keepdims=True)

    @jax.jit
    def loop(layers: list, kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _TOKENS.value, lambda i, x: token(i, x, layers, kernel), x)

    return lambda batch: loop(layers, kernel, jnp.ones((batch, width), kernel.dtype))


if __name__ == "__main__":
    command.run(main)
