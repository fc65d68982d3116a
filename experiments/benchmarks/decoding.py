"""GPT-2 small adding tokens to prompts: reading them, greedy decoding and beam search."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import peers, sizes
from experiments.benchmarks.contest import HUGGING_FACE, Case, Program, Settings
from transformer import models

OURS = ("transformer.decoding",)
BEAMS = 4


def prefill(settings: Settings) -> list[Case]:
    """Prompts read and one token chosen."""
    return _cases("prefill", settings, prompt=settings.choose(128, 512, 8), tokens=1)


def decode(settings: Settings) -> list[Case]:
    """Further tokens: a call for one more than `tokens`, less a call for one, so that no prompt is counted."""
    return _cases("decode", settings, prompt=16, tokens=settings.choose(32, 128, 2))


def beam(settings: Settings) -> list[Case]:
    """Beam search with four beams, its prompt included."""
    return _cases("beam", settings, prompt=16, tokens=settings.choose(32, 128, 2), beams=BEAMS, rows=(1, 8))


def _cases(
    name: str, settings: Settings, prompt: int, tokens: int, beams: int = 0, rows: tuple[int, ...] = (1, 8, 64)
) -> list[Case]:
    found = []
    config = sizes.config("gpt2", tiny=settings.tiny)
    matrices = _matrices(config)
    for batch in (1,) if settings.tiny else rows:
        for precision in settings.precisions:
            arguments = {
                "tiny": settings.tiny, "batch": batch, "prompt": prompt, "tokens": tokens, "precision": precision,
                "device": settings.device, "beams": beams, "difference": name == "decode",
            }  # fmt: skip
            programs = [Program("ours", "decoding:ours", arguments, OURS)]
            programs.append(Program("transformers", "decoding:hugging_face", arguments, HUGGING_FACE))
            if name == "decode" and not settings.tiny:  # compiling takes longer than a test may
                compiled = {**arguments, "compiled": True}
                programs.append(Program("transformers compiled", "decoding:hugging_face", compiled, HUGGING_FACE))
            read = tokens * matrices * (4 if precision == "float32" else 2)
            if name == "prefill":
                amount, needed = batch * prompt, {"flops": batch * _reading_flops(config, prompt)}
            else:
                amount, needed = batch * tokens, {"traffic": read}
            found.append(Case(f"{name}, batch {batch}", precision, programs, amount, "tokens", **needed))
    return found


def ours(
    tiny: bool, batch: int, prompt: int, tokens: int, precision: str, device: str, beams: int, difference: bool
) -> Callable[[], Any]:
    """`decoding.generate` or `decoding.beam_search`, with parameters prepared once, as a loaded model's are."""
    import jax
    import jax.numpy as jnp

    from transformer import decoding

    model = models.Transformer(sizes.config("gpt2", tiny=tiny, dtype=precision, param_dtype=precision))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = decoding.prepare(model, params)
    ids = jnp.asarray(_prompt(model.config.vocab, batch, prompt))
    options = {"capacity": prompt + tokens + 1}

    def write(length: int) -> None:
        if beams:
            found = decoding.beam_search(model, params, ids, length=length, beams=beams, **options)
        else:
            found = decoding.generate(model, params, ids, length=length, **options)
        jax.block_until_ready(found)

    return _program(write, tokens, difference)


def hugging_face(
    tiny: bool, batch: int, prompt: int, tokens: int, precision: str, device: str, beams: int, difference: bool,
    compiled: bool = False,
) -> Callable[[], Any]:  # fmt: skip
    """`generate` of `transformers`, with its key/value cache; compiled: a static one, and `torch.compile`."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.hugging_face import gpt2

    network = gpt2(sizes.config("gpt2", tiny=tiny), precision).to(place)
    ids = torch.from_numpy(_prompt(network.config.vocab_size, batch, prompt)).long().to(place)
    options = {"do_sample": False, "num_beams": max(1, beams), "attention_mask": torch.ones_like(ids)}
    if compiled:
        from transformers import CompileConfig

        options |= {"cache_implementation": "static", "compile_config": CompileConfig()}
        options["compile_config"]._compile_all_devices = True  # else only on accelerators

    def write(length: int) -> None:
        with torch.inference_mode():
            wait(network.generate(ids, max_new_tokens=length, min_new_tokens=length, **options))

    return _program(write, tokens, difference)


def _program(write: Callable[[int], None], tokens: int, difference: bool) -> Callable[[], Any]:
    def seconds(length: int) -> float:
        start = time.perf_counter()
        write(length)
        return time.perf_counter() - start

    return (lambda: seconds(tokens + 1) - seconds(1)) if difference else (lambda: seconds(tokens))


def _prompt(vocab: int, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (batch, length), np.int32)


def _reading_flops(config: models.ModelConfig, length: int) -> float:
    """Of one prompt, of which only the last position is read out."""
    readout = 2 * config.width * config.vocab
    return length * models.ledger(config).flops_per_token(length, causal=True).forward - (length - 1) * readout


def _matrices(config: models.ModelConfig) -> int:
    """The numbers that every token reads: all matrices, the table as read-out."""
    tally = models.ledger(config).tally
    return tally.total - tally.subtotal("embedding").count
