"""GPT-2 small for many: requests of unequal lengths served as rows become free, and decoding with a draft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import peers, sizes
from experiments.benchmarks.contest import HUGGING_FACE, Case, Program, Settings
from transformer import models

DECODING = ("transformer.decoding",)
DRAFT_DEPTH, PROPOSALS = 2, 4


def serve(settings: Settings) -> list[Case]:
    """Requests of 8 to 64 tokens, eight at a time: continuous batching beside batches that wait for their longest."""
    count, most = settings.choose(32, 128, 3), settings.choose(64, 64, 4)
    slots, prompt = settings.choose(8, 8, 2), settings.choose(16, 16, 4)
    found = []
    for precision in settings.precisions:
        arguments = {
            "tiny": settings.tiny, "count": count, "most": most, "slots": slots, "prompt": prompt,
            "precision": precision, "device": settings.device,
        }  # fmt: skip
        programs = [
            Program("ours", "serving:our_service", arguments, DECODING),
            Program("ours, fixed batches", "serving:our_batches", arguments, DECODING),
            Program("transformers, fixed batches", "serving:hugging_face_batches", arguments, HUGGING_FACE),
        ]
        total = int(_lengths(count, most).sum())
        found.append(Case("serve", precision, programs, total, "tokens", repeats=3))
    return found


def speculative(settings: Settings) -> list[Case]:
    """A draft of two layers. Random tied weights repeat their last token, so it is right: the most there is to gain."""
    tokens = settings.choose(64, 128, 4)
    found = []
    for precision in settings.precisions:
        arguments = {"tiny": settings.tiny, "tokens": tokens, "precision": precision, "device": settings.device}
        programs = [
            Program("ours", "serving:our_draft", arguments, DECODING),
            Program("ours, no draft", "serving:our_draft", {**arguments, "proposals": 0}, DECODING),
            Program("transformers", "serving:hugging_face_draft", arguments, HUGGING_FACE),
        ]
        found.append(Case("speculative, batch 1", precision, programs, tokens, "tokens"))
    return found


def our_service(count: int, most: int, slots: int, prompt: int, **model: Any) -> Callable[[], Any]:
    """`decoding.serve.serve`."""
    from transformer.decoding.serve import Request, serve

    network, params = _ours(**model)
    prompts, lengths = _prompts(network.config.vocab, count, prompt), _lengths(count, most)
    requests = [Request(row, int(length)) for row, length in zip(prompts, lengths, strict=True)]
    return lambda: sum(len(r.tokens) for r in serve(network, params, requests, capacity=prompt + most, slots=slots))


def our_batches(count: int, most: int, slots: int, prompt: int, **model: Any) -> Callable[[], Any]:
    """`decoding.generate` for as many requests as there are slots, again and again."""
    import jax

    from transformer import decoding

    network, params = _ours(**model)

    def write(rows: np.ndarray, length: int) -> None:
        jax.block_until_ready(decoding.generate(network, params, rows, length=length, capacity=prompt + most))

    return _in_batches(write, _prompts(network.config.vocab, count, prompt), _lengths(count, most), slots)


def hugging_face_batches(
    count: int, most: int, slots: int, prompt: int, tiny: bool, precision: str, device: str
) -> Callable[[], Any]:
    """`generate` of `transformers`, likewise."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.hugging_face import gpt2

    network = gpt2(sizes.config("gpt2", tiny=tiny), precision).to(place)

    def write(rows: np.ndarray, length: int) -> None:
        ids = torch.from_numpy(rows).long().to(place)
        options = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            wait(network.generate(ids, max_new_tokens=length, min_new_tokens=length, **options))

    return _in_batches(write, _prompts(network.config.vocab_size, count, prompt), _lengths(count, most), slots)


def our_draft(tokens: int, proposals: int = PROPOSALS, **model: Any) -> Callable[[], Any]:
    """`decoding.speculative.speculate`; with no proposals `decoding.generate`."""
    import jax

    from transformer import decoding
    from transformer.decoding.speculative import speculate

    network, params = _ours(**model)
    draft, draft_params = _ours(**model, depth=DRAFT_DEPTH)
    ids = _prompts(network.config.vocab, 1, 8)

    def program() -> None:
        if proposals:
            found = speculate(network, params, draft, draft_params, ids, length=tokens, proposals=proposals).tokens
        else:
            found = decoding.generate(network, params, ids, length=tokens)
        jax.block_until_ready(found)

    return program


def hugging_face_draft(tokens: int, tiny: bool, precision: str, device: str) -> Callable[[], Any]:
    """`generate` of `transformers` with an assistant."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.hugging_face import gpt2

    network = gpt2(sizes.config("gpt2", tiny=tiny), precision).to(place)
    draft = gpt2(sizes.config("gpt2", tiny=tiny, depth=DRAFT_DEPTH), precision).to(place)
    draft.generation_config.num_assistant_tokens = PROPOSALS
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    ids = torch.from_numpy(_prompts(network.config.vocab_size, 1, 8)).long().to(place)
    options = {"do_sample": False, "attention_mask": torch.ones_like(ids), "assistant_model": draft}

    def program() -> None:
        with torch.inference_mode():
            wait(network.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options))

    return program


def _ours(tiny: bool, precision: str, device: str, depth: int | None = None) -> tuple[models.Transformer, dict]:
    import jax
    import jax.numpy as jnp

    network = models.Transformer(sizes.config("gpt2", tiny=tiny, depth=depth, dtype=precision, param_dtype=precision))
    return network, jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def _in_batches(write: Callable, prompts: np.ndarray, lengths: np.ndarray, slots: int) -> Callable[[], None]:
    def program() -> None:
        for first in range(0, len(prompts), slots):
            write(prompts[first : first + slots], int(lengths[first : first + slots].max()))

    return program


def _prompts(vocab: int, count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (count, length), np.int32)


def _lengths(count: int, most: int) -> np.ndarray:
    return np.random.default_rng(1).integers(most // 8 or 1, most + 1, count)
